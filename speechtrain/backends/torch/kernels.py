"""Kernels for NVIDIA GPUs, written in Triton, for what PyTorch and cuDNN are slow at there.

Imported only where there is such a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl


@triton.jit
def _values(x, row, at, c, frames, channels):  # type: ignore[no-untyped-def]
    """x[row, at, c] in float32; 0 outside the utterance."""
    seen = ((at >= 0) & (at < frames))[:, None] & (c < channels)[None, :]
    return tl.load(x + (row * frames + at)[:, None] * channels + c[None, :], mask=seen, other=0.0).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _convolve(  # type: ignore[no-untyped-def]
    x,
    weight,
    out,
    frames,
    channels,
    left,
    KERNEL: tl.constexpr,  # noqa: N803
    FLIP: tl.constexpr,  # noqa: N803
    BT: tl.constexpr,  # noqa: N803
    BC: tl.constexpr,  # noqa: N803
):
    """out[b, t, c] = sum over j of weight[j, c] * x[b, t + j - left, c]; with FLIP the kernel is read backwards."""
    blocks = tl.cdiv(frames, BT)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    t = (tl.program_id(0) % blocks) * BT + tl.arange(0, BT)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = c < channels
    total = tl.zeros((BT, BC), dtype=tl.float32)
    for j in range(KERNEL):
        tap = KERNEL - 1 - j if FLIP else j
        factor = tl.load(weight + tap * channels + c, mask=inside, other=0.0).to(tl.float32)
        total += _values(x, row, t + j - left, c, frames, channels) * factor[None, :]
    written = (t < frames)[:, None] & inside[None, :]
    tl.store(out + (row * frames + t)[:, None] * channels + c[None, :], total.to(out.dtype.element_ty), mask=written)


@triton.jit  # type: ignore[untyped-decorator]
def _correlate(  # type: ignore[no-untyped-def]
    x,
    grad,
    out,
    frames,
    channels,
    left,
    KERNEL: tl.constexpr,  # noqa: N803
    BT: tl.constexpr,  # noqa: N803
    BC: tl.constexpr,  # noqa: N803
):
    """out[block, j, c] = sum over t of the block of grad[b, t, c] * x[b, t + j - left, c]."""
    blocks = tl.cdiv(frames, BT)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    t = (tl.program_id(0) % blocks) * BT + tl.arange(0, BT)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = c < channels
    back = _values(grad, row, t, c, frames, channels)
    for j in range(KERNEL):
        value = _values(x, row, t + j - left, c, frames, channels)
        place = (tl.program_id(0).to(tl.int64) * KERNEL + j) * channels
        tl.store(out + place + c, tl.sum(value * back, axis=0), mask=inside)


_FRAMES, _CHANNELS = 64, 64  # of a block


def _run(x: torch.Tensor, weight: torch.Tensor, left: int, *, flip: bool) -> torch.Tensor:
    rows, frames, channels = x.shape
    out = torch.empty_like(x)
    grid = (rows * triton.cdiv(frames, _FRAMES), triton.cdiv(channels, _CHANNELS))
    _convolve[grid](x, weight, out, frames, channels, left, KERNEL=len(weight), FLIP=flip, BT=_FRAMES, BC=_CHANNELS)
    return out


@torch.library.custom_op("speechtrain::depthwise", mutates_args=())
def depthwise(x: torch.Tensor, weight: torch.Tensor, left: int) -> torch.Tensor:
    """Convolve each channel over time on its own, keeping the number of frames.

    Args:
        x: (B, T, D), contiguous.
        weight: (K, D), contiguous.
        left: frames that an output frame looks back; it looks K - 1 - left ahead.
    """
    return _run(x, weight, left, flip=False)


@torch.library.custom_op("speechtrain::depthwise_backward", mutates_args=())
def _depthwise_backward(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, left: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the gradients of input and weight."""
    grad = grad.contiguous()
    rows, frames, channels = x.shape
    blocks = rows * triton.cdiv(frames, _FRAMES)
    sums = x.new_empty(blocks, len(weight), channels, dtype=torch.float32)
    grid = (blocks, triton.cdiv(channels, _CHANNELS))
    _correlate[grid](x, grad, sums, frames, channels, left, KERNEL=len(weight), BT=_FRAMES, BC=_CHANNELS)
    return _run(grad, weight, len(weight) - 1 - left, flip=True), sums.sum(0).to(weight.dtype)


@depthwise.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, left: int) -> torch.Tensor:  # noqa: ARG001
    return torch.empty_like(x)


@_depthwise_backward.register_fake
def _(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, left: int) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ARG001
    return torch.empty_like(x), torch.empty_like(weight)


def _save_for_backward(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor, int], output: torch.Tensor) -> None:  # noqa: ARG001
    x, weight, ctx.left = inputs
    ctx.save_for_backward(x, weight)


def _back(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
    x, weight = ctx.saved_tensors
    return *_depthwise_backward(grad, x, weight, ctx.left), None


depthwise.register_autograd(_back, setup_context=_save_for_backward)
