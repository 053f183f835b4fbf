"""Tries a model in whole numbers: which class it gives to each window, in TensorFlow Lite Micro's interpreter and in LiteRT."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from speechtrain.errors import UserError
from speechtrain.inference.microcontroller.interpreters import LiteRtInterpreter, MicroInterpreter, Scale, measure_memory
from speechtrain.inference.microcontroller.operators import read_graph
from speechtrain.inference.microcontroller.windows import Window

_TIE = 0.1
"""Difference of probability within which two classes count as equally probable: that much two libraries may differ by rounding."""


@dataclass(frozen=True)
class Trial:
    """Measurements of a model in whole numbers.

    Attributes:
        windows: how many windows were classified.
        equal: how many of them have the same class in TensorFlow Lite Micro as in LiteRT.
        arena_bytes: bytes of the tensor arena, on a machine with pointers of 64 bits; those of 32 bits need somewhat less.
        model_bytes: size of the file.
        multiply_adds: multiply-adds of a recording.
        operators: how often each operator is used.
        latency_ms: median time of a window in TensorFlow Lite Micro's interpreter on this machine.
        place: which input is that of the features; the other one is the mask.
        whole: probabilities (N, V) in TensorFlow Lite Micro.
        floating: those of the model in floating point.
        left_out: how many utterances do not fit into a window, or cannot be read.
        accuracy: share of right classes of the model in floating point, on the same windows.
        metrics: metrics of the task in TensorFlow Lite Micro.
    """

    windows: int
    equal: int
    arena_bytes: int
    model_bytes: int
    multiply_adds: int
    operators: Counter[str]
    latency_ms: float
    place: int
    input: Scale
    output: Scale
    whole: npt.NDArray[np.float32]
    floating: npt.NDArray[np.float32]
    left_out: int = 0
    accuracy: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def int8_accuracy(self) -> float:
        """Return the share of right classes in TensorFlow Lite Micro."""
        return self.metrics["accuracy"]

    @property
    def difference(self) -> float:
        """Return the greatest difference between probabilities in whole numbers and in floating point."""
        return float(np.abs(self.whole - self.floating).max())

    def remark(self, frames: int) -> str:
        """Return the measurements as some lines for people."""
        operators = ", ".join(f"{name} {count}" for name, count in sorted(self.operators.items()))
        left_out = f" ({self.left_out} utterances are longer and left out)" if self.left_out else ""
        return "\n".join(
            [
                f"tflite_micro  {self.windows} recordings of at most {frames} frames{left_out}",
                f"accuracy      {self.int8_accuracy:.2%} in whole numbers, {self.accuracy:.2%} in floating point",
                f"LiteRT        gives the same class to {self.equal} of {self.windows} recordings",
                f"arena         {self.arena_bytes:,} bytes; model {self.model_bytes:,} bytes",
                f"computation   {self.multiply_adds:,} multiply-adds a recording",
                f"operators     {operators}",
            ]
        )


def try_model(model: bytes, windows: Sequence[Window], probabilities: npt.NDArray[np.float32]) -> Trial:
    """Classify windows in both interpreters.

    Args:
        model: content of the file of LiteRT.
        windows: the windows.
        probabilities: those (N, V) that the model in floating point gives.

    Raises:
        UserError: TensorFlow Lite Micro cannot run the model, or gives other classes than LiteRT.
    """
    graph = read_graph(model)
    arena = measure_memory(model)
    micro, lite = MicroInterpreter(model, arena), LiteRtInterpreter(model)
    found, took, other, equal = [], [], [], 0
    for window in windows:
        numbers = micro.input.quantised(window.features)
        start = time.perf_counter()
        outputs = micro(numbers)
        took.append(time.perf_counter() - start)
        expected = lite(numbers)
        found.append(micro.output.values(outputs))
        equal += int(outputs.argmax() == expected.argmax())
        if micro.output.scale * (int(expected.max()) - int(expected[outputs.argmax()])) > _TIE:
            other.append(window.id)
    if other:
        what = f"TensorFlow Lite Micro gives {len(other)} of {len(windows)} windows another class than LiteRT, such as {other[0]}"
        raise UserError(f"tflite_micro: {what}\n    -> train another model")
    return Trial(
        windows=len(windows),
        equal=equal,
        arena_bytes=arena,
        model_bytes=len(model),
        multiply_adds=graph.multiply_adds,
        operators=graph.operators,
        latency_ms=1000 * statistics.median(took),
        place=micro.place,
        input=micro.input,
        output=micro.output,
        whole=np.stack(found),
        floating=probabilities,
    )
