"""An encoder with its head: on batches, and on live signals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from speechtrain.backends.torch.encoder import Encoder, Stack, frame_mask, stacks_of
from speechtrain.errors import ConfigError, Problem
from speechtrain.tasks.base import Head


class SpeechModel(nn.Module):
    """An encoder with the head that a task asks for."""

    def __init__(self, encoder: Encoder, head: Head) -> None:
        super().__init__()
        self.encoder = encoder
        self.spec = head
        self.head = nn.Linear(encoder.output_size, head.size * (encoder.subsampling if head.per_input_frame else 1))
        self._tapped: list[Stack] = []  # in a list, so that it is no part of the model twice
        if head.zero_init and getattr(encoder, "receptive_field", None) is not None:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map features (B, T, F) and lengths (B,) to the head's values (B, T', V) and their lengths (B,)."""
        encoded, encoded_lengths = self.encoder(features.to(self.head.weight.dtype), lengths)
        if self.spec.pool is not None:
            encoded, encoded_lengths = pooled(encoded, encoded_lengths, self.spec.pool)
        values = self._values(encoded)
        if self.spec.per_input_frame:
            values = values.reshape(values.shape[0], -1, self.spec.size)[:, : features.shape[1]]
            encoded_lengths = lengths
        return values, encoded_lengths

    def _values(self, encoded: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = self.head(encoded).float()
        return values.log_softmax(-1) if self.spec.log_softmax else values

    def load_head(self, pretrained: tuple[torch.Tensor, torch.Tensor] | None, outputs: Sequence[int]) -> None:
        """Load those outputs of a pretrained head that this one has, in its order.

        Args:
            pretrained: weight (V', D) and bias (V',) of that head; None: there is none.
            outputs: number of the output for each value of this one.

        Raises:
            ConfigError: there is no such head, or it has another number of outputs than its vocabulary has tokens.
        """
        if pretrained is None or len(pretrained[0]) != len(outputs) or pretrained[0].shape[1] != self.head.in_features:
            has = "no head" if pretrained is None else f"a head of the shape {tuple(pretrained[0].shape)}"
            message = f"needs a head of {len(outputs)} tokens, and the checkpoint has {has}"
            raise ConfigError([Problem("tokenizer", message, "train a new head: for example tokenizer=char")])
        for own, theirs in zip((self.head.weight, self.head.bias), pretrained, strict=True):
            own.data.copy_(theirs[list(outputs)])

    def tap(self) -> None:
        """Keep what the middle of the encoder gives, for `halfway`.

        Raises:
            ConfigError: its layers are none of the same width as its output.
        """
        stacks = [each for each in stacks_of(self.encoder) if each.width == self.encoder.output_size and len(each) > 1]
        if len(stacks) != 1:
            name = type(self.encoder).__name__
            message = f"needs a middle of the encoder that is like its end, and {name} has none"
            fix = "set task.intermediate=0, or take a model with layers in a row of one width and rate, such as conformer"
            raise ConfigError([Problem("task.intermediate", message, fix)])
        stacks[0].taps = True
        self._tapped = stacks

    def halfway(self) -> torch.Tensor:
        """Return what the head gives (B, T', V) on the middle of the encoder in the last pass."""
        stack = self._tapped[0]
        assert stack.tapped is not None
        values, stack.tapped = self._values(stack.tapped), None
        return values


class ModelStream:
    """A model on a live signal of one utterance.

    Args:
        model: the model, which is put in evaluation mode.
        encoder: what its encoder's `stream()` gave.
    """

    def __init__(self, model: SpeechModel, encoder: Any) -> None:
        self._model = model.eval()
        self._encoder = encoder

    @torch.inference_mode()
    def push(self, features: torch.Tensor) -> npt.NDArray[np.float32]:
        """Compute the outputs (t', V) that features (t, F) complete."""
        weight = self._model.head.weight
        return self._values(self._encoder.push(features[None].to(weight)))

    @torch.inference_mode()
    def finish(self) -> npt.NDArray[np.float32]:
        """Return the outputs (t', V) that are still missing at the end of the signal."""
        return self._values(self._encoder.finish())

    @property
    def nbytes(self) -> int:
        """Return how many bytes the tensors take that the encoder's state holds."""
        return sum(tensor.nbytes for tensor in _tensors(vars(self._encoder)))

    def _values(self, encoded: torch.Tensor) -> npt.NDArray[np.float32]:
        values: npt.NDArray[np.float32] = self._model._values(encoded)[0].cpu().numpy()
        return values


def _tensors(value: object) -> Iterator[torch.Tensor]:
    """Yield the tensors in nested mappings and sequences."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(each)


def pooled(x: torch.Tensor, lengths: torch.Tensor, how: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Pool (B, T', D) to (B, 1, D) over the frames of each row (`mean`, `max`), or take its last frame (`last`); lengths become 1."""
    if how == "last":
        index = (lengths.clamp_min(1) - 1).long()
        frames = x[torch.arange(x.shape[0], device=x.device), index]
    else:
        inside = frame_mask(lengths, x.shape[1])[:, :, None]
        if how == "max":
            frames = x.masked_fill(~inside, torch.finfo(x.dtype).min).amax(1)
        else:
            frames = (x * inside).sum(1) / lengths.clamp_min(1)[:, None]
    return frames[:, None], torch.ones_like(lengths)
