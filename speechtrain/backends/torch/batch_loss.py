"""The losses of a batch: its arrays to the device, through the model (compiled, if asked for) and the task's loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from speechtrain.backends.schedules import round_up
from speechtrain.backends.torch import ops
from speechtrain.backends.torch.encoder import compile_layers
from speechtrain.backends.torch.internals import allow_compiled_shapes
from speechtrain.backends.torch.speech_model import SpeechModel
from speechtrain.data.batches import Batch
from speechtrain.tasks.base import Ops, Outputs, Task

OPS: Ops = ops

_MAX_COMPILED_SHAPES = 64
"""Batches of further shapes are computed as without compiling."""


class BatchLoss:
    """Computes the loss of each utterance of a batch.

    Args:
        model: the model, in training or in evaluation mode.
        task: knows the loss.
        compiled: whether `torch.compile` makes the model of the training step; training batches are then rounded up to few shapes.
    """

    def __init__(self, model: SpeechModel, task: Task, *, compiled: bool = False) -> None:
        self.model = model
        self.task = task
        self._compiled = _compile(model) if compiled else None

    def __call__(self, batch: Batch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the losses of the utterances (B,), values of the head (B, T', V) and their frames (B,)."""
        if self._compiled is not None and self.model.training:
            rows = len(batch.ids)
            values, lengths = (each[:rows] for each in self._compiled(*(_on(device, array) for array in _rounded_up(batch))))
        else:
            values, lengths = self.model(_on(device, batch.features), _on(device, batch.feature_lengths))
        return self.of_values(values, lengths, batch), values, lengths

    def gradient(self, batch: Batch, device: torch.device) -> None:
        """Compute the gradient of a batch's summed loss, and drop it."""
        total = self(batch, device)[0].sum()
        # not backward(): several processes would wait for each other's gradients
        torch.autograd.grad(total, [each for each in self.model.parameters() if each.requires_grad], allow_unused=True)

    def of_values(self, values: torch.Tensor, lengths: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the losses of the utterances (B,) from values of a head (B, T', V) and their frames (B,)."""
        targets, target_lengths = _on(values.device, batch.targets), _on(values.device, batch.target_lengths)
        losses: torch.Tensor = self.task.loss(OPS, values, lengths, targets, target_lengths)
        return losses


def to_outputs(utterance_losses: torch.Tensor, values: torch.Tensor, lengths: torch.Tensor) -> Outputs:
    """Copy the tensors of a batch to arrays on the CPU."""
    return Outputs(
        values=values.detach().float().cpu().numpy(),
        lengths=lengths.cpu().numpy().astype(np.int64),
        losses=utterance_losses.detach().float().cpu().numpy(),
    )


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether PyTorch ran out of memory: on a GPU by its exception, on the CPU by its message, as there is no exception for it."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error) or "not enough memory" in str(error)


def _on(device: torch.device, array: npt.NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(array).to(device, non_blocking=True)


def _compile(model: SpeechModel) -> Callable[..., Any]:
    """Compile a model: layers of a stack once for all of them and once more for all shapes, any other model whole, for each shape."""
    allow_compiled_shapes(_MAX_COMPILED_SHAPES)

    def call(features: torch.Tensor, lengths: torch.Tensor) -> Any:  # what compiling makes of a module is a module, and would be saved
        return model(features, lengths)

    compiled: Callable[..., Any] = call if compile_layers(model.encoder) else torch.compile(call, dynamic=False)
    return compiled


def _rounded_up(batch: Batch) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Pad features with rows of one frame and with frames of zeros, so that few shapes have to be compiled."""
    rows, frames = (round_up(size, 4) - size for size in batch.features.shape[:2])
    features = np.pad(batch.features, ((0, rows), (0, frames), (0, 0)))
    return features, np.pad(batch.feature_lengths, (0, rows), constant_values=1)
