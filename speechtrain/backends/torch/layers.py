"""Layers that are faster here than PyTorch's own on a CPU, and give the same numbers."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

_HAS_TRITON = importlib.util.find_spec("triton") is not None


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014) whose masks are bytes of random words: drawn eight at a time, they cost a fifth.

    The probability is rounded to 1/256, and what is left is scaled by exactly what was rounded to. Off the CPU, while compiling, and
    for probabilities that round to 0, it is PyTorch's own.

    Args:
        p: probability that a value becomes 0.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.threshold = min(255, round(256 * p))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply dropout to values of any shape."""
        if not self.training or not self.p:
            return x
        if x.device.type != "cpu" or not self.threshold or torch.compiler.is_compiling():
            return F.dropout(x, self.p)
        out: torch.Tensor = _Bytewise.apply(x, self.threshold)  # type: ignore[no-untyped-call]
        return out

    def extra_repr(self) -> str:
        """Show the probability in the printed model."""
        return f"p={self.p}"


class _Bytewise(torch.autograd.Function):
    """Keeps one byte a value for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, threshold: int) -> torch.Tensor:
        drawn = _draw(x.shape)
        ctx.save_for_backward(drawn)
        ctx.threshold = threshold
        return _zero(x * _scale(threshold), drawn, threshold)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _zero(grads[0] * _scale(ctx.threshold), ctx.saved_tensors[0], ctx.threshold), None


def _draw(shape: torch.Size) -> torch.Tensor:
    """Draw random bytes of a shape, one for each value."""
    words = torch.empty(-(-shape.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    return words.view(torch.uint8)[: shape.numel()].view(shape)


def _scale(threshold: int) -> float:
    """Return the factor by which dropout scales the values it keeps."""
    return 256 / (256 - threshold)


def _zero(x: torch.Tensor, drawn: torch.Tensor | None, threshold: int) -> torch.Tensor:
    """Apply dropout in place, without its scale."""
    return _masked(x, _mask(x, drawn, threshold))


def _mask(like: torch.Tensor, drawn: torch.Tensor | None, threshold: int) -> torch.Tensor | None:
    """Return the mask that `_masked` applies to values of such a type."""
    if drawn is None:
        return None
    if like.dtype != torch.bfloat16:
        # compared into floats at once: by way of booleans it takes ten times as long
        return torch.ge(drawn, threshold, out=torch.empty_like(like))
    # all bits of a value or none: a fifth of the time that multiplying takes; the sign widens them
    return torch.ge(drawn, threshold, out=torch.empty_like(drawn)).view(torch.int8).neg_().to(torch.int16)


def _masked(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Put a mask on x, in place."""
    if mask is None:
        return x
    if x.dtype != torch.bfloat16:
        return x.mul_(mask)
    x.view(torch.int16).bitwise_and_(mask)
    return x


