"""Keras optimizers with the arithmetic and the arguments of PyTorch's, so that one config means one thing.

They differ from Keras' own where those differ from PyTorch's: epsilon is added to the corrected root (Adam), weight decay outside AdamW
is added to the gradient, momentum does not hold the learning rate (SGD), and epsilon is outside of the root (RMSprop).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from speechtrain.backends.keras.internals import batches_counted, index_of


class _Optimizer(keras.optimizers.Optimizer):  # type: ignore[misc]
    slots: tuple[str, ...] = ()

    def build(self, variables: Sequence[Any]) -> None:
        """Make one slot variable of each kind for each weight."""
        if self.built:
            return
        super().build(variables)
        self._slots = {name: self.add_optimizer_variables(variables, name) for name in self.slots}

    def slot(self, name: str, variable: Any) -> Any:
        """Return the slot variable of a weight."""
        return self._slots[name][index_of(self, variable)]

    def moved(self, slot: Any, value: Any, rate: float) -> Any:
        """Move a running mean towards a value; returns the new mean."""
        mean = rate * slot + (1 - rate) * value
        self.assign(slot, mean)
        return mean


class AdamW(_Optimizer):
    """Steps as Adam with decoupled weight decay does (Loshchilov and Hutter 2019).

    Args:
        lr: learning rate.
        betas: decay of the means of the gradient and of its square.
        eps: added to the root.
        weight_decay: share of a weight that is taken off it at each step, times `lr`.
        fused: an option of PyTorch's optimizer, ignored here.
    """

    slots = ("mean", "square")

    def __init__(
        self,
        lr: float = 1e-3,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        fused: bool = True,  # noqa: ARG002
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate=lr, weight_decay=weight_decay or None, **kwargs)
        self.betas = (betas[0], betas[1])
        self.eps = eps
        self.added_decay = 0.0

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one weight from its gradient."""
        gradient = ops.cast(gradient, variable.dtype) + self.added_decay * variable
        rate = ops.cast(learning_rate, variable.dtype)
        step = ops.cast(self.iterations + 1, variable.dtype)
        first, second = self.betas
        mean = self.moved(self.slot("mean", variable), gradient, first)
        square = self.moved(self.slot("square", variable), ops.square(gradient), second)
        corrected = 1 - ops.power(ops.cast(first, variable.dtype), step), 1 - ops.power(ops.cast(second, variable.dtype), step)
        root = ops.sqrt(square) / ops.sqrt(corrected[1]) + self.eps
        self.assign_sub(variable, rate / corrected[0] * mean / root)


class Adam(AdamW):
    """Steps as Adam does (Kingma and Ba 2015); weight decay is added to the gradient."""

    def __init__(
        self,
        lr: float = 1e-3,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        fused: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(lr, betas, eps, 0.0, fused, **kwargs)
        self.added_decay = weight_decay


class SGD(_Optimizer):
    """Descends along the gradient; momentum is a sum of gradients, not of steps (Sutskever et al. 2013, as PyTorch writes it)."""

    slots = ("momentum",)

    def __init__(self, lr: float = 1e-3, momentum: float = 0.0, weight_decay: float = 0.0, nesterov: bool = False, **kwargs: Any) -> None:
        super().__init__(learning_rate=lr, **kwargs)
        self.momentum = momentum
        self.added_decay = weight_decay
        self.nesterov = nesterov

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one weight from its gradient."""
        gradient = ops.cast(gradient, variable.dtype) + self.added_decay * variable
        slot = self.slot("momentum", variable)
        total = self.momentum * slot + gradient
        self.assign(slot, total)
        step = gradient + self.momentum * total if self.nesterov else total
        self.assign_sub(variable, ops.cast(learning_rate, variable.dtype) * step)


class RMSprop(_Optimizer):
    """Divides each gradient by the root of its running mean square (Hinton 2012)."""

    slots = ("square", "momentum")

    def __init__(
        self, lr: float = 1e-2, alpha: float = 0.99, eps: float = 1e-8, weight_decay: float = 0.0, momentum: float = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(learning_rate=lr, **kwargs)
        self.alpha = alpha
        self.eps = eps
        self.added_decay = weight_decay
        self.momentum = momentum

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one weight from its gradient."""
        gradient = ops.cast(gradient, variable.dtype) + self.added_decay * variable
        square = self.moved(self.slot("square", variable), ops.square(gradient), self.alpha)
        step = gradient / (ops.sqrt(square) + self.eps)
        slot = self.slot("momentum", variable)
        total = self.momentum * slot + step
        self.assign(slot, total)
        self.assign_sub(variable, ops.cast(learning_rate, variable.dtype) * total)


class _Measured:
    """Clips as PyTorch does, and adds up the norm before clipping; a mixin for the optimizer that the config names."""

    clip_value: float | None
    clip_by_norm: bool
    norm_sum: Any
    norm_count: Any

    def build(self, variables: Sequence[Any]) -> None:
        """Make the sum and the count of norms variables of the optimizer."""
        if self.built:  # type: ignore[attr-defined]
            return
        super().build(variables)  # type: ignore[misc]
        self.norm_sum = self.add_variable((), initializer="zeros", dtype="float32", name="norm_sum")  # type: ignore[attr-defined]
        self.norm_count = self.add_variable((), initializer="zeros", dtype="float32", name="norm_count")  # type: ignore[attr-defined]

    def _clip_gradients(self, gradients: Sequence[Any]) -> list[Any]:
        norm = ops.sqrt(sum(ops.sum(ops.square(ops.cast(gradient, "float32"))) for gradient in gradients if gradient is not None))
        self.norm_sum.assign_add(norm)
        self.norm_count.assign_add(1.0)
        limit = self.clip_value
        if limit is None:
            return list(gradients)
        if not self.clip_by_norm:
            return [None if gradient is None else ops.clip(gradient, -limit, limit) for gradient in gradients]
        factor = ops.minimum(limit / (norm + 1e-6), 1.0)
        return [None if gradient is None else gradient * ops.cast(factor, gradient.dtype) for gradient in gradients]


def measured(optimizer: Any, clip_value: float | None, *, by_norm: bool, accumulate: int) -> Any:
    """Make an optimizer that is not built yet clip gradients, measure their norm and accumulate them; returns it.

    Args:
        optimizer: one of Keras.
        clip_value: limit of the norm of all gradients together, or of each value; None: there is none.
        by_norm: whether the norm is limited, not each value.
        accumulate: batches a step, of whose gradients the mean counts.
    """
    kind = type(optimizer)
    optimizer.__class__ = type(kind.__name__, (_Measured, kind), {})
    optimizer.clip_value = clip_value
    optimizer.clip_by_norm = by_norm
    if accumulate > 1:
        optimizer.gradient_accumulation_steps = accumulate
    return optimizer


def take_norm(optimizer: Any) -> float:
    """Return the mean norm since the last call, and start a new mean."""
    total, count = float(optimizer.norm_sum.numpy()), float(optimizer.norm_count.numpy())
    optimizer.norm_sum.assign(0.0)
    optimizer.norm_count.assign(0.0)
    return total / max(1.0, count)


def flush(optimizer: Any, variables: Sequence[Any]) -> None:
    """Make the step of an incomplete accumulation at the end of an epoch, as Lightning does: its sum counts as if it were complete."""
    size = optimizer.gradient_accumulation_steps
    left = batches_counted(optimizer) % size if size else 0
    if not left:
        return
    # completed by batches without any gradient
    zeros = [ops.zeros(variable.shape, dtype=variable.dtype) for variable in variables]
    for _ in range(size - left):
        optimizer.apply(zeros, variables)
