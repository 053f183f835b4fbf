"""A time-delay network: a 2-D convolution stem and dilated residual 1-D convolutions (Waibel et al. 1989; Peddinti et al. 2015)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from speechtrain.backends.torch.encoder import ConvStem, Encoder, Stack, frame_weights
from speechtrain.backends.torch.layers import Dropout, contiguous_gradient


class Tdnn(Encoder):
    """See `conf/model/tdnn.yaml` for the arguments; `input_size` is F."""

    def __init__(
        self,
        input_size: int,
        stem_channels: Sequence[int],
        stem_time_strides: Sequence[int],
        channels: int,
        kernel_size: int,
        dilations: Sequence[int],
        dropout: float,
    ) -> None:
        super().__init__()
        self.stem = ConvStem(input_size, list(stem_channels), list(stem_time_strides), channels)
        self.blocks = Stack((Block(channels, kernel_size, dilation, dropout) for dilation in dilations), channels, channels_first=True)
        self.output_size = channels
        self.subsampling = math.prod(stem_time_strides)
        self.receptive_field = self.stem.receptive_field + self.subsampling * (kernel_size - 1) * sum(dilations)

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Compute the numbers of encoder frames (B,) of input frames (B,)."""
        return self.stem.output_lengths(lengths)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode features (B, T, F) as (B, T', D), with their lengths (B,)."""
        x, lengths = self.stem(features, lengths)
        mask = frame_weights(lengths, x.shape[1], x.dtype)[:, None, :]
        x = x.transpose(1, 2) * mask  # (B, D, T')
        return contiguous_gradient(self.blocks(x, mask)).transpose(1, 2), lengths


class Block(nn.Module):
    """A residual block: x + dropout(relu(norm(conv(x))))."""

    def __init__(self, channels: int, kernel_size: int, dilation: int, dropout: float) -> None:
        super().__init__()
        padding = dilation * (kernel_size - 1) // 2
        self.conv = nn.Conv1d(channels, channels, kernel_size, dilation=dilation, padding=padding, bias=False)
        self.norm = nn.BatchNorm1d(channels)
        self.dropout = Dropout(dropout)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Map frames (B, D, T') to frames (B, D, T'), zero outside the mask (B, 1, T')."""
        branch: torch.Tensor = self.dropout(torch.relu_(self.norm(self.conv(x))))
        return (x + branch) * mask
