"""The operators that a model uses, and what TensorFlow Lite Micro calls them; whether it has them its own interpreter says."""

from __future__ import annotations

import importlib
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

_ADD = {
    "ADD_N": "AddN",
    "AVERAGE_POOL_2D": "AveragePool2D",
    "BATCH_MATMUL": "BatchMatMul",
    "CONV_2D": "Conv2D",
    "CUMSUM": "CumSum",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2D",
    "L2_POOL_2D": "L2Pool2D",
    "MAX_POOL_2D": "MaxPool2D",
    "PADV2": "PadV2",
    "SELECT_V2": "SelectV2",
    "SPLIT_V": "SplitV",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "UnidirectionalSequenceLSTM",
}
"""What stands behind `Add` in `MicroMutableOpResolver`, where that is not the operator's name with capitals for underscores."""


@dataclass(frozen=True)
class Graph:
    """What a file of LiteRT says about the computation.

    Attributes:
        operators: how often each operator stands in it.
        multiply_adds: multiplications with additions of its convolutions and affine maps, for one window.
    """

    operators: Counter[str]
    multiply_adds: int


def resolver_method(operator: str) -> str:
    """Return the method of `MicroMutableOpResolver` that adds an operator: `CONV_2D` has `AddConv2D`."""
    return "Add" + _ADD.get(operator, "".join(word.capitalize() for word in operator.split("_")))


def read_graph(model: bytes) -> Graph:
    """Read the operators of a file of LiteRT, those of all its subgraphs."""
    schema: Any = importlib.import_module("tflite_micro.tensorflow.lite.micro.python.schema_py_generated")
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    parsed = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(model, 0))
    operators: Counter[str] = Counter()
    sums = 0
    for graph in parsed.subgraphs:
        for operator in graph.operators or ():
            code = parsed.operatorCodes[operator.opcodeIndex]
            name = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
            operators[name] += 1
            sums += _multiply_adds(name, graph, operator)
    return Graph(operators, sums)


def _multiply_adds(name: str, graph: Any, operator: Any) -> int:
    """Count the multiply-adds of an operator with weights; 0 of any other."""
    if name not in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
        return 0
    weights, outputs = ([int(size) for size in graph.tensors[index].shape] for index in (operator.inputs[1], operator.outputs[0]))
    # of (out, height, width, in), (1, height, width, out) or (out, in) all but the outputs are summed over
    summed = math.prod(weights[1:3]) if name == "DEPTHWISE_CONV_2D" else math.prod(weights[1:])
    return math.prod(outputs) * summed
