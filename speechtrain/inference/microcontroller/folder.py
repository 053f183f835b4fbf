"""`format=tflite_micro`: a folder with all that a program for a microcontroller needs of a trained classifier."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from speechtrain.data.features.features import Features
from speechtrain.data.features.microfrontend import MicroFrontend
from speechtrain.errors import UserError
from speechtrain.files import make_folder
from speechtrain.inference.microcontroller import cpp
from speechtrain.inference.microcontroller.interpreters import MASK_INSIDE, MASK_OUTSIDE
from speechtrain.inference.microcontroller.trial import Trial
from speechtrain.inference.microcontroller.windows import Window, most_samples
from speechtrain.inference.replacement import Replacement, enumerated

log = logging.getLogger(__name__)

NAME = "tflite_micro"
"""The name of the format, and of the folder."""
_OWN = ("main.cc", "README.md")
"""Files that somebody may change: they are not written over."""
_LIST = ".speechtrain"
RECORDING = ("recording.cc", "recording.h")
"""Files that hold a recording of the test data; `main.cc` does without them."""
_FLOAT_BYTES, _SAMPLE_BYTES = 4, 2
_MAKE = "$TFLM/tensorflow/lite/micro/tools/make/downloads"


@dataclass(frozen=True)
class Device:
    """What the device must know of a model besides its weights.

    Attributes:
        classes: in the order of the model's outputs.
        frames: frames T of a window.
        features: what computes them.
        name: of the run.
    """

    classes: Sequence[str]
    frames: int
    features: Features
    name: str

    @property
    def seconds(self) -> float:
        """Return the length of the longest recording, s."""
        return most_samples(self.features, self.frames) / self.features.sample_rate

    @property
    def buffer_bytes(self) -> dict[str, int]:
        """Return the bytes of the static arrays of each C++ file, but for the arena; what the library allocates is not among them."""
        samples = most_samples(self.features, self.frames)
        return {
            "main.cc": _FLOAT_BYTES * self.frames * self.features.size + _SAMPLE_BYTES * samples,
            "front_end.cc": cpp.front_end_bytes(self.features, samples, self.frames),
        }


def facts_of(trial: Trial, device: Device) -> dict[str, Any]:
    """Return the measurements and what a program needs to know, for `model.json` and archives."""
    return {
        "format": NAME,
        "classes": list(device.classes),
        "frames": device.frames,
        "seconds": device.seconds,
        "sample_rate": device.features.sample_rate,
        "features": {"shape": [1, device.frames, device.features.size], "scale": trial.input.scale, "zero": trial.input.zero},
        "mask": {"shape": [1, device.frames], "inside": MASK_INSIDE, "outside": MASK_OUTSIDE},
        "probabilities": {"shape": [1, len(device.classes)], "scale": trial.output.scale, "zero": trial.output.zero},
        "model_bytes": trial.model_bytes,
        "arena_bytes": trial.memory.arena,
        "arena_used_bytes": trial.memory.used,
        "buffer_bytes": device.buffer_bytes,
        "multiply_adds": trial.multiply_adds,
        "operators": dict(sorted(trial.operators.items())),
        "recordings": trial.windows,
        "longer_left_out": trial.longer,
        "unreadable_left_out": trial.unreadable,
        "same_class_as_litert": trial.equal,
        "far_from_litert": trial.far,
        "steps_from_litert": trial.steps,
        "accuracy": trial.accuracy,
        "int8_accuracy": trial.int8_accuracy,
        "difference": trial.difference,
    }


def write_folder(path: Path, model: bytes, trial: Trial, device: Device, example: Window) -> None:
    """Write the folder, or put its files in place of those of an earlier export.

    Args:
        path: the folder.
        model: content of the file of LiteRT.
        trial: what was measured of it.
        device: what else the device must know.
        example: the recording that `main.cc` classifies.

    Raises:
        UserError: the folder has files that somebody has changed, or there is no front end for these features.
        OSError: the folder cannot be written.
    """
    constants = {
        "kSampleRate": device.features.sample_rate,
        "kMaxSamples": most_samples(device.features, device.frames),
        "kFrames": device.frames,
        "kBands": device.features.size,
        "kArenaBytes": trial.memory.arena,
        "kFeaturesInput": trial.place,
        "kMaskInput": 1 - trial.place,
        "kInputScale": trial.input.scale,
        "kInputZero": trial.input.zero,
        "kMaskInside": MASK_INSIDE,
        "kMaskOutside": MASK_OUTSIDE,
        "kOutputScale": trial.output.scale,
        "kOutputZero": trial.output.zero,
    }
    texts = {
        **cpp.model_files(model),
        **cpp.recording_files(example.samples, example.text),
        **cpp.front_end_files(device.features),
        "operators.h": cpp.operators_file(trial.operators),
        "settings.h": cpp.settings_file(constants, device.classes),
        "main.cc": cpp.source("main.cc"),
        "README.md": _readme(trial, device),
        "model.json": json.dumps(facts_of(trial, device), indent=2, ensure_ascii=False) + "\n",
    }
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise UserError(f"{NAME}: {path} is there, and not a folder of an earlier export\n    -> set out to another folder")
    with TemporaryDirectory(dir=path.parent, prefix=".export-") as place:
        folder = Path(place) / NAME
        folder.mkdir()
        (folder / "model.tflite").write_bytes(model)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        make_folder(path)
        replacement = Replacement.plan(path, folder, _LIST)
        if others := [name for name in replacement.others if name not in _OWN]:
            message = f"{NAME}: {path} has files that were changed, or not written by an earlier export: {enumerated(others)}"
            raise UserError(f"{message}\n    -> remove them, or set out to another folder")
        for name in replacement.others:
            log.warning("%s was changed, or not written by an earlier export, and stays as it is", path / name)
        replacement.carry_out()


def _readme(trial: Trial, device: Device) -> str:
    operators = ", ".join(f"{name} {count}" for name, count in sorted(trial.operators.items()))
    buffers = ", ".join(f"{name} {size:,}" for name, size in device.buffer_bytes.items())
    whole = isinstance(device.features, MicroFrontend)
    size = device.features.size
    return f"""# {device.name} for TensorFlow Lite Micro

