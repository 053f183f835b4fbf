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
_RESERVE = 1024  # bytes


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
        "arena_bytes": trial.arena_bytes,
        "multiply_adds": trial.multiply_adds,
        "operators": dict(sorted(trial.operators.items())),
        "recordings": trial.windows,
        "same_class_as_litert": trial.equal,
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
        "kArenaBytes": _arena_of(trial),
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


def _arena_of(trial: Trial) -> int:
    """Return the bytes of the arena in the example: other versions and builds of the library use some hundred more."""
    return -(-(trial.arena_bytes + _RESERVE) // _RESERVE) * _RESERVE


def _readme(trial: Trial, device: Device) -> str:
    operators = ", ".join(f"{name} {count}" for name, count in sorted(trial.operators.items()))
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
| tensor arena | {trial.arena_bytes:,} bytes (RAM), measured on 64 bits, {_arena_of(trial):,} with a reserve |
| computation | {trial.multiply_adds:,} multiply-adds a recording |
| operators | {operators} |
| accuracy | {100 * trial.int8_accuracy:.2f} % of {trial.windows} recordings, in floating point {100 * trial.accuracy:.2f} % |
| same class as in LiteRT | {trial.equal} of {trial.windows} recordings |

`model.tflite` is the model; `model_data.cc` and `model_data.h` hold it as an array, `operators.h` the operators for the resolver,
`settings.h` the sizes and scales, `front_end.cc` the front end (it calls nothing but the standard library), `recording.cc` a recording of
the test data. `main.cc` classifies that recording, or a WAV file where there are files:

    make -f tensorflow/lite/micro/tools/make/Makefile microlite    # in a checkout of TensorFlow Lite Micro, $TFLM
    g++ -std=c++17 -O2 -DTF_LITE_STATIC_MEMORY -I$TFLM -I$TFLM/tensorflow/lite/micro/tools/make/downloads/flatbuffers/include \\
        *.cc $TFLM/gen/linux_x86_64_default_gcc/lib/libtensorflow-microlite.a -o classify
    ./classify recording.wav
"""
