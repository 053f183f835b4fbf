"""Opens exported files in the runtimes that they are made for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from speechtrain.config.extras import explain_missing
from speechtrain.errors import UserError, first_line
from speechtrain.inference.scales import Scale

Values = npt.NDArray[np.float32]
Lengths = npt.NDArray[np.int64]
ModelFunction = Callable[[Values, Lengths], tuple[Values, Lengths]]
"""features (B, T, F), lengths (B,) -> values (B, T', V), value_lengths (B,)."""


def open_exported(kind: str, path: Path) -> ModelFunction:
    """Open a file of `speechtrain.export` in its own runtime.

    Raises:
        UserError: the runtime is not installed, or cannot run the file; calling what is returned raises it too.
    """
    try:
        run = _OPEN[kind](path)
    except ModuleNotFoundError as error:
        raise explain_missing(error) or _failed(kind, error) from error
    except Exception as error:
        raise _failed(kind, error) from error

    def guarded(features: Values, lengths: Lengths) -> tuple[Values, Lengths]:
        try:
            return run(features, lengths)
        except UserError:
            raise
        except Exception as error:
            raise _failed(kind, error) from error

    return guarded


def _failed(kind: str, error: Exception) -> UserError:
    return UserError(f"{kind}: its runtime cannot run the file ({first_line(error)})\n    -> choose another format")


def _torchscript(path: Path) -> ModelFunction:
    import torch

    return _torch_function(torch.jit.load(str(path)))  # type: ignore[no-untyped-call]


def _pt2(path: Path) -> ModelFunction:
    import torch

    return _torch_function(torch.export.load(path).module())


def _huggingface(path: Path) -> ModelFunction:
    from speechtrain.backends.torch.huggingface import open_folder

    return open_folder(path)


def _torch_function(model: Any) -> ModelFunction:
    import torch

    def run(features: Values, lengths: Lengths) -> tuple[Values, Lengths]:
        with torch.inference_mode():
            values, value_lengths = model(torch.from_numpy(features), torch.from_numpy(lengths))
        return values.numpy(), value_lengths.numpy()

    return run


def _onnx(path: Path) -> ModelFunction:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(features: Values, lengths: Lengths) -> tuple[Values, Lengths]:
        values, value_lengths = session.run(["values", "value_lengths"], {"features": features, "lengths": lengths})
        return values, value_lengths

    return run


def _keras(path: Path) -> ModelFunction:
    keras: Any = importlib.import_module("keras")  # not by an import statement, for this is read where Keras may be missing
    model = keras.saving.load_model(path, compile=False)

    def run(features: Values, lengths: Lengths) -> tuple[Values, Lengths]:
        values, value_lengths = model(features, lengths.astype(np.int32), training=False)
        return keras.ops.convert_to_numpy(values), keras.ops.convert_to_numpy(value_lengths).astype(np.int64)

    return run


def _tflite(path: Path) -> ModelFunction:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=1)
    signature = interpreter.get_signature_runner()
    details = signature.get_input_details()["features"]
    frames = int(details["shape"][1])
    inputs, results = _scale(details), _scale(signature.get_output_details()["values"])

    def run(features: Values, lengths: Lengths) -> tuple[Values, Lengths]:
        if features.shape[1] > frames:
            raise UserError(f"{path}: takes {frames} frames, received {features.shape[1]}\n    -> export with frames={features.shape[1]}")
        values, value_lengths = [], []
        for row, length in zip(features, lengths, strict=True):
            padded = np.zeros((1, frames, row.shape[1]), dtype=np.float32)
            padded[0, :length] = row[:length]
            numbers = padded if inputs is None else inputs.quantised(padded)
            outputs = signature(features=numbers, lengths=np.array([length], dtype=np.int32))
            values.append(outputs["values"][0] if results is None else results.values(outputs["values"][0]))
            value_lengths.append(int(outputs["value_lengths"][0]))
        return np.stack(values), np.array(value_lengths, dtype=np.int64)

    return run


def _scale(details: Any) -> Scale | None:
    """Return the scale of an input or output of LiteRT; None: it holds values in floating point."""
    return Scale(*details["quantization"]) if details["dtype"] == np.int8 else None


def tensors_of(path: Path) -> dict[str, dict[str, Any]]:
    """Return shape, type and, of whole numbers, scale and zero of each input and output of a file of LiteRT."""
    from ai_edge_litert.interpreter import Interpreter

    signature = Interpreter(model_path=str(path), num_threads=1).get_signature_runner()
    described: dict[str, dict[str, Any]] = {"inputs": {}, "outputs": {}}
    for side, tensors in (("inputs", signature.get_input_details()), ("outputs", signature.get_output_details())):
        for name, details in tensors.items():
            scale = _scale(details)
            stands = {} if scale is None else {"scale": float(scale.scale), "zero": int(scale.zero)}
            shape = [int(size) for size in details["shape"]]
            described[side][name] = {"shape": shape, "type": np.dtype(details["dtype"]).name, **stands}
    return described


_OPEN: dict[str, Callable[[Path], ModelFunction]] = {
    "torchscript": _torchscript,
    "pt2": _pt2,
    "onnx": _onnx,
    "huggingface": _huggingface,
    "keras": _keras,
    "tflite": _tflite,
    "tflite_int8": _tflite,
}
