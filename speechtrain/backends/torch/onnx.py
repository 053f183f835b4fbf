"""A trained model for ONNX Runtime."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from speechtrain.backends.torch.model import SpeechModel


def example_of(model: SpeechModel, input_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (2, T, F) and lengths (2,) that a model is traced with."""
    frames = 8 * model.encoder.subsampling + 3
    return torch.randn(2, frames, input_size), torch.tensor([frames, frames - 5])


def to_onnx(model: SpeechModel, path: Path, input_size: int) -> None:
    """Write a model with free batch and time: features (B, T, F), lengths (B,) -> values (B, T', V), value_lengths (B,).

    Recurrent layers go through PyTorch's older exporter: the newer one unrolls them to the length of its example.

    Args:
        model: as built; exported in evaluation mode.
        path: the file, which appears whole or not at all.
        input_size: F.
    """
    was_training = model.training
    model.eval()
    example = example_of(model, input_size)
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    temporary = path.with_name(f".{path.name}.tmp")
    names: Any = {"input_names": ["features", "lengths"], "output_names": ["values", "value_lengths"]}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
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
        temporary.replace(path)
    finally:
        model.train(was_training)
        temporary.unlink(missing_ok=True)
