"""A model in whole numbers in two interpreters: that of TensorFlow Lite Micro, which devices run, and LiteRT's."""

from __future__ import annotations

import importlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from speechtrain.errors import UserError
from speechtrain.inference.microcontroller.operators import read_graph
from speechtrain.processes import fresh

Whole = npt.NDArray[np.int8]
MASK_INSIDE, MASK_OUTSIDE = 127, -128
"""How 1 and 0 stand in the mask, whose values lie between 0 and 1."""
_MOST = 64 << 20  # bytes of an arena; no microcontroller has as many
_GRAIN = 16  # bytes; buffers of an arena begin at multiples of it
_ATTEMPTS = 60  # each with a twentieth more than the one before
_TIMEOUT = 600  # s
_QUOTED_LINES = 4
"""Last lines of the interpreter's output that a message quotes."""
_TOTAL = re.compile(r"Arena allocation total (\d+) bytes")


@dataclass(frozen=True)
class Scale:
    """How whole numbers stand for values: value = scale * (number - zero)."""

    scale: float
    zero: int

    def quantised(self, values: npt.NDArray[np.float32]) -> Whole:
        """Return the nearest whole numbers between -128 and 127, computed in float32 as the C++ example does."""
        numbers: Whole = np.clip(np.rint(values / np.float32(self.scale)) + self.zero, -128, 127).astype(np.int8)
        return numbers

    def values(self, numbers: Whole) -> npt.NDArray[np.float32]:
        """Return the values that whole numbers stand for."""
        return np.float32(self.scale) * (numbers.astype(np.float32) - np.float32(self.zero))


class MicroInterpreter:
    """Runs a model in TensorFlow Lite Micro's own interpreter.

    Args:
        model: content of the file.
        arena: bytes of the tensor arena.

    Raises:
        RuntimeError: the arena is too small, or the model cannot be run; the reason goes to the process' error output.
    """

    def __init__(self, model: bytes, arena: int) -> None:
        runtime: Any = importlib.import_module("tflite_micro").runtime
        self._interpreter = runtime.Interpreter.from_bytes(model, arena_size=arena)
        inputs = [self._interpreter.get_input_details(index) for index in range(2)]
        self.place = _place_of_features([details["shape"] for details in inputs])
        self.frames = int(inputs[self.place]["shape"][1])
        self.input = _scale(inputs[self.place]["quantization_parameters"])
        self.output = _scale(self._interpreter.get_output_details(0)["quantization_parameters"])

    def __call__(self, features: Whole) -> Whole:
        """Compute the whole numbers (V,) of an utterance (T, F) of at most `frames` frames."""
        for place, numbers in enumerate(_inputs(features, self.frames, self.input, self.place)):
            self._interpreter.set_input(numbers, place)
        self.invoke()
        return np.array(self._interpreter.get_output(0)[0])

    def invoke(self) -> None:
        """Compute the outputs of the inputs that are there."""
        self._interpreter.invoke()

    def print_allocations(self) -> None:
        """Write to the process' error output how much of the arena was used."""
        self._interpreter.print_allocations()


class LiteRtInterpreter:
    """Runs a model in LiteRT, with its own kernels: its reference kernels compute other values for dilated convolutions.

    Args:
        model: content of the file.
    """

    def __init__(self, model: bytes) -> None:
        module: Any = importlib.import_module("ai_edge_litert.interpreter")
        self._interpreter = module.Interpreter(
            model_content=model, num_threads=1, experimental_op_resolver_type=module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        )
        self._interpreter.allocate_tensors()
        self._inputs = self._interpreter.get_input_details()
        self._features = _place_of_features([details["shape"] for details in self._inputs])
        self._scale = _scale(self._inputs[self._features]["quantization_parameters"])
        self._output = self._interpreter.get_output_details()[0]["index"]

    def __call__(self, features: Whole) -> Whole:
        """Compute the whole numbers (V,) of an utterance (T, F)."""
        frames = int(self._inputs[self._features]["shape"][1])
        for details, numbers in zip(self._inputs, _inputs(features, frames, self._scale, self._features), strict=True):
            self._interpreter.set_tensor(details["index"], numbers)
        self._interpreter.invoke()
        return np.array(self._interpreter.get_tensor(self._output)[0])


def _place_of_features(shapes: Sequence[Any]) -> int:
    """Return which of the inputs, features (1, T, F) and a mask (1, T), is that of the features."""
    return next(place for place, shape in enumerate(shapes) if len(shape) == 3)


def _inputs(features: Whole, frames: int, scale: Scale, place: int) -> list[Whole]:
    """Return the inputs of a model in its order: features (1, T, F) filled up with zeros, and the mask (1, T)."""
    padded = np.full((1, frames, features.shape[1]), scale.zero, dtype=np.int8)
    padded[0, : len(features)] = features
    mask = np.where(np.arange(frames) < len(features), MASK_INSIDE, MASK_OUTSIDE).astype(np.int8)[None]
    return [padded, mask] if place == 0 else [mask, padded]


def measure_memory(model: bytes) -> int:
    """Return the bytes of the arena that a model uses, in which it was run again; in a process of its own, as the interpreter may crash.

    Raises:
        UserError: the model has operators that TensorFlow Lite Micro has not, or cannot be run; the message names them.
    """
    if absent := read_graph(model).unsupported:
        what = f"the model uses {', '.join(absent)}, which TensorFlow Lite Micro has not"
        raise UserError(f"tflite_micro: {what}\n    -> train another model, such as model=matchboxnet or model=tdnn")
    try:
        return fresh.call(_measure, model, quiet=True, timeout=_TIMEOUT)
    except fresh.ProcessDiedError as error:
        raise UserError(f"tflite_micro: TensorFlow Lite Micro's interpreter {error}\n    -> train another model") from None


def _measure(model: bytes) -> int:
    with _errors_kept() as errors:
        try:
            interpreter = MicroInterpreter(model, _MOST)
            interpreter.invoke()
            interpreter.print_allocations()
        except (RuntimeError, ValueError):
            lines = [line for line in errors().splitlines() if line.strip()][-_QUOTED_LINES:]
            message = "\n    ".join(["tflite_micro: TensorFlow Lite Micro cannot run the model", *lines])
            raise UserError(f"{message}\n    -> train another model, such as model=matchboxnet or model=tdnn") from None
        found = _TOTAL.search(errors())
        if found is None:
            raise UserError("tflite_micro: the interpreter of TensorFlow Lite Micro does not say how much memory it has used")
        arena = int(found[1])
        for _ in range(_ATTEMPTS):  # planning the memory of many tensors takes some of it, too
            arena = -(-arena // _GRAIN) * _GRAIN
            try:
                MicroInterpreter(model, arena).invoke()
            except (RuntimeError, ValueError):
                arena = arena * 21 // 20
            else:
                return arena
    raise UserError("tflite_micro: TensorFlow Lite Micro cannot run the model in any arena that was tried\n    -> train another model")


@contextmanager
def _errors_kept() -> Iterator[Callable[[], str]]:
    """Keep back what this process and its libraries write to the error output; yields a function that returns it."""
    sys.stderr.flush()
    before = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)

        def written() -> str:
            file.seek(0)
            return file.read().decode(errors="replace")

        try:
            yield written
        finally:
            os.dup2(before, 2)
            os.close(before)


def _scale(parameters: Any) -> Scale:
    return Scale(float(parameters["scales"][0]), int(parameters["zero_points"][0]))
