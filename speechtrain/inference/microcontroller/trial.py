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
from speechtrain.inference.microcontroller.interpreters import LiteRtInterpreter, Memory, MicroInterpreter, measure_memory
from speechtrain.inference.microcontroller.operators import read_graph
from speechtrain.inference.microcontroller.windows import Window
from speechtrain.inference.scales import Scale

_TIE = 3
"""Steps of the output, of 1/256 each, by which the class of TensorFlow Lite Micro may be less probable in LiteRT than LiteRT's own."""
_FAR = 0.001
"""Share of the recordings in which it may be less probable than that: a step in front of the softmax is many steps behind it."""


@dataclass(frozen=True)
class Trial:
    """Measurements of a model in whole numbers.

    Attributes:
        windows: how many windows were classified.
        equal: how many of them have the same class in TensorFlow Lite Micro as in LiteRT.
        steps: greatest difference between an output in TensorFlow Lite Micro and in LiteRT, in steps of that output.
        far: how many have another class that LiteRT takes for less probable by more than three steps.
        memory: bytes of the tensor arena.
        model_bytes: size of the file.
        multiply_adds: multiply-adds of a recording.
        operators: how often each operator is used.
        latency_ms: median time of a window in TensorFlow Lite Micro's interpreter on this machine.
        place: which input is that of the features; the other one is the mask.
        whole: probabilities (N, V) in TensorFlow Lite Micro.
        floating: those of the model in floating point.
        longer: how many utterances do not fit into a window and were left out.
        unreadable: how many cannot be read.
        accuracy: share of right classes of the model in floating point, on the same windows.
        metrics: metrics of the task in TensorFlow Lite Micro.
    """

    windows: int
    equal: int
    steps: int
    far: int
    memory: Memory
    model_bytes: int
    multiply_adds: int
    operators: Counter[str]
    latency_ms: float
    place: int
    input: Scale
    output: Scale
    whole: npt.NDArray[np.float32]
    floating: npt.NDArray[np.float32]
    longer: int = 0
    unreadable: int = 0
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

    @property
    def compared(self) -> str:
        """Return how TensorFlow Lite Micro and LiteRT differ."""
        steps = f"{self.steps} step{'' if self.steps == 1 else 's'} of {self.output.scale:.4g}"
        far = f", {self.far} of them by more than {_TIE} steps" if self.far else ""
        return (
            f"gives another class to {self.windows - self.equal} of {self.windows} recordings{far}; the outputs differ by {steps} at most"
        )

    @property
    def left_out(self) -> str:
        """Return how many utterances were not tried, and why."""
        reasons = [(self.longer, "longer"), (self.unreadable, "unreadable")]
        return ", ".join(f"{count} {reason}" for count, reason in reasons if count) or "none"

    def remark(self, frames: int) -> str:
        """Return the measurements as some lines for people."""
        operators = ", ".join(f"{name} {count}" for name, count in sorted(self.operators.items()))
        return "\n".join(
            [
                f"tflite_micro  {self.windows} recordings of at most {frames} frames; left out: {self.left_out}",
                f"accuracy      {self.int8_accuracy:.2%} in whole numbers, {self.accuracy:.2%} in floating point",
                f"LiteRT        {self.compared}",
                f"arena         {self.memory.arena:,} bytes, {self.memory.used:,} of them used; model {self.model_bytes:,} bytes",
                f"computation   {self.multiply_adds:,} multiply-adds a recording, counted from the model's shapes",
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
    memory = measure_memory(model)
    micro, lite = MicroInterpreter(model, memory.arena), LiteRtInterpreter(model)
    found, took, other, equal, steps = [], [], [], 0, 0
    for window in windows:
        numbers = micro.input.quantised(window.features)
        start = time.perf_counter()
        outputs = micro(numbers)
        took.append(time.perf_counter() - start)
        expected = lite(numbers)
        found.append(micro.output.values(outputs))
        equal += int(outputs.argmax() == expected.argmax())
        steps = max(steps, int(np.abs(outputs.astype(int) - expected.astype(int)).max()))
        if int(expected.max()) - int(expected[outputs.argmax()]) > _TIE:
            other.append(window.id)
    if len(other) > _FAR * len(windows):
        what = f"TensorFlow Lite Micro gives {len(other)} of {len(windows)} windows another class than LiteRT, such as {other[0]}"
        what += (
            f", which is more probable in LiteRT by more than {_TIE} steps of {micro.output.scale:.4g}; outputs differ by {steps} at most"
        )
        raise UserError(f"tflite_micro: {what}\n    -> train another model")
    return Trial(
        windows=len(windows),
        equal=equal,
        steps=steps,
        far=len(other),
        memory=memory,
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
