"""Jasper (Li et al. 2019) in its essentials: 1-D convolutions over all channels, each with batch norm, ReLU and dropout, and short cuts.

Dense convolutions are what a CPU computes fastest for their parameters. The stem has batch norms too, unlike `ConvStem`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from speechtrain.backends.torch.encoder import Encoder, Stack, frame_weights
from speechtrain.backends.torch.layers import contiguous_gradient
from speechtrain.backends.torch.models.tdnn import Block


class Jasper(Encoder):
    """See `conf/model/jasper.yaml` for the arguments; `input_size` is F."""

    def __init__(
        self, input_size: int, time_strides: Sequence[int], channels: int, kernel_size: int, dilations: Sequence[int], dropout: float
    ) -> None:
        super().__init__()
        self.time_strides = list(time_strides)
        sizes = [input_size] + [channels] * len(self.time_strides)
        self.stem = nn.ModuleList(
            # twice the stride and one, so that every frame is in two windows
            nn.Conv1d(inputs, channels, 2 * stride + 1, stride=stride, padding=stride, bias=False)
            for inputs, stride in zip(sizes, self.time_strides, strict=False)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(channels) for _ in self.time_strides)
        self.blocks = Stack((Block(channels, kernel_size, dilation, dropout) for dilation in dilations), channels, channels_first=True)
        self.output_size = channels
        self.subsampling = math.prod(self.time_strides)
        field, step = 1, 1
        for stride in self.time_strides:
            field, step = field + 2 * stride * step, step * stride
        self.receptive_field = field + self.subsampling * (kernel_size - 1) * sum(dilations)

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Compute the numbers of encoder frames (B,) of input frames (B,)."""
        for stride in self.time_strides:
            lengths = (lengths + stride - 1) // stride
        return lengths

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode features (B, T, F) as (B, T', D), with their lengths (B,)."""
        x = features.transpose(1, 2)
        x = x * frame_weights(lengths, x.shape[2], x.dtype)[:, None, :]
        for conv, norm, stride in zip(self.stem, self.norms, self.time_strides, strict=True):
            x = torch.relu_(norm(conv(x)))
            lengths = (lengths + stride - 1) // stride
            mask = frame_weights(lengths, x.shape[2], x.dtype)[:, None, :]
            x = x * mask
        return contiguous_gradient(self.blocks(x, mask)).transpose(1, 2), lengths
