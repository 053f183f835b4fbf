"""C++ files of a model for a microcontroller: arrays, constants and the operators; the rest lies in `sources`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt

from speechtrain.data.features.features import LASTING, LogMel
from speechtrain.data.features.microfrontend import MicroFrontend
from speechtrain.errors import UserError
from speechtrain.inference.microcontroller.operators import resolver_method

_NOTE = "// Written by speechtrain.export.\n"


def source(name: str) -> str:
    """Return a file of `sources`."""
    return (files(__package__) / "sources" / name).read_text(encoding="utf-8")


def model_files(model: bytes) -> dict[str, str]:
    """Return the model as an array and its declaration."""
    size = f"constexpr unsigned int kModelBytes = {len(model)};"
    return {
        "model_data.h": _header("model_data.h", f"{size}\nextern const unsigned char kModelData[kModelBytes];"),
        "model_data.cc": f'{_NOTE}#include "model_data.h"\n\nalignas(16) const unsigned char kModelData[kModelBytes] = {_array(model)};\n',
    }


def recording_files(samples: npt.NDArray[np.int16], name: str) -> dict[str, str]:
    """Return a recording as an array, with its class."""
    declared = [
        f"constexpr int kRecordingSamples = {len(samples)};",
        f"extern const int16_t kRecording[{len(samples)}];",
        "extern const char* const kRecordedClass;",
    ]
    return {
        "recording.h": _header("recording.h", "\n".join(declared), "<cstdint>"),
        "recording.cc": f'{_NOTE}#include "recording.h"\n\nconst int16_t kRecording[{len(samples)}] = {_array(samples.tolist())};\n'
        f"const char* const kRecordedClass = {_text(name)};\n",
    }


def operators_file(operators: Iterable[str]) -> str:
    """Return the resolver that has exactly the operators of the model."""
    methods = [resolver_method(operator) for operator in sorted(operators)]
    calls = "\n".join(f"  TF_LITE_ENSURE_STATUS(resolver.{method}());" for method in methods)
    body = f"using OperatorResolver = tflite::MicroMutableOpResolver<{len(methods)}>;\n\n"
    body += f"inline TfLiteStatus AddOperators(OperatorResolver& resolver) {{\n{calls}\n  return kTfLiteOk;\n}}"
    return _header("operators.h", body, '"tensorflow/lite/micro/micro_mutable_op_resolver.h"')


def settings_file(constants: dict[str, Any], classes: Sequence[str]) -> str:
    """Return the sizes and scales of the model and the names of its classes.

    Args:
        constants: whole numbers become `int`, others `float`.
        classes: in the order of the model's outputs.
    """
    lines = [_constant(name, value) for name, value in constants.items()]
    names = ", ".join(_text(name) for name in classes)
    lines += [f"constexpr int kClasses = {len(classes)};", f"constexpr const char* kClassNames[kClasses] = {{{names}}};"]
    return _header("settings.h", "\n".join(lines), "<cstdint>")


def front_end_files(features: object) -> dict[str, str]:
    """Return the front end that makes features of samples.

    Raises:
        UserError: there is none for these features.
    """
    if isinstance(features, LogMel):
        return {
            "front_end.h": source("front_end.h"),
            "front_end.cc": source("front_end_logmel.cc"),
            "front_end_data.h": _logmel_tables(features),
        }
    if isinstance(features, MicroFrontend):
        name = "front_end_microfrontend.cc"
        return {"front_end.h": source("front_end.h"), "front_end.cc": source(name), "front_end_data.h": _microfrontend_constants(features)}
    what = f"there is no front end in C++ for {type(features).__name__}"
    raise UserError(f"tflite_micro: {what}\n    -> train with features=logmel or features=microfrontend")


def front_end_bytes(features: object, samples: int, frames: int) -> int:
    """Return the bytes of the static arrays of `front_end.cc`.

    Args:
        features: what is computed.
        samples: most samples of a recording.
        frames: most frames.
    """
    if not isinstance(features, LogMel):
        return 0  # but for what the library's front end allocates
    floats: int = samples + 2 * features.n_fft + features.n_fft // 2 + 1 + frames  # prepared; real, imaginary; power; energies
    return 4 * floats + frames  # counted


def _microfrontend_constants(features: MicroFrontend) -> str:
    constants = {
        "kWindowMs": features.window_ms,
        "kHopMs": features.hop_ms,
        "kHopSamples": features.hop_length,
        "kLowest": float(features.f_min),
        "kHighest": float(features.f_max),
        "kPcan": features.pcan,
    }
    return _header("front_end_data.h", "\n".join(_constant(name, value) for name, value in constants.items()), '"settings.h"')


def _logmel_tables(features: LogMel) -> str:
    filters = features.filters().T.numpy()
    starts = [int(np.flatnonzero(row)[0]) for row in filters]
    ends = [int(np.flatnonzero(row)[-1]) + 1 for row in filters]
    weights = np.concatenate([row[start:end] for row, start, end in zip(filters, starts, ends, strict=True)])
    shape = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(features.win_length) / features.win_length)
    constants = {
        "kWindow": features.win_length,
        "kHop": features.hop_length,
        "kFftSize": features.n_fft,
        "kLastingFrames": max(1, round(LASTING * features.frame_rate)),
        "kPi": float(np.pi),
        "kPreemphasis": float(features.preemphasis),
        "kTop": _ratio(features.top_db),
        "kSilence": _ratio(features.silence_db),
        "kSpeech": _ratio(features.speech_db),
        "kRemoveDc": features.remove_dc,
    }
    names = {"none": "kNone", "band": "kBand", "utterance": "kUtterance"}
    lines = [
        "enum class Normalize { kNone, kBand, kUtterance };",
        f"constexpr Normalize kNormalize = Normalize::{names[features.normalize]};",
        *(_constant(name, value) for name, value in constants.items()),
        f"const float kWindowShape[kWindow] = {_array(shape.astype(np.float32))};",
        f"const int kFilterStarts[kBands] = {_array(starts)};",
        f"const int kFilterLengths[kBands] = {_array([end - start for start, end in zip(starts, ends, strict=True)])};",
        f"const float kFilterWeights[{len(weights)}] = {_array(weights)};",
    ]
    return _header("front_end_data.h", "\n".join(lines), '"settings.h"')


def _ratio(decibels: float | None) -> float:
    """Return the share of an energy that lies so many dB below it; 0 for None."""
    return 0.0 if decibels is None else float(10 ** (-decibels / 10))


def _header(name: str, body: str, *includes: str) -> str:
    guard = f"{name.upper().replace('.', '_')}_"
    lines = "".join(f"#include {include}\n" for include in includes)
    return f"{_NOTE}#ifndef {guard}\n#define {guard}\n\n{lines}{chr(10) if lines else ''}{body}\n\n#endif  // {guard}\n"


def _constant(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"constexpr bool {name} = {str(value).lower()};"
    return f"constexpr int {name} = {value};" if isinstance(value, int) else f"constexpr float {name} = {_number(value)};"


def _number(value: float) -> str:
    text = f"{np.float32(value):.9g}"
    return f"{text}f" if any(mark in text for mark in ".e") else f"{text}.0f"


def _array(values: Iterable[Any]) -> str:
    words = [str(value) if isinstance(value, int) else _number(value) for value in values]
    lines = [", ".join(words[start : start + 16]) for start in range(0, len(words), 16)]
    return "{\n    " + ",\n    ".join(lines) + "}"


def _text(value: str) -> str:
    """Return a string literal; what is not ASCII stands in it as bytes of UTF-8, a break behind each, as C++ reads escapes greedily."""
    if value.isascii() and value.isprintable():
        return json.dumps(value)
    return '"' + '""'.join(f"\\x{byte:02x}" for byte in value.encode()) + '"'
