"""A perceptron on a few stacked frames: no temporal context beyond them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from speechtrain.backends.torch.encoder import Encoder, stack_frames


class Mlp(Encoder):
    """See `conf/model/mlp.yaml` for the arguments; `input_size` is F."""

    def __init__(self, input_size: int, hidden_sizes: Sequence[int], stack: int, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        size = input_size * stack
        for hidden in hidden_sizes:
            layers += [nn.Linear(size, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Dropout(dropout)]
            size = hidden
        self.layers = nn.Sequential(*layers)
        self.output_size = size
        self.subsampling = stack
        self.receptive_field = stack

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Compute the numbers of encoder frames (B,) of input frames (B,)."""
        return (lengths + self.subsampling - 1) // self.subsampling

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode features (B, T, F) as (B, T', D), with their lengths (B,)."""
        return self.layers(stack_frames(features, self.subsampling)), self.output_lengths(lengths)
