"""QuartzNet (Kriman et al. 2020): residual blocks of time-channel separable 1-D convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from speechtrain.backends.torch.encoder import Encoder, Stack, frame_weights
from speechtrain.backends.torch.layers import Dropout, contiguous_gradient


class QuartzNet(Encoder):
    """See `conf/model/quartznet.yaml` for the arguments; `input_size` is F."""

    def __init__(
        self,
        input_size: int,
        stem_channels: int,
        stem_kernel: int,
        subsampling: int,
        channels: Sequence[int],
        kernel_sizes: Sequence[int],
        repeats: int,
        head_channels: int,
        head_kernel: int,
        head_dilation: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.stem = SeparableConv(input_size, stem_channels, stem_kernel, stride=subsampling)
        sizes = [stem_channels, *channels]
        blocks = (Block(sizes[i], sizes[i + 1], kernel, repeats, dropout) for i, kernel in enumerate(kernel_sizes))
        self.blocks = Stack(blocks, channels_first=True)
        self.head = SeparableConv(sizes[-1], head_channels, head_kernel, dilation=head_dilation)
        self.dropout = Dropout(dropout)
        self.output_size = head_channels
        self.subsampling = subsampling
        context = repeats * sum(kernel - 1 for kernel in kernel_sizes) + head_dilation * (head_kernel - 1)
        self.receptive_field = stem_kernel + subsampling * context

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Compute the numbers of encoder frames (B,) of input frames (B,)."""
        return (lengths + self.subsampling - 1) // self.subsampling

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode features (B, T, F) as (B, T', D), with their lengths (B,)."""
        x = features.transpose(1, 2)  # (B, F, T)
        x = self.dropout(torch.relu(self.stem(x, frame_weights(lengths, x.shape[2], x.dtype)[:, None, :])))
        lengths = self.output_lengths(lengths)
        mask = frame_weights(lengths, x.shape[2], x.dtype)[:, None, :]
        x = self.blocks(x, mask)
        return contiguous_gradient(self.dropout(torch.relu(self.head(x, mask)))).transpose(1, 2), lengths


class Block(nn.Module):
    """Separable convolutions in a row beside a pointwise short cut."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, repeats: int, dropout: float) -> None:
        super().__init__()
        self.convs = nn.ModuleList(SeparableConv(inputs if i == 0 else outputs, outputs, kernel_size) for i in range(repeats))
        self.shortcut = nn.Conv1d(inputs, outputs, 1, bias=False)
        self.shortcut_norm = nn.BatchNorm1d(outputs)
        self.dropout = Dropout(dropout)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Map frames (B, D, T') to frames (B, D', T')."""
        branch = x
        for index, conv in enumerate(self.convs):
            branch = conv(branch if index == 0 else self.dropout(torch.relu(branch)), mask)
        out: torch.Tensor = self.dropout(torch.relu(branch + self.shortcut_norm(self.shortcut(x))))
        return out


class SeparableConv(nn.Module):
    """Depthwise over time, pointwise over channels, batch norm."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        padding = dilation * (kernel_size // 2)
        self.depthwise = nn.Conv1d(
            inputs, inputs, kernel_size, stride=stride, padding=padding, dilation=dilation, groups=inputs, bias=False
        )
        self.pointwise = nn.Conv1d(inputs, outputs, 1, bias=False)
        self.norm = nn.BatchNorm1d(outputs)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Map frames (B, D, T) to frames (B, D', T'); those outside the mask (B, 1, T) influence no others."""
        out: torch.Tensor = self.norm(self.pointwise(self.depthwise(x * mask)))
        return out
