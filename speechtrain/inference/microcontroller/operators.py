"""The operators that TensorFlow Lite Micro has, and those that a model uses."""

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

SUPPORTED = frozenset(
    [
        "ABS",
        "ADD",
        "ADD_N",
        "ARG_MAX",
        "ARG_MIN",
        "ASSIGN_VARIABLE",
        "AVERAGE_POOL_2D",
        "BATCH_MATMUL",
        "BATCH_TO_SPACE_ND",
        "BROADCAST_ARGS",
        "BROADCAST_TO",
        "CALL_ONCE",
        "CAST",
        "CEIL",
        "CONCATENATION",
        "CONV_2D",
        "COS",
        "CUMSUM",
        "DEPTH_TO_SPACE",
        "DEPTHWISE_CONV_2D",
        "DEQUANTIZE",
        "DIV",
        "ELU",
        "EMBEDDING_LOOKUP",
        "EQUAL",
        "EXP",
        "EXPAND_DIMS",
        "FILL",
        "FLOOR",
        "FLOOR_DIV",
        "FLOOR_MOD",
        "FULLY_CONNECTED",
        "GATHER",
        "GATHER_ND",
        "GREATER",
        "GREATER_EQUAL",
        "HARD_SWISH",
        "IF",
        "L2_NORMALIZATION",
        "L2_POOL_2D",
        "LEAKY_RELU",
        "LESS",
        "LESS_EQUAL",
        "LOG",
        "LOG_SOFTMAX",
        "LOGICAL_AND",
        "LOGICAL_NOT",
        "LOGICAL_OR",
        "LOGISTIC",
        "MAX_POOL_2D",
        "MAXIMUM",
        "MEAN",
        "MINIMUM",
        "MIRROR_PAD",
        "MUL",
        "NEG",
        "NOT_EQUAL",
        "PACK",
        "PAD",
        "PADV2",
        "PRELU",
        "QUANTIZE",
        "READ_VARIABLE",
        "REDUCE_MAX",
        "RELU",
        "RELU6",
        "RESHAPE",
        "RESIZE_BILINEAR",
        "RESIZE_NEAREST_NEIGHBOR",
        "ROUND",
        "RSQRT",
        "SELECT_V2",
        "SHAPE",
        "SIN",
        "SLICE",
        "SOFTMAX",
        "SPACE_TO_BATCH_ND",
        "SPACE_TO_DEPTH",
        "SPLIT",
        "SPLIT_V",
        "SQRT",
        "SQUARE",
        "SQUARED_DIFFERENCE",
        "SQUEEZE",
        "STRIDED_SLICE",
        "SUB",
        "SUM",
        "SVDF",
        "TANH",
        "TRANSPOSE",
        "TRANSPOSE_CONV",
        "UNIDIRECTIONAL_SEQUENCE_LSTM",
        "UNPACK",
        "VAR_HANDLE",
        "WHILE",
        "ZEROS_LIKE",
    ]
)
"""The built-in operators for which `micro_mutable_op_resolver.h` has a method."""


@dataclass(frozen=True)
class Graph:
    """What a file of LiteRT says about the computation.

    Attributes:
        operators: how often each operator stands in it.
        multiply_adds: multiplications with additions of its convolutions and affine maps, for one window.
    """

    operators: Counter[str]
    multiply_adds: int

    @property
    def unsupported(self) -> list[str]:
        """Return the operators that TensorFlow Lite Micro has not."""
        return sorted(set(self.operators) - SUPPORTED)


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
