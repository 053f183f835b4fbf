"""Attention with rotary positions on a CPU: rotation in place, and a kernel of matrix products for processors with matrix units."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from speechtrain.backends.torch.layers import blocks


def rotary_frequencies(head_size: int) -> torch.Tensor:
    """Return the angles a frame (d/2,) of rotary positions (Su et al. 2021) for heads of d values.

    They are computed on the CPU also where a model is only outlined: on PyTorch's device without memory that imports its compiler.
    """
    return 10000.0 ** (-torch.arange(0, head_size, 2, device="cpu") / head_size)


def rotate(x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Apply rotary positions (Su et al. 2021): turn the pairs (i, i + d/2) of (B, H, T', d) by their frame's angles.

    Args:
        x: queries or keys.
        rotation: cosines and sines (2, T', d/2).
    """
    if x.device.type == "cpu" and torch.is_grad_enabled() and x.requires_grad and not torch.compiler.is_compiling():
        out: torch.Tensor = _Rotate.apply(x, rotation)  # type: ignore[no-untyped-call]
        return out
    first, second = x.chunk(2, dim=-1)
    cos, sin = rotation[0], rotation[1]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class _Rotate(torch.autograd.Function):
    """The gradient turns back; both write where the result is wanted, in half the time."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rotation)
        return _turned(x, rotation[0], rotation[1])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (rotation,) = ctx.saved_tensors
        return _turned(grads[0], rotation[0], -rotation[1]), None


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    out = torch.empty(x.shape, dtype=x.dtype)
    first, second = x.chunk(2, dim=-1)
    left, right = out.chunk(2, dim=-1)
    torch.mul(first, cos, out=left).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=right).addcmul_(first, sin)
    return out


def attends_in_float32(device: torch.device) -> bool:
    """Return whether to compute attention in float32 under autocast, because the gradient of the CPU's kernel for bfloat16 is slower."""
    return device.type == "cpu" and torch.is_autocast_enabled("cpu")


@contextmanager
def attention_precision(device: torch.device) -> Iterator[bool]:
    """Turn autocast off in a block of attention that is to be computed in float32; yield whether it was."""
    wide = attends_in_float32(device)
    with torch.autocast("cpu", enabled=False) if wide else nullcontext():
        yield wide


_MOST_FRAMES = 512  # the weights that are kept for the gradient, 2 bytes for each pair of frames and head, take the place of what they save
_MOST_SCORE = 40.0  # exp(40) times a gradient of 1e-20 is still a normal number of bfloat16
_MASKED = -30000.0
_TILE = 32  # rows of so many values lie where the units read fastest
_HEADS_AT_ONCE = 16  # 2 MB of weights of 250 frames stay in the cache


def attend_in_bfloat16(
    x: torch.Tensor, qkv: nn.Linear, n_heads: int, attend: torch.Tensor | None, rotation: torch.Tensor
) -> torch.Tensor | None:
    """Apply rotary attention (B, T', D) -> (B, T', D) in training under autocast on a CPU with matrix units for bfloat16.

    The weights are kept for the gradient, which PyTorch's kernel computes again. Softmax needs no maximum where lengths of queries and
    keys say that no score is large (Cauchy and Schwarz); its sum is a column of ones beside the values, and its gradient's one more
    column of the same product. It takes two thirds of the time of PyTorch's kernel in float32, rotation included.

    Args:
        x: normed input.
        qkv: to queries, keys and values of all heads.
        n_heads: H.
        attend: (B, 1, 1, T'), true where a key may be looked at; None: all.
        rotation: cosines and sines (2, T', d/2).

    Returns:
        None where another way is better: somewhere else than in such a training, in long utterances, with masks of another form, and
        where scores may be large.
    """
    frames, head_size = x.shape[1], x.shape[2] // n_heads
    if (
        x.device.type != "cpu"
        or torch.compiler.is_compiling()
        or not (torch.is_grad_enabled() and torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16)
        or not has_matrix_units()
        or frames > _MOST_FRAMES
        or (attend is not None and attend.shape[2] != 1)
    ):
        return None
    # pairs (2i, 2i + 1) instead of (i, i + d/2), in queries and keys alike, are complex numbers
    weight, bias = (_paired(each, n_heads) for each in (qkv.weight, qkv.bias))
    projected = F.linear(x, weight, bias).view(x.shape[0], frames, 3, n_heads, head_size)
    turns = torch.complex(rotation[0].float(), rotation[1].float())[:, None, None].expand(-1, 2, n_heads, -1).contiguous()
    with torch.no_grad():
        rotated = _turned_pairs(projected[:, :, :2].float(), turns)
        longest = torch.linalg.vector_norm(rotated, dim=-1).amax((0, 1, 3))
        if float(longest.prod()) > _MOST_SCORE * head_size**0.5:
            return None
    out: torch.Tensor = _Attention.apply(projected, rotated.to(torch.bfloat16), attend, turns)  # type: ignore[no-untyped-call]
    return out


