"""A trained model as files of PyTorch's own: TorchScript, and a program of `torch.export`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from speechtrain.backends.torch.model import SpeechModel
from speechtrain.backends.torch.onnx import example_of


def to_torchscript(model: SpeechModel, path: Path, input_size: int) -> None:
    """Write a traced model: features (B, T, F), lengths (B,) -> values (B, T', V), value_lengths (B,); batch and time are free.

    Args:
        model: in evaluation mode.
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
