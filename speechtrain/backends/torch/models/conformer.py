"""Conformer (Gulati et al. 2020) with rotary positions (Su et al. 2021) in place of relative ones, so that attention can be fused."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from speechtrain.backends.torch.encoder import ConvStem, Encoder, Stack, frame_mask
from speechtrain.backends.torch.layers import DepthwiseConv, Dropout, FeedForward, attention_precision, rotate


class Conformer(Encoder):
    """See `conf/model/conformer.yaml` for the arguments; `input_size` is F."""

    frequencies: torch.Tensor

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
        super().__init__()
        # one halving layer for each factor of two; at least two layers, so that mels are reduced to a quarter
        halvings = int(math.log2(subsampling))
        strides = [2] * halvings + [1] * (2 - halvings)
        self.stem = ConvStem(input_size, [stem_channels] * len(strides), strides, d_model)
        self.dropout = Dropout(dropout)
        hidden = round(ff_multiplier * d_model)
        self.layers = Stack((ConformerLayer(d_model, n_heads, hidden, kernel_size, dropout) for _ in range(n_layers)), d_model)
        self.register_buffer("frequencies", 10000.0 ** (-torch.arange(0, d_model // n_heads, 2) / (d_model // n_heads)), persistent=False)
        self.output_size = d_model
        self.subsampling = subsampling
        self.receptive_field = None

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Encoder frames (B,) of input frames (B,)."""
        return self.stem.output_lengths(lengths)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T, F) -> (B, T', D)."""
        x, lengths = self.stem(features, lengths)
        mask = frame_mask(lengths, x.shape[1])
        angles = torch.arange(x.shape[1], device=x.device)[:, None] * self.frequencies  # (T', d/2)
        rotation = torch.stack([angles.cos(), angles.sin()]).to(x.dtype)
        # without padding no mask is needed, and attention takes its fastest path
        attend = None if bool(mask.all()) else mask[:, None, None, :]
        x = self.dropout(x)
        return self.layers(x, mask[:, :, None].to(x.dtype), attend, rotation), lengths


class ConformerLayer(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward, a norm."""

    def __init__(self, d_model: int, n_heads: int, hidden: int, kernel_size: int, dropout: float) -> None:
        super().__init__()
        self.ff1 = FeedForward(d_model, hidden, dropout)
        self.attention = Attention(d_model, n_heads, dropout)
        self.conv = ConvModule(d_model, kernel_size, dropout)
        self.ff2 = FeedForward(d_model, hidden, dropout)
        self.norm = nn.LayerNorm(d_model)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, attend: torch.Tensor | None, rotation: torch.Tensor) -> torch.Tensor:
        """(B, T', D) -> (B, T', D)."""
        x = self.ff1(x)
        x = x + self.attention(x, attend, rotation)
        x = x + self.conv(x, mask)
        x = self.ff2(x)
        return self.norm(x)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Multi-head self-attention; queries and keys are rotated by their position."""

    def __init__(self, d_model: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm = nn.LayerNorm(d_model)
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)
        self.dropout = Dropout(dropout)

    def forward(self, x: torch.Tensor, attend: torch.Tensor | None, rotation: torch.Tensor) -> torch.Tensor:
        """(B, T', D) -> (B, T', D); `attend` (B, 1, 1, T') is true where a key may be looked at."""
        batch, frames, width = x.shape
        q, k, v = self.qkv(self.norm(x)).view(batch, frames, 3, self.n_heads, width // self.n_heads).permute(2, 0, 3, 1, 4)
        with attention_precision(x.device) as wide:
            if wide:
                q, k, v = q.float(), k.float(), v.float()
            x = F.scaled_dot_product_attention(rotate(q, rotation), rotate(k, rotation), v, attn_mask=attend)  # (B, H, T', d)
        out: torch.Tensor = self.dropout(self.out(x.transpose(1, 2).reshape(batch, frames, width)))
        return out


class ConvModule(nn.Module):
    """Pointwise with gate, depthwise, batch norm, SiLU, pointwise."""

    def __init__(self, d_model: int, kernel_size: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.expand = nn.Linear(d_model, 2 * d_model)
        self.depthwise = DepthwiseConv(d_model, kernel_size)
        self.batch_norm = nn.BatchNorm1d(d_model)
        self.project = nn.Linear(d_model, d_model)
        self.dropout = Dropout(dropout)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, T', D) -> (B, T', D); frames where the mask (B, T', 1) is 0 reach no others."""
        x = F.glu(self.expand(self.norm(x)), dim=-1) * mask
        x = self.depthwise(x)
        x = F.silu(self.batch_norm(x.flatten(0, 1)).view(x.shape))  # (B T', D): four times as fast as (B, D, T')
        out: torch.Tensor = self.dropout(self.project(x))
        return out