def has_matrix_units() -> bool:
    """Return whether this processor multiplies matrices of bfloat16 in units of their own (Intel's AMX)."""
    asked: Any = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(asked is not None and asked())


def _paired(weight: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Return the rows (3 D, ...) of queries, keys and values with the halves of each query and key in turn."""
    parts = weight.view(3, n_heads, 2, weight.shape[0] // (6 * n_heads), *weight.shape[1:])
    return torch.cat([parts[:2].transpose(2, 3).reshape(-1, *weight.shape[1:]), parts[2].reshape(-1, *weight.shape[1:])])


def _turned_pairs(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Return the queries and keys (B, T', 2, H, d) turned in place by complex numbers (T', 2, H, d/2)."""
    torch.view_as_complex(x.view(*x.shape[:-1], -1, 2)).mul_(turns)
    return x


class _Attention(torch.autograd.Function):
    """Softmax of queries times keys, times values."""

    @staticmethod
    def forward(ctx: Any, projected: torch.Tensor, rotated: torch.Tensor, attend: torch.Tensor | None, turns: torch.Tensor) -> torch.Tensor:
        batch, frames, _, heads, size = projected.shape
        padded = -(-frames // _TILE) * _TILE
        # a column beside the queries and keys is the mask, one beside the values the sum
        q, k, v = projected.new_zeros(3, batch, heads, padded, size + 1)
        for each, values in ((q, rotated[:, :, 0]), (k, rotated[:, :, 1]), (v, projected[:, :, 2])):
            each[:, :, :frames, :size].copy_(values.transpose(1, 2))
            each[..., size] = 1
        k[..., size] = _MASKED
        k[:, :, :frames, size] = 0 if attend is None else torch.where(attend[:, 0], 0, _MASKED)
        q, k, v = (each.view(-1, padded, size + 1) for each in (q, k, v))
        weights, sums = q.new_empty(len(q), padded, padded), torch.empty_like(v)
        for part in blocks(len(q), _HEADS_AT_ONCE):
            block = weights[part]
            torch.baddbmm(block, q[part], k[part].transpose(1, 2), beta=0, alpha=size**-0.5, out=block)
            torch.bmm(block.exp_(), v[part], out=sums[part])
        wide = sums.float()
        inverse = wide[..., size:].reciprocal()
        out = projected.new_empty(batch, frames, heads, size)
        out.copy_(wide.mul_(inverse).view(batch, heads, padded, size + 1)[:, :, :frames, :size].transpose(1, 2))
        ctx.save_for_backward(q, k, v, weights, out, inverse, turns)
        return out.view(batch, frames, -1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        q, k, v, weights, out, inverse, turns = ctx.saved_tensors
        batch, frames, heads, size = out.shape
        grad = grads[0].view(out.shape)
        # to scores: weights * (grad . values - grad . out), the difference as one product
        padded = q.shape[1]
        wide = grad.new_zeros(batch, heads, padded, size + 1, dtype=torch.float32)
        wide[:, :, :frames, :size].copy_(grad.transpose(1, 2))
        wide[:, :, :frames, size] = (grad.float() * out).sum(-1).neg_().transpose(1, 2)
        back = wide.view(v.shape).mul_(inverse).to(v.dtype)
        to_qk, to_v = out.new_empty(2, len(q), padded, size), out.new_empty(len(q), padded, size)
        to_scores = out.new_empty(min(_HEADS_AT_ONCE, len(q)), padded, padded)
        for part in blocks(len(q), _HEADS_AT_ONCE):
            block = to_scores[: len(q[part])]
            torch.bmm(weights[part].transpose(1, 2), back[part][..., :size], out=to_v[part])
            torch.bmm(back[part], v[part].transpose(1, 2), out=block)
            block.mul_(weights[part])
            torch.bmm(block, k[part][..., :size], out=to_qk[0, part])
            torch.bmm(block.transpose(1, 2), q[part][..., :size], out=to_qk[1, part])
        gradient = out.new_empty(batch, frames, 3, heads, size)
        rotated = to_qk.view(2, batch, heads, padded, size)[:, :, :, :frames].permute(1, 3, 0, 2, 4).contiguous().float()
        gradient[:, :, :2].copy_(_turned_pairs(rotated, turns.conj() * size**-0.5))
        gradient[:, :, 2].copy_(to_v.view(batch, heads, padded, size)[:, :, :frames].transpose(1, 2))
        return gradient, None, None, None
