"""Learning-rate schedules as plain arithmetic, so that every backend follows the same numbers.

A schedule gives the factor that the optimizer's learning rate is multiplied with, for each optimizer step.
"""

from __future__ import annotations

import math
from typing import Any

from speechtrain.errors import ConfigError, Problem


class Schedule:
    """Warms up linearly, then goes on with `after_warmup`.

    Args:
        warmup_ratio: share of the run that the warm-up takes.
        warmup_steps: optimizer steps of the warm-up; replaces `warmup_ratio`.
    """

    def __init__(self, warmup_ratio: float = 0.0, warmup_steps: int | None = None) -> None:
        self.warmup_ratio = warmup_ratio
        self.warmup_steps = warmup_steps
        self._warmup = 0
        self._total = 1
        self._epoch_steps = 1

    def begin(self, total_steps: int, epoch_steps: int) -> None:
        """Set the length of the run and of an epoch, in optimizer steps.

        Raises:
            ConfigError: the warm-up is longer than the run.
        """
        self._total = max(1, total_steps)
        self._epoch_steps = max(1, epoch_steps)
        self._warmup = round(self.warmup_ratio * self._total) if self.warmup_steps is None else self.warmup_steps
        if self._warmup > self._total:
            message = f"is {self._warmup}, longer than the run of {self._total} steps"
            raise ConfigError([Problem("scheduler.warmup_steps", message, "shorten it, or raise trainer.epochs or trainer.max_steps")])

    def factor(self, step: int) -> float:
        """Return the factor of a step, counted from 0."""
        if step < self._warmup:
            return (step + 1) / (self._warmup + 1)
        return self.after_warmup(step)

    def after_warmup(self, step: int) -> float:  # noqa: ARG002
        """Return the factor of a step after the warm-up."""
        return 1.0

    def epoch_end(self, value: float | None, smaller_is_better: bool) -> None:
        """Receive the objective at the end of an epoch (None: it was not measured)."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""


class Constant(Schedule):
    """Keeps the full learning rate after the warm-up."""


class WarmupCosine(Schedule):
    """Falls along half a cosine from 1 to `min_factor` (Loshchilov and Hutter 2017, without restarts)."""

    def __init__(self, min_factor: float = 0.0, warmup_ratio: float = 0.0, warmup_steps: int | None = None) -> None:
        super().__init__(warmup_ratio, warmup_steps)
        self.min_factor = min_factor

    def after_warmup(self, step: int) -> float:
        """Return the factor of a step after the warm-up."""
        return self.fallen((step - self._warmup) / max(1, self._total - self._warmup))

    def fallen(self, progress: float) -> float:
        """Return the factor behind a share of the way down, which ends at 1."""
        return self.min_factor + (1 - self.min_factor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class Cosine(WarmupCosine):
    """Falls along half a cosine from 1 to `min_factor` in steps of an epoch, as PyTorch's `CosineAnnealingLR` does.

    The epoch in which the warm-up ends counts as the first.
    """

    def after_warmup(self, step: int) -> float:
        """Return the factor of a step after the warm-up."""
        first = self._warmup // self._epoch_steps
        epochs = math.ceil(self._total / self._epoch_steps) - first
        return self.fallen((step // self._epoch_steps - first) / max(1, epochs))


class WarmupStableDecay(Schedule):
    """Keeps the full rate, and falls to `min_factor` in the last part of the run, by one minus a root (Hägele et al. 2024).

    With `warmup_steps`, what comes before the fall does not depend on the length of the run, so that a checkpoint of it is one of a longer
    run as well.

    Args:
        decay_ratio: share of the run in which the rate falls.
        min_factor: factor at the end.
        warmup_ratio: share of the run that the warm-up takes.
        warmup_steps: optimizer steps of the warm-up; replaces `warmup_ratio`.
    """

    def __init__(self, decay_ratio: float, min_factor: float = 0.0, warmup_ratio: float = 0.0, warmup_steps: int | None = None) -> None:
        super().__init__(warmup_ratio, warmup_steps)
        self.decay_ratio = decay_ratio
        self.min_factor = min_factor

    def after_warmup(self, step: int) -> float:
        """Return the factor of a step after the warm-up."""
        first = max(self._warmup, self._total - round(self.decay_ratio * self._total))
        if step < first:
            return 1.0
        progress = min(1.0, (step - first) / max(1, self._total - first))
        return self.min_factor + (1 - self.min_factor) * (1 - math.sqrt(progress))


class StepDecay(Schedule):
    """Multiplies the rate by `gamma` every `step_epochs` epochs."""

    def __init__(self, step_epochs: int, gamma: float, warmup_ratio: float = 0.0, warmup_steps: int | None = None) -> None:
        super().__init__(warmup_ratio, warmup_steps)
        self.step_epochs = step_epochs
        self.gamma = gamma

    def after_warmup(self, step: int) -> float:
        """Return the factor of a step after the warm-up."""
        return float(self.gamma ** (step // (self.step_epochs * self._epoch_steps)))


class Exponential(Schedule):
    """Multiplies the rate by `gamma` an epoch, in equal parts at every step."""

    def __init__(self, gamma: float, warmup_ratio: float = 0.0, warmup_steps: int | None = None) -> None:
        super().__init__(warmup_ratio, warmup_steps)
        self.gamma = gamma

    def after_warmup(self, step: int) -> float:
        """Return the factor of a step after the warm-up."""
        return float(self.gamma ** ((step - self._warmup) / self._epoch_steps))


class Plateau(Schedule):
    """Multiplies the rate by `factor` whenever the objective has not improved by `min_delta` for more than `patience` epochs."""

    def __init__(
        self,
        factor: float,
        patience: int,
        min_delta: float = 0.0,
        min_factor: float = 0.0,
        warmup_ratio: float = 0.0,
        warmup_steps: int | None = None,
    ) -> None:
        super().__init__(warmup_ratio, warmup_steps)
        self.decay = factor
        self.patience = patience
        self.min_delta = min_delta
        self.min_factor = min_factor
        self._state: dict[str, Any] = {"scale": 1.0, "best": None, "waited": 0}

    def after_warmup(self, step: int) -> float:  # noqa: ARG002
        """Return the factor of a step after the warm-up."""
        return float(self._state["scale"])

    def epoch_end(self, value: float | None, smaller_is_better: bool) -> None:
        """Shrink the factor once the objective has not improved for too many epochs."""
        if value is None:
            return
        signed = value if smaller_is_better else -value
        best = self._state["best"]
        if best is None or signed < best - self.min_delta:
            self._state.update(best=signed, waited=0)
            return
        self._state["waited"] += 1
        if self._state["waited"] > self.patience:
            self._state.update(scale=max(self.min_factor, self._state["scale"] * self.decay), waited=0)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self._state.update(state)


def round_up(size: int, steps: int) -> int:
    """Round up to the next of (steps, ..., 2 * steps - 1) x 2^n; smaller sizes are returned unchanged."""
    unit = 1
    while size > unit * (2 * steps - 1 if steps > 1 else 1):
        unit *= 2
    return -(-size // unit) * unit
