"""E-Branchformer (Kim et al. 2022): attention and a convolutional gate side by side, merged by a convolution over both."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from speechtrain.backends.torch.encoder import ConvStem, halvings
from speechtrain.backends.torch.layers import DepthwiseConv, Dropout, FeedForward
from speechtrain.backends.torch.models.conformer import Attention, RotaryEncoder


class EBranchformer(RotaryEncoder):
    """See `conf/model/ebranchformer.yaml` for the arguments; `input_size` is F."""

    def __init__(
        self,
        input_size: int,
        d_model: int,
        n_layers: int,
        n_heads: int,
        ff_multiplier: float,
        gate_multiplier: float,
        kernel_size: int,
        subsampling: int,
        stem_channels: int,
        dropout: float,
    ) -> None:
        strides = halvings(subsampling)
        hidden = round(ff_multiplier * d_model)
        gated = 2 * round(gate_multiplier * d_model / 2)
        super().__init__(
            ConvStem(input_size, [stem_channels] * len(strides), strides, d_model),
            (EBranchformerLayer(d_model, n_heads, hidden, gated, kernel_size, dropout) for _ in range(n_layers)),
            d_model,
            d_model // n_heads,
            subsampling,
            dropout,
        )


class EBranchformerLayer(nn.Module):
    """Half a feed-forward, two branches and their merging, half a feed-forward, a norm."""

    def __init__(self, d_model: int, n_heads: int, hidden: int, gated: int, kernel_size: int, dropout: float) -> None:
        super().__init__()
        self.ff1 = FeedForward(d_model, hidden, dropout)
        self.attention = Attention(d_model, n_heads, dropout)
        self.gate = ConvGate(d_model, gated, kernel_size, dropout)
        self.merge_conv = DepthwiseConv(2 * d_model, kernel_size, bias=True)
        self.merge = nn.Linear(2 * d_model, d_model)
        self.dropout = Dropout(dropout)
        self.ff2 = FeedForward(d_model, hidden, dropout)
        self.norm = nn.LayerNorm(d_model)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, attend: torch.Tensor | None, rotation: torch.Tensor) -> torch.Tensor:
        """Map frames (B, T', D) to frames (B, T', D)."""
        x = self.ff1(x)
        both = torch.cat([self.attention(x, attend, rotation), self.gate(x, mask)], dim=-1)
        both = both + self.merge_conv(both * mask)
        x = x + self.dropout(self.merge(both))
        x = self.ff2(x)
        return self.norm(x)  # type: ignore[no-any-return]


class ConvGate(nn.Module):
    """The convolutional gating MLP (Sakuma et al. 2021): half of the channels, convolved over time, multiply the other half."""

    def __init__(self, d_model: int, gated: int, kernel_size: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.expand = nn.Linear(d_model, gated)
        self.gate_norm = nn.LayerNorm(gated // 2)
        self.depthwise = DepthwiseConv(gated // 2, kernel_size, bias=True)
        nn.init.normal_(self.depthwise.weight, std=1e-6)  # at first the gate is open: as in the paper's code
        nn.init.ones_(self.depthwise.bias)  # type: ignore[arg-type]
        self.project = nn.Linear(gated // 2, d_model)
        self.dropout = Dropout(dropout)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Map frames (B, T', D) to frames (B, T', D); those where the mask (B, T', 1) is 0 influence no others."""
        passed, gate = F.gelu(self.expand(self.norm(x))).chunk(2, dim=-1)
        out: torch.Tensor = self.dropout(self.project(self.dropout(passed * self.depthwise(self.gate_norm(gate) * mask))))
        return out
