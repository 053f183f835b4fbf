"""The base class of encoders, and the parts that several of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from speechtrain.backends.torch.layers import convolve_one_channel, masked_relu


def frame_mask(lengths: torch.Tensor, frames: int) -> torch.Tensor:
    """Make a mask (B, T) of booleans, true inside each utterance."""
    return torch.arange(frames, device=lengths.device)[None, :] < lengths[:, None]


def frame_weights(lengths: torch.Tensor, frames: int, dtype: torch.dtype) -> torch.Tensor:
    """Make a mask (B, T) of 1 inside each utterance and 0 behind its end; PyTorch multiplies by it ten times as fast as by booleans."""
    return frame_mask(lengths, frames).to(dtype)


def stack_frames(x: torch.Tensor, stack: int) -> torch.Tensor:
    """Join neighbouring frames (B, T, F) to (B, ceil(T / stack), stack * F), filled up with zeros."""
    frames = (x.shape[1] + stack - 1) // stack
    return F.pad(x, (0, 0, 0, frames * stack - x.shape[1])).reshape(x.shape[0], frames, stack * x.shape[2])


class Encoder(nn.Module, ABC):
    """Encodes features (B, T, F) of lengths (B,) as (B, T', D), and gives their lengths (B,).

    Attributes:
        output_size: D.
        subsampling: input frames an encoder frame.
        receptive_field: input frames that an encoder frame depends on; None: all of them.
        causal: whether no encoder frame depends on later input.
        min_frames: input frames that make one encoder frame.
    """

    output_size: int
    subsampling: int
    receptive_field: int | None
    causal: bool = False
    min_frames: int = 1

    def load_pretrained(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Load the weights of the file that the model's config names; called before a training that begins anew.

        Returns:
            Weight (V, D) and bias (V,) of the head that the file has too; None if it has none.

        Raises:
            ConfigError: it does not fit.
        """
        return None

    def adapt_warm_start(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the weights of another run's encoder by the names that they have in this one, where `init_from` names that run.

        Raises:
            ConfigError: they would be of no use without others that this one has not.
        """
        return dict(weights)

    def prepare(self, *, layer_dropout: float, checkpointing: bool) -> None:
        """Take what a training asks of layers that are in no `Stack`: see there."""

    def at_step(self, step: int) -> None:
        """Hear which optimizer step comes next, counted from 0, before the batches of it are computed."""

    def lr_scales(self) -> Mapping[str, float]:
        """Return by which factors parameters learn more slowly than the head, by their names in the encoder; empty: all alike."""
        return {}

    @abstractmethod
    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Compute the numbers of encoder frames (B,) of input frames (B,)."""

    @abstractmethod
    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode; what lies behind an utterance's end changes nothing."""


class Stack(nn.ModuleList):
    """Layers of one kind, one behind the other, with what may be done between them.

    Args:
        layers: each takes what the one before it gives, and the same context besides.
        width: D of all their outputs; None: they differ.
        channels_first: whether they work on (B, D, T').

    Attributes:
        layer_dropout: probability that an utterance passes by a layer in training (stochastic depth, Huang et al. 2016; for speech Pham
            et al. 2019): all layers have it alike, and none is scaled, as in LayerDrop (Fan et al. 2020).
        checkpointing: whether a layer's inner values are computed again for its gradient instead of kept (Chen et al. 2016).
        call: how a layer is called in training, as `torch.compile` makes it; None: as it is.
        taps: whether what the layer in the middle gives in training is kept in `tapped`.
        tapped: (B, T', D) of the last pass.
    """

    def __init__(self, layers: Iterable[nn.Module], width: int | None = None, *, channels_first: bool = False) -> None:
        super().__init__(layers)
        self.width = width
        self.channels_first = channels_first
        self.layer_dropout = 0.0
        self.checkpointing = False
        self.call: Callable[..., torch.Tensor] | None = None
        self.taps = False
        self.tapped: torch.Tensor | None = None

    def forward(self, x: torch.Tensor, *context: Any) -> torch.Tensor:
        """Apply all layers in their order."""
        for index, layer in enumerate(self):
            call = self.call if self.call is not None and self.training else call_layer
            if self.checkpointing and self.training and torch.is_grad_enabled():
                y = checkpoint(call, layer, x, *context, use_reentrant=False)
            else:
                y = call(layer, x, *context)
            if self.layer_dropout and self.training and y.shape == x.shape:
                passes_by = torch.rand(len(x), 1, 1, device=x.device) < self.layer_dropout
                y = torch.where(passes_by, x, y)
            x = y
            if self.taps and self.training and index == (len(self) - 1) // 2:
                self.tapped = x.transpose(1, 2) if self.channels_first else x
        return x


def call_layer(layer: nn.Module, x: torch.Tensor, *context: Any) -> torch.Tensor:
    """Apply a layer of a `Stack`."""
    output: torch.Tensor = layer(x, *context)
    return output


def stacks_of(encoder: nn.Module) -> list[Stack]:
    """Find the stacks of layers that an encoder is made of."""
    return [module for module in encoder.modules() if isinstance(module, Stack)]


def compile_layers(encoder: nn.Module) -> bool:
    """Compile the layers of stacks by `torch.compile`, one for all; return whether the encoder has stacks."""
    stacks = stacks_of(encoder)
    for stack in stacks:
        stack.call = torch.compile(call_layer)
    return bool(stacks)


def halvings(subsampling: int) -> list[int]:
    """Return the time strides of a stem: a halving for each factor of two, and at least two layers, which leave a quarter of the mels."""
    count = subsampling.bit_length() - 1
    return [2] * count + [1] * (2 - count)


class ConvStem(nn.Module):
    """3x3 convolutions over time and mels, each halving the mels and dividing time by its stride.

    Args:
        input_size: F.
        channels: channels of each layer.
        time_strides: time strides of each layer.
        output_size: D of a linear layer on what is left of the mels.
        causal: look at no later frames.
    """

    def __init__(self, input_size: int, channels: list[int], time_strides: list[int], output_size: int, *, causal: bool = False) -> None:
        super().__init__()
        sizes = [1, *channels]
        padding = (0, 1) if causal else (1, 1)
        self.convs = nn.ModuleList(
            nn.Conv2d(sizes[i], sizes[i + 1], kernel_size=3, stride=(time_strides[i], 2), padding=padding) for i in range(len(channels))
        )
        self.causal = causal
        bands = input_size
        for _ in channels:
            bands = (bands + 1) // 2
        self.linear = nn.Linear(channels[-1] * bands, output_size)
        self.time_strides = time_strides

    @property
    def receptive_field(self) -> int:
        """Return how many input frames an output frame depends on."""
        field, stride = 1, 1
        for step in self.time_strides:
            field += 2 * stride
            stride *= step
        return field

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Compute the numbers of output frames (B,) of input frames (B,)."""
        for stride in self.time_strides:
            lengths = (lengths + stride - 1) // stride
        return lengths

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode features (B, T, F) as (B, T', D), with their lengths (B,)."""
        # channels last: small convolutions run a fifth faster so, and flattening to (F', C) is then free
        x = features.unsqueeze(1).contiguous(memory_format=torch.channels_last)  # (B, 1, T, F)
        convs: Iterable[Any] = self.convs
        for conv, stride in zip(convs, self.time_strides, strict=True):
            lengths = (lengths + stride - 1) // stride
            x = F.pad(x, (0, 0, 2, 0)) if self.causal else x
            x = convolve_one_channel(x, conv) if conv.in_channels == 1 else conv(x)
            x = masked_relu(x, frame_weights(lengths, x.shape[2], x.dtype)[:, None, :, None])
        return self.linear(x.permute(0, 2, 3, 1).flatten(2)), lengths
