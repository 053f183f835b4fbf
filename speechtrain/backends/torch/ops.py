"""What tasks write their losses with, on PyTorch; see `speechtrain.tasks.base.Ops`."""

from __future__ import annotations

from typing import Any

import torch

from speechtrain.backends.torch.encoder import frame_mask
from speechtrain.backends.torch.losses import ctc

__all__ = ["absolute", "constant", "ctc", "framework", "mask", "mean", "one_hot", "sum", "where"]

framework = torch


def mask(lengths: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Make a mask (B, T) in float32: 1 inside each row, 0 behind its end."""
    return frame_mask(lengths, like.shape[1]).float()


def one_hot(labels: torch.Tensor, size: int) -> torch.Tensor:
    """Turn labels (B,) into rows (B, size) with a 1 at the label."""
    return torch.nn.functional.one_hot(labels.long(), size).float()


def constant(values: Any, like: torch.Tensor) -> torch.Tensor:
    """Make a tensor of numbers in float32, on the device of another tensor."""
    return torch.as_tensor(values, dtype=torch.float32, device=like.device)


def sum(values: torch.Tensor, axis: int | tuple[int, ...]) -> torch.Tensor:  # noqa: A001
    """Reduce one axis or several."""
    return values.sum(dim=axis)


def mean(values: torch.Tensor, axis: int | tuple[int, ...]) -> torch.Tensor:
    """Reduce one axis or several."""
    return values.mean(dim=axis)


def absolute(values: torch.Tensor) -> torch.Tensor:
    """Compute the absolute value of each element."""
    return values.abs()


def where(condition: torch.Tensor, yes: torch.Tensor, no: torch.Tensor) -> torch.Tensor:
    """Choose at each place between the one and the other."""
    return torch.where(condition, yes, no)
