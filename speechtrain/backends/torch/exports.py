"""A trained model as files of PyTorch's own: TorchScript, and a program of `torch.export`."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from speechtrain.backends.torch.speech_model import SpeechModel
from speechtrain.files import atomically


def to_torchscript(model: SpeechModel, path: Path, input_size: int) -> None:
    """Write a traced model: features (B, T, F), lengths (B,) -> values (B, T', V), value_lengths (B,); batch and time are free.

    Args:
        model: the model, in evaluation mode.
        path: the file.
        input_size: F.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced: Any = torch.jit.trace(model, example_of(model, input_size), check_trace=False)  # type: ignore[no-untyped-call]
    traced.save(str(path))


def to_pt2(model: SpeechModel, path: Path, input_size: int) -> None:
    """Write a program of `torch.export`; inputs and outputs as with TorchScript.

    Raises:
        NotImplementedError: the model has recurrent layers, which are unrolled to one length there.
    """
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        raise NotImplementedError("torch.export unrolls recurrent layers to the length of its example; take onnx or torchscript")
    free = torch.export.Dim.AUTO
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, example_of(model, input_size), dynamic_shapes=({0: free, 1: free}, {0: free}))
        torch.export.save(program, path)


def example_of(model: SpeechModel, input_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features (2, T, F) and lengths (2,) that a model is traced with."""
    frames = 8 * model.encoder.subsampling + 3
    return torch.randn(2, frames, input_size), torch.tensor([frames, frames - 5])


def to_onnx(model: SpeechModel, path: Path, input_size: int) -> None:
    """Write a model with free batch and time: features (B, T, F), lengths (B,) -> values (B, T', V), value_lengths (B,).

    Recurrent layers go through PyTorch's older exporter: the newer one unrolls them to the length of its example.

    Args:
        model: the model as built; it is exported in evaluation mode.
        path: the file, which appears whole or not at all.
        input_size: F.
    """
    was_training = model.training
    model.eval()
    example = example_of(model, input_size)
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    names: Any = {"input_names": ["features", "lengths"], "output_names": ["values", "value_lengths"]}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with atomically(path) as temporary, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if recurrent:
                axes = {"features": {0: "batch", 1: "time"}, "lengths": {0: "batch"}, "values": {0: "batch", 1: "frames"}}
                axes["value_lengths"] = {0: "batch"}
                torch.onnx.export(model, example, temporary, dynamo=False, dynamic_axes=axes, opset_version=17, **names)
            else:
                batch, time = torch.export.Dim("batch"), torch.export.Dim("time", min=model.encoder.min_frames)
                shapes = ({0: batch, 1: time}, {0: batch})
                torch.onnx.export(
                    model, example, temporary, dynamo=True, dynamic_shapes=shapes, external_data=False, verbose=False, **names
                )
    finally:
        model.train(was_training)