class DepthwiseConv(nn.Conv1d):
    """A convolution over time, of each channel alone: (B, T, D) -> (B, T', D).

    On a CPU it is computed as one over a picture one pixel high with channels last, where oneDNN has kernels that are twenty times as fast
    forth and four times with the gradient, and in training the gradient to long kernels by matrix products, which take half of that
    again; on an NVIDIA GPU by kernels of our own.

    Args:
        channels: D.
        kernel_size: kernel size in frames.
        stride: stride in frames.
        dilation: dilation in frames.
        causal: look at no later frames; else the kernel is centred.
        bias: add a bias.
    """

    def __init__(
        self, channels: int, kernel_size: int, *, stride: int = 1, dilation: int = 1, causal: bool = False, bias: bool = False
    ) -> None:
        super().__init__(channels, channels, kernel_size, stride=stride, dilation=dilation, groups=channels, bias=bias)
        context = dilation * (kernel_size - 1)
        self.before, self.beside = (context, 0) if causal else (0, context // 2)
        self._is_plain = stride == dilation == 1 and (causal or kernel_size % 2 == 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, T, D) to (B, T', D)."""
        if x.device.type == "cuda" and x.dtype != torch.float64 and self._is_plain and _HAS_TRITON:
            from speechtrain.backends.torch import kernels  # importing Triton takes a second

            out: torch.Tensor = kernels.depthwise(x.contiguous(), self.weight[:, 0].t().contiguous(), self.before or self.beside)
            return out if self.bias is None else out + self.bias.to(out.dtype)
        shape = {"before": self.before or self.beside, "after": self.beside, "stride": self.stride[0], "dilation": self.dilation[0]}
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return _depthwise(x, self.weight, self.bias, **shape)
        if self._is_plain and self.kernel_size[0] >= _LONG and torch.is_grad_enabled() and self.training:
            output: torch.Tensor = _Depthwise.apply(x, self.weight, shape["before"])  # type: ignore[no-untyped-call]
            return output if self.bias is None else output + self.bias.to(output.dtype)
        return _depthwise_in_float32(x, self.weight, self.bias, **shape)


def _depthwise(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, before: int, after: int, stride: int = 1, dilation: int = 1
) -> torch.Tensor:
    """Convolve (B, T, D) by (D, 1, K), with so many frames of zeros before and after it."""
    both = min(before, after)
    if before != after:
        x = F.pad(x, (0, 0, before - both, after - both))
    picture, kernels = x.transpose(1, 2).unsqueeze(2), weight.unsqueeze(2)
    out = F.conv2d(picture, kernels, bias, stride=(1, stride), padding=(0, both), dilation=(1, dilation), groups=len(weight))
    return out.squeeze(2).transpose(1, 2)


def _depthwise_in_float32(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, **shape: int) -> torch.Tensor:
    # in bfloat16 oneDNN takes twice as long, and hangs with kernels of 15 and more for 16 channels (PyTorch 2.11)
    wide = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast("cpu", enabled=False):
        return _depthwise(x.to(wide), weight.to(wide), None if bias is None else bias.to(wide), **shape).to(x.dtype)


_LONG = 15  # frames of a kernel from which on matrix products are faster
_BLOCK = 16  # frames of a gradient in one product


class _Depthwise(torch.autograd.Function):
    """A convolution of (B, T, D), each channel alone, by (D, 1, K), in float32; the kernel begins `before` frames before its frame."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, before: int) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.before = before
        return _depthwise_in_float32(x, weight, before=before, after=weight.shape[-1] - 1 - before)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor, None]:
        x, weight = ctx.saved_tensors
        size = weight.shape[-1]
        after = size - 1 - ctx.before
        to_x = _depthwise_in_float32(grads[0], weight.flip(-1), before=after, after=ctx.before) if ctx.needs_input_grad[0] else None
        # products of each block of the gradient with the frames around it, all shifts at once, of which K diagonals are needed
        batch, frames, channels = x.shape
        length = -(-frames // _BLOCK) * _BLOCK
        around = _BLOCK + size - 1
        late = x.new_zeros(channels, batch, length)
        late[..., :frames] = grads[0].permute(2, 0, 1)
        wide = x.new_zeros(channels, batch, length + size - 1)
        wide[..., ctx.before : ctx.before + frames] = x.permute(2, 0, 1)
        windows = wide.unfold(2, around, _BLOCK).reshape(channels, -1, around)
        products = torch.bmm(late.view(channels, -1, _BLOCK).transpose(1, 2), windows)
        diagonals = products.as_strided((channels, _BLOCK, size), (_BLOCK * around, around + 1, 1))
        to_weight = diagonals.sum(1, dtype=torch.promote_types(x.dtype, torch.float32))
        return to_x, to_weight.unsqueeze(1).to(weight.dtype), None


class FeedForward(nn.Sequential):
    """x + factor * (linear, SiLU, dropout, linear, dropout of the normed x), the feed-forward module of a conformer (Gulati et al. 2020).

    In training on a CPU it is computed some rows at a time, so that what lies between the matrix products stays in the cache, and the
    gradient computes SiLU and dropout again: hidden values are kept once instead of twice, and it takes a twentieth less time. In
    bfloat16, where they are half as large and SiLU takes longer, they are kept twice.

    Args:
        width: D.
        hidden: size between the two linear layers.
        dropout: behind each of them.
        factor: factor of the term that is added.
    """

    def __init__(self, width: int, hidden: int, dropout: float, factor: float = 0.5) -> None:
        super().__init__(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.SiLU(), Dropout(dropout), nn.Linear(hidden, width), Dropout(dropout)
        )
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map frames (B, T', D) to frames (B, T', D)."""
        dropout: Any = self[3]
        drawn_exactly = dropout.p > 0 and not dropout.threshold
        if x.device.type != "cpu" or not self.training or drawn_exactly or torch.compiler.is_compiling():
            return torch.add(x, super().forward(x), alpha=self.factor)  # type: ignore[no-untyped-call]
        normed: torch.Tensor = self[0](x)
        weights: list[Any] = [self[1].weight, self[1].bias, self[4].weight, self[4].bias]
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            normed, weights = normed.to(dtype), [weight.to(dtype) for weight in weights]
        with torch.autocast("cpu", enabled=False):
            rows: torch.Tensor = _FeedForward.apply(  # type: ignore[no-untyped-call]
                x.flatten(0, -2), normed.flatten(0, -2), *weights, dropout.threshold, self.factor
            )
        return rows.view(x.shape)


_ROWS = 512  # a block of 512 x 576 float32 values is 1.1 MiB


class _FeedForward(torch.autograd.Function):
    """See `FeedForward`; rows (N, D) of any utterances."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        normed: torch.Tensor,
        weight1: torch.Tensor,
        bias1: torch.Tensor,
        weight2: torch.Tensor,
        bias2: torch.Tensor,
        threshold: int,
        factor: float,
    ) -> torch.Tensor:
        inner = normed.new_empty(len(x), len(weight1))
        active = torch.empty_like(inner) if inner.dtype == torch.bfloat16 else None
        out = torch.empty_like(x)
        drawn = [_draw(torch.Size([len(x), len(weight)])) if threshold else None for weight in (weight1, weight2)]
        kept = _scale(threshold)
        for rows in blocks(len(x), _ROWS):
            block = torch.addmm(bias1, normed[rows], weight1.t(), out=inner[rows])
            block = F.silu(block) if active is None else torch.ops.aten.silu.out(block, out=active[rows])
            block = _zero(block, _part(drawn[0], rows), threshold)
            block = _zero(torch.addmm(bias2, block, weight2.t(), alpha=kept), _part(drawn[1], rows), threshold)
            torch.add(x[rows], block, alpha=factor * kept, out=out[rows])
        ctx.save_for_backward(normed, inner, active, weight1, weight2, *drawn)
        ctx.threshold, ctx.factor = threshold, factor
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        normed, inner, kept_active, weight1, weight2, drawn1, drawn2 = ctx.saved_tensors
        grad = grads[0]
        outer, hidden, to_normed = torch.empty_like(normed), torch.empty_like(inner), torch.empty_like(normed)
        active = torch.empty_like(inner) if kept_active is None else kept_active
        kept = _scale(ctx.threshold)
        share = ctx.factor * kept
        scaled = weight2 * (share * kept)  # so that no mask has to be multiplied by what dropout scales with
        for rows in blocks(len(grad), _ROWS):
            back = _zero(outer[rows].copy_(grad[rows]), _part(drawn2, rows), ctx.threshold)
            mask = _mask(active[rows], _part(drawn1, rows), ctx.threshold)
            if kept_active is None:
                _masked(torch.ops.aten.silu.out(inner[rows], out=active[rows]), mask)
            back = _masked(back @ scaled, mask)
            back = torch.ops.aten.silu_backward.grad_input(back, inner[rows], grad_input=hidden[rows])
            torch.mm(back, weight1, out=to_normed[rows])
        to_weight2 = (outer.t() @ active).mul_(share * kept)
        return grad, to_normed, (normed.t() @ hidden).t(), hidden.sum(0), to_weight2, outer.sum(0).mul_(share), None, None


def blocks(count: int, size: int) -> list[slice]:
    """Yield slices of so many rows, `size` at a time."""
    return [slice(begin, begin + size) for begin in range(0, count, size)]


def _part(drawn: torch.Tensor | None, rows: slice) -> torch.Tensor | None:
    return None if drawn is None else drawn[rows]


def masked_relu(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Compute relu(x * mask) in place of x; the mask is 0 or 1."""
    if torch.is_grad_enabled() and x.requires_grad and not torch.compiler.is_compiling():
        out: torch.Tensor = _MaskedRelu.apply(x, mask)  # type: ignore[no-untyped-call]
        return out
    return torch.relu_(x.mul_(mask))


class _MaskedRelu(torch.autograd.Function):
    """What is masked is 0 afterwards, so that the gradient needs no mask of its own."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        out = torch.relu_(x.mul_(mask))
        ctx.mark_dirty(x)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (out,) = ctx.saved_tensors
        gradient = grads[0] if grads[0].stride() == out.stride() else torch.empty_like(out).copy_(grads[0])
        return torch.ops.aten.threshold_backward(gradient, out, 0), None


def contiguous_gradient(x: torch.Tensor) -> torch.Tensor:
    """X itself; its gradient is laid out as x is.

    Behind a transposition the gradient comes transposed, and every operation before it that meets another layout takes several times as
    long: a fifth of a tdnn's step.
    """
    if not x.requires_grad or torch.compiler.is_compiling():
        return x
    output: torch.Tensor = _ContiguousGradient.apply(x)  # type: ignore[no-untyped-call]
    return output


class _ContiguousGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        return grads[0].contiguous()


def convolve_one_channel(x: torch.Tensor, conv: nn.Conv2d) -> torch.Tensor:
    """Convolve pictures with one channel: (B, 1, T, F) -> (B, C, T', F').

    On a CPU it is one product of all patches with the kernels. It gives channels last, which oneDNN does not where one channel leaves the
    layout open, and the gradient of a convolution that follows takes a third of the time with them.
    """
    tracing: Any = torch.jit
    exported = torch.compiler.is_compiling() or tracing.is_tracing() or torch.onnx.is_in_onnx_export()
    if x.device.type != "cpu" or x.requires_grad or exported:
        output: torch.Tensor = conv(x)
        return output
    assert conv.bias is not None
    assert not isinstance(conv.padding, str)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    with torch.autocast("cpu", enabled=False):
        rows, columns = conv.kernel_size
        above, left = conv.padding
        padded = F.pad(x[:, 0].to(dtype), (left, left, above, above))
        windows = padded.unfold(1, rows, conv.stride[0]).unfold(2, columns, conv.stride[1])  # (B, T', F', rows, columns)
        patches = windows.new_ones(*windows.shape[:3], rows * columns + 1)  # with a column of ones for the bias
        for row in range(rows):
            for column in range(columns):
                patches[..., row * columns + column].copy_(windows[..., row, column])
        kernels = torch.cat([conv.weight.flatten(1), conv.bias[:, None]], dim=1).to(dtype)
        out: torch.Tensor = _Patches.apply(patches, kernels)  # type: ignore[no-untyped-call]
        return out


class _Patches(torch.autograd.Function):
    """Patches (B, T', F', P) times kernels (C, P): (B, C, T', F').

    The gradient is a long sum, which takes half the time with its short side in front.
    """

    @staticmethod
    def forward(ctx: Any, patches: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(patches)
        batch, frames, bands, _ = patches.shape
        out = torch.empty(batch, len(kernels), frames, bands, dtype=patches.dtype, memory_format=torch.channels_last)
        torch.mm(patches.flatten(0, 2), kernels.t(), out=out.permute(0, 2, 3, 1).view(-1, len(kernels)))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[None, torch.Tensor]:
        (patches,) = ctx.saved_tensors
        return None, (patches.flatten(0, 2).t() @ grads[0].permute(0, 2, 3, 1).flatten(0, 2)).t()
