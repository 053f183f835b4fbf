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

from speechtrain.errors import UserError
from speechtrain.inference.scales import Scale, Whole
from speechtrain.processes import fresh

MASK_INSIDE, MASK_OUTSIDE = 127, -128
"""How 1 and 0 stand in the mask, whose values lie between 0 and 1."""
_MOST = 64 << 20  # bytes of an arena; no microcontroller has as many
_GRAIN = 16  # bytes; buffers of an arena begin at multiples of it
_RESERVES = (16, 8, 4, 2, 1)
"""Parts of what is used that a tried arena has besides: a sixteenth, an eighth ... Planning the memory of many tensors takes some."""
_LEAST_RESERVE = 1024  # bytes
_TIMEOUT = 600  # s
_QUOTED_LINES = 4
"""Last lines of the interpreter's output that a message quotes."""
_OTHER_MODEL = "train another model, such as model=matchboxnet or model=tdnn"
_TOTAL = re.compile(r"Arena allocation total (\d+) bytes")


@dataclass(frozen=True)
class Memory:
    """How much of a device's memory a model takes while it computes.

    Attributes:
        used: bytes of the arena that the interpreter reports as used, on a machine with pointers of 64 bits; those of 32 bits use less.
        arena: bytes to give it: a sixteenth of `used`, or 1 KiB, more than an arena in which the model was run.
    """

    used: int
    arena: int


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


def measure_memory(model: bytes) -> Memory:
    """Measure the arena of a model, each time in a process of its own: in one that is too small the interpreter may crash.

    Raises:
        UserError: TensorFlow Lite Micro cannot run the model; the message says why in the interpreter's words.
    """
    try:
        used = fresh.call(_bytes_used, model, quiet=True, timeout=_TIMEOUT)
    except (fresh.ProcessDiedError, TimeoutError) as error:
        raise UserError(f"tflite_micro: TensorFlow Lite Micro's interpreter failed: {error}\n    -> {_OTHER_MODEL}") from None
    least = max(_LEAST_RESERVE, used // _RESERVES[0])
    for share in _RESERVES:
        tried = used + max(_LEAST_RESERVE, used // share)
        if _runs(model, _whole_grains(tried)):
            return Memory(used, _whole_grains(tried + least))
    what = f"uses {used:,} bytes of its arena, and cannot run the model in one of twice the size"
    raise UserError(f"tflite_micro: TensorFlow Lite Micro {what}\n    -> {_OTHER_MODEL}")


def _whole_grains(size: int) -> int:
    return -(-size // _GRAIN) * _GRAIN


def _runs(model: bytes, arena: int) -> bool:
    """Return whether a model runs in an arena of so many bytes."""
    try:
        fresh.call(_run, model, arena, quiet=True, timeout=_TIMEOUT)
    except (fresh.ProcessDiedError, TimeoutError, RuntimeError, ValueError):
        return False
    return True


def _run(model: bytes, arena: int) -> None:
    MicroInterpreter(model, arena).invoke()


def _bytes_used(model: bytes) -> int:
    """Run a model in a large arena, and return how much of that the interpreter reports as used."""
    with _errors_kept() as errors:
        try:
            interpreter = MicroInterpreter(model, _MOST)
            interpreter.invoke()
            interpreter.print_allocations()
        except (RuntimeError, ValueError):
            lines = [line for line in errors().splitlines() if line.strip()][-_QUOTED_LINES:]
            message = "\n    ".join(["tflite_micro: TensorFlow Lite Micro cannot run the model", *lines])
            raise UserError(f"{message}\n    -> {_OTHER_MODEL}") from None
        found = _TOTAL.search(errors())
    if found is None:
        raise UserError("tflite_micro: the interpreter of TensorFlow Lite Micro does not say how much memory it has used")
    return int(found[1])


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
