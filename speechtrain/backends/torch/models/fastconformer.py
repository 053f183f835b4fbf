"""FastConformer (Rekesh et al. 2023): eightfold subsampling by separable convolutions and small kernels; the rest is a conformer."""

from __future__ import annotations

import torch
from torch import nn

from speechtrain.backends.torch.encoder import frame_weights
from speechtrain.backends.torch.layers import masked_relu
from speechtrain.backends.torch.models.conformer import ConformerLayer, RotaryEncoder


class FastConformer(RotaryEncoder):
    """See `conf/model/fastconformer.yaml` for the arguments; `input_size` is F."""

    def __init__(
        self,
        input_size: int,
        d_model: int,
        n_layers: int,
        n_heads: int,
        ff_multiplier: float,
        kernel_size: int,
        subsampling: int,
        stem_channels: int,
        dropout: float,
    ) -> None:
        hidden = round(ff_multiplier * d_model)
        super().__init__(
            SeparableStem(input_size, stem_channels, subsampling, d_model),
            (ConformerLayer(d_model, n_heads, hidden, kernel_size, dropout) for _ in range(n_layers)),
            d_model,
            d_model // n_heads,
            subsampling,
            dropout,
        )


class SeparableStem(nn.Module):
    """A 3x3 convolution, then depthwise 3x3 and pointwise ones, each halving time and mels.

    Args:
        input_size: F.
        channels: channels of all of them.
        subsampling: a power of 2; as many halvings.
        output_size: D of a linear layer on what is left of the mels.
    """

    def __init__(self, input_size: int, channels: int, subsampling: int, output_size: int) -> None:
        super().__init__()
        self.halvings = subsampling.bit_length() - 1
        self.first = nn.Conv2d(1, channels, 3, stride=2, padding=1)
        self.depthwise = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels) for _ in range(self.halvings - 1)
        )
        self.pointwise = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(self.halvings - 1))
        self.linear = nn.Linear(channels * -(-input_size // subsampling), output_size)

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Compute the numbers of output frames (B,) of input frames (B,)."""
        for _ in range(self.halvings):
            lengths = (lengths + 1) // 2
        return lengths

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode features (B, T, F) as (B, T', D), with their lengths (B,)."""
        x = features.unsqueeze(1)  # (B, 1, T, F)
        lengths = (lengths + 1) // 2
        x = self.first(x).contiguous(memory_format=torch.channels_last)
        x = masked_relu(x, frame_weights(lengths, x.shape[2], x.dtype)[:, None, :, None])
        for depthwise, pointwise in zip(self.depthwise, self.pointwise, strict=True):
            lengths = (lengths + 1) // 2
            x = pointwise(depthwise(x))
            x = masked_relu(x, frame_weights(lengths, x.shape[2], x.dtype)[:, None, :, None])
        return self.linear(x.permute(0, 2, 3, 1).flatten(2)), lengths
