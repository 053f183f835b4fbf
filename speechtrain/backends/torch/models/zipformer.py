"""Zipformer (Yao et al. 2024) in its essentials.

Stacks of layers at several frame rates, attention weights that are used several times, bypasses, BiasNorm and the Swoosh activations.
Positions are rotary; the paper's optimizer and its balancers are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from speechtrain.backends.torch.attention import rotary_frequencies, rotate
from speechtrain.backends.torch.encoder import ConvStem, Encoder, Stack, frame_mask
from speechtrain.backends.torch.layers import DepthwiseConv, Dropout


class Zipformer(Encoder):
    """See `conf/model/zipformer.yaml` for the arguments; `input_size` is F."""

    def __init__(
        self,
        input_size: int,
        rates: Sequence[int],
        widths: Sequence[int],
        layers: Sequence[int],
        heads: Sequence[int],
        hidden: Sequence[int],
        kernel_sizes: Sequence[int],
        head_size: int,
        stem_channels: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.stem = ConvStem(input_size, [stem_channels, stem_channels], [2, 1], widths[0])
        self.dropout = Dropout(dropout)
        settings = zip(rates, widths, layers, heads, hidden, kernel_sizes, strict=True)
        self.stages = nn.ModuleList(
            Stage(width, rate, count, n_heads, inner, kernel, head_size, dropout) for rate, width, count, n_heads, inner, kernel in settings
        )
        self.widths = list(widths)
        self.shrink = Downsample(2)
        self.output_size = max(widths)
        self.subsampling = 4
        self.receptive_field = None

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Compute the numbers of encoder frames (B,) of input frames (B,)."""
        return (self.stem.output_lengths(lengths) + 1) // 2

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode features (B, T, F) as (B, T', D), with their lengths (B,)."""
        x, lengths = self.stem(features, lengths)
        x = self.dropout(x)
        outputs = []
        for stage, width in zip(self.stages, self.widths, strict=True):
            x = stage(with_width(x, width), lengths)
            outputs.append(x)
        # the widest output: channels that the last stages have not are those of the latest stage that has
        parts, filled = [], 0
        for output, width in zip(reversed(outputs), reversed(self.widths), strict=True):
            if width > filled:
                parts.append(output[:, :, filled:])
                filled = width
        x, lengths = self.shrink(torch.cat(parts, dim=-1), lengths)
        return x, lengths


def with_width(x: torch.Tensor, width: int) -> torch.Tensor:
    """Map (B, T, D) to (B, T, width): cut off, or filled up with zeros."""
    return x[:, :, :width] if x.shape[2] >= width else F.pad(x, (0, width - x.shape[2]))


class Stage(nn.Module):
    """Layers at one rate, between a downsampling and the way back, beside a bypass.

    Args:
        width: D.
        rate: frames that become one.
        layers: number of layers.
        n_heads: number of attention heads.
        hidden: size of the middle feed-forward module; the first has three quarters, the last five quarters of it.
        kernel_size: kernel size of the depthwise convolutions.
        head_size: size of queries and keys per head.
        dropout: dropout rate in all modules.
    """

    frequencies: torch.Tensor

    def __init__(
        self, width: int, rate: int, layers: int, n_heads: int, hidden: int, kernel_size: int, head_size: int, dropout: float
    ) -> None:
        super().__init__()
        self.rate = rate
        self.down = Downsample(rate) if rate > 1 else None
        self.layers = Stack((ZipformerLayer(width, n_heads, hidden, kernel_size, head_size, dropout) for _ in range(layers)), width)
        self.bypass = Bypass(width) if rate > 1 else None
        self.register_buffer("frequencies", rotary_frequencies(head_size), persistent=False)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Map frames (B, T, D) to frames (B, T, D)."""
        before, frames = x, x.shape[1]
        if self.down is not None:
            x, lengths = self.down(x, lengths)
        mask = frame_mask(lengths, x.shape[1])
        angles = torch.arange(x.shape[1], device=x.device)[:, None] * self.frequencies
        rotation = torch.stack([angles.cos(), angles.sin()]).to(x.dtype)
        x = self.layers(x, mask[:, :, None].to(x.dtype), mask[:, None, None, :], rotation)
        if self.bypass is None:
            return x
        return cast(torch.Tensor, self.bypass(before, x.repeat_interleave(self.rate, dim=1)[:, :frames]))


class Downsample(nn.Module):
    """Neighbouring frames become their weighted mean, with weights that are learnt; frames behind an end have none."""

    def __init__(self, rate: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(rate))

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map (B, T, D) to (B, ceil(T / rate), D)."""
        rate = len(self.weights)
        batch, frames = x.shape[0], (x.shape[1] + rate - 1) // rate
        missing = frames * rate - x.shape[1]
        inside = F.pad(frame_mask(lengths, x.shape[1]).to(x.dtype), (0, missing)).view(batch, frames, rate)
        shares = inside * self.weights.softmax(0)
        shares = shares / shares.sum(-1, keepdim=True).clamp_min(1e-5)
        x = F.pad(x, (0, 0, 0, missing)).view(batch, frames, rate, x.shape[2])
        return (x * shares[..., None]).sum(2), (lengths + rate - 1) // rate


class Bypass(nn.Module):
    """A mixture of what went in and what came out, of each channel: in + scale * (out - in)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """Map (B, T, D), (B, T, D) to (B, T, D)."""
        # not below 0.2, so that what is bypassed still learns (the paper has 0.9 at first, then 0.2)
        return before + self.scale.clamp(0.2, 1.0) * (after - before)


class BiasNorm(nn.Module):
    """x / rms(x - bias) * exp(scale), which keeps some of a vector's length (section 3.3 of the paper)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))
        self.log_scale = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., D) to (..., D)."""
        scale = (x - self.bias).square().mean(-1, keepdim=True).clamp_min(1e-8).rsqrt()
        return x * scale * self.log_scale.exp()


def swoosh_r(x: torch.Tensor) -> torch.Tensor:
    """Compute log(1 + exp(x - 1)) - 0.08 x - 0.313261687 (section 3.4 of the paper)."""
    return F.softplus(x - 1) - 0.08 * x - 0.313261687


def swoosh_l(x: torch.Tensor) -> torch.Tensor:
    """Compute log(1 + exp(x - 4)) - 0.08 x - 0.035 (section 3.4 of the paper)."""
    return F.softplus(x - 4) - 0.08 * x - 0.035


class ZipformerLayer(nn.Module):
    """Twice as deep as a conformer's: the attention weights are computed once and used by three modules."""

    def __init__(self, width: int, n_heads: int, hidden: int, kernel_size: int, head_size: int, dropout: float) -> None:
        super().__init__()
        self.weights = AttentionWeights(width, n_heads, head_size)
        self.ff1 = feed_forward(width, 3 * hidden // 4, dropout)
        self.nonlinear = NonlinearAttention(width, 3 * width // 4)
        self.attention1 = SelfAttention(width, n_heads)
        self.conv1 = ConvModule(width, kernel_size, dropout)
        self.ff2 = feed_forward(width, hidden, dropout)
        self.halfway = Bypass(width)
        self.attention2 = SelfAttention(width, n_heads)
        self.conv2 = ConvModule(width, kernel_size, dropout)
        self.ff3 = feed_forward(width, 5 * hidden // 4, dropout)
        self.norm = BiasNorm(width)
        self.bypass = Bypass(width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, attend: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
        """Map frames (B, T, D) to frames (B, T, D)."""
        before = x
        weights = self.weights(x, attend, rotation)  # (B, H, T, T)
        x = x + self.ff1(x)
        x = x + self.nonlinear(x, weights[:, :1])
        x = x + self.attention1(x, weights)
        x = x + self.conv1(x, mask)
        x = x + self.ff2(x)
        x = self.halfway(before, x)
        x = x + self.attention2(x, weights)
        x = x + self.conv2(x, mask)
        x = x + self.ff3(x)
        return cast(torch.Tensor, self.bypass(before, self.norm(x)))


class SwooshL(nn.Module):
    """The activation `swoosh_l` as a module."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the activation to each element."""
        return swoosh_l(x)


def feed_forward(width: int, hidden: int, dropout: float) -> nn.Sequential:
    """Build a feed-forward module of linear, SwooshL, linear."""
    return nn.Sequential(nn.Linear(width, hidden), SwooshL(), Dropout(dropout), small(nn.Linear(hidden, width)))


def small(linear: nn.Linear) -> nn.Linear:
    """Make the last layer of a module with a tenth of the usual weights: without norms in between, sums would grow too fast."""
    with torch.no_grad():
        linear.weight.mul_(0.1)
        linear.bias.zero_()
    return linear


class AttentionWeights(nn.Module):
    """Attention weights: softmax over keys of rotated queries times rotated keys."""

    def __init__(self, width: int, n_heads: int, head_size: int) -> None:
        super().__init__()
        self.n_heads, self.head_size = n_heads, head_size
        self.qk = nn.Linear(width, 2 * n_heads * head_size)

    def forward(self, x: torch.Tensor, attend: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
        """Map (B, T, D) to (B, H, T, T)."""
        q, k = self.qk(x).unflatten(-1, (2, self.n_heads, self.head_size)).permute(2, 0, 3, 1, 4)
        scores = torch.matmul(rotate(q, rotation), rotate(k, rotation).transpose(2, 3)) / math.sqrt(self.head_size)
        return scores.masked_fill(~attend, torch.finfo(scores.dtype).min).softmax(-1)


class SelfAttention(nn.Module):
    """Values of few channels a head (12 in the paper), mixed by weights that are given."""

    def __init__(self, width: int, n_heads: int, value_size: int = 12) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.values = nn.Linear(width, n_heads * value_size)
        self.out = small(nn.Linear(n_heads * value_size, width))

    def forward(self, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Map (B, T, D), (B, H, T, T) to (B, T, D)."""
        values = self.values(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # (B, H, T, d)
        return cast(torch.Tensor, self.out(torch.matmul(weights, values).transpose(1, 2).flatten(2)))


class NonlinearAttention(nn.Module):
    """Non-linear attention: a gate, the mixing over frames by the first head's weights, and a second gate."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 3 * hidden)
        self.out = small(nn.Linear(hidden, width))

    def forward(self, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Map (B, T, D), (B, 1, T, T) to (B, T, D)."""
        gate, value, after = self.expand(x).chunk(3, dim=-1)
        return cast(torch.Tensor, self.out(torch.matmul(weights[:, 0], value * gate.tanh()) * after))


class ConvModule(nn.Module):
    """Pointwise with gate, depthwise, SwooshR, pointwise; without a norm."""

    def __init__(self, width: int, kernel_size: int, dropout: float) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 2 * width)
        self.depthwise = DepthwiseConv(width, kernel_size, bias=True)
        self.dropout = Dropout(dropout)
        self.project = small(nn.Linear(width, width))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Map frames (B, T, D) to frames (B, T, D); those where the mask (B, T, 1) is 0 influence no others."""
        return cast(torch.Tensor, self.project(self.dropout(swoosh_r(self.depthwise(F.glu(self.expand(x), dim=-1) * mask)))))