| | |
|---|---|
| classes | {", ".join(device.classes)} |
| features | {device.frames} frames of {size} values, whole numbers of 8 bits: value / {trial.input.scale:.6g} + {trial.input.zero} |
| mask | for each frame {MASK_INSIDE} inside the recording, {MASK_OUTSIDE} behind its end |
| recording | at most {device.seconds:.3f} s at {device.features.sample_rate} Hz |
| output | a probability for each class: {trial.output.scale:.6g} * (number - {trial.output.zero}) |
| model | {trial.model_bytes:,} bytes (flash) |
| tensor arena | {trial.memory.arena:,} bytes (RAM); the interpreter reports {trial.memory.used:,} of them as used, the rest is a reserve |
| static buffers | bytes of RAM besides: {buffers}{" and what the library's front end allocates" if whole else ""} |
| computation | {trial.multiply_adds:,} multiply-adds a recording |
| operators | {operators} |
| accuracy | {100 * trial.int8_accuracy:.2f} % of {trial.windows} recordings, in floating point {100 * trial.accuracy:.2f} % |
| left out | {trial.left_out} |
| beside LiteRT | {trial.compared} |

Accuracy, classes and the arena in use were measured in the library's own interpreter on a computer with 64 bits; on 32 bits pointers,
and so the arena, take less. Multiply-adds and operators were read from the model, buffers computed from `settings.h`. Nothing was measured
on a device, and no time of one.

`model.tflite` is the model; `model_data.cc` and `model_data.h` hold it as an array, `operators.h` the operators for the resolver,
`settings.h` the sizes and scales, `front_end.cc` the front end ({_FRONT_ENDS[whole]}).
`recording.cc` and `recording.h` hold a recording of your test data: remove them where that must not be given on (archives have none).
`main.cc` classifies that recording, or a WAV file where there are files. In a checkout of TensorFlow Lite Micro, $TFLM:

    make -f tensorflow/lite/micro/tools/make/Makefile microlite

and here{_FRONT_END_BUILD if whole else ""}:

    g++ -std=c++17 -O2 -DTF_LITE_STATIC_MEMORY -I$TFLM -I{_MAKE}/flatbuffers/include \\
        -I{_MAKE}/gemmlowp -I{_MAKE}/ruy \\
        *.cc {"*.o " if whole else ""}$TFLM/gen/linux_*/lib/libtensorflow-microlite.a -o classify
    ./classify recording.wav
"""


_FRONT_ENDS = ("it calls nothing but the standard library", "it calls the library's own, in C")
_FRONT_END_BUILD = """, the library's front end first, with kissfft 1.3 in $KISSFFT:

    for file in fft fft_util filterbank filterbank_util frontend frontend_util log_lut log_scale log_scale_util \\
        noise_reduction noise_reduction_util pcan_gain_control pcan_gain_control_util window window_util kiss_fft_int16; do
        g++ -O2 -I$TFLM -I$KISSFFT -I$KISSFFT/tools -c $TFLM/tensorflow/lite/experimental/microfrontend/lib/$file.c*
    done

then"""
