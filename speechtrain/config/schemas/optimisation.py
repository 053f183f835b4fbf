"""Schemas of optimizers and learning-rate schedules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from omegaconf import MISSING

from speechtrain.config.schemas.node import Rule, Target, number


@dataclass
class Optimizer(Target):
    lr: float = number(gt=0, most=1e30)
    weight_decay: float = number(ge=0, most=1_000_000)


@dataclass
class AdamLike(Optimizer):
    betas: list[float] = number(ge=0, lt=1)
    eps: float = number(gt=0)
    fused: bool = MISSING

    def rules(self) -> Iterator[Rule]:
        if len(self.betas) != 2:
            yield "betas", f"must be two numbers, received {list(self.betas)}", "for example optimizer.betas=[0.9,0.98]"


@dataclass
class Sgd(Optimizer):
    momentum: float = number(ge=0, lt=1)
    nesterov: bool = MISSING

    def rules(self) -> Iterator[Rule]:
        if self.nesterov and self.momentum == 0:
            yield "nesterov", "needs a momentum above 0", "set optimizer.momentum=0.9 or optimizer.nesterov=false"


@dataclass
class RmsProp(Optimizer):
    alpha: float = number(ge=0, lt=1)
    momentum: float = number(ge=0, lt=1)
    eps: float = number(gt=0)


@dataclass
class Schedule(Target):
    warmup_ratio: float = number(ge=0)
    warmup_steps: int | None = number(ge=0)

    def rules(self) -> Iterator[Rule]:
        if self.warmup_ratio > 1:
            yield (
                "warmup_ratio",
                f"is {self.warmup_ratio}: the warm-up would be longer than the run",
                "warmup_ratio is a share of the run, at most 1; for a number of steps use scheduler.warmup_steps",
            )


@dataclass
class WarmupCosine(Schedule):
    min_factor: float = number(ge=0, le=1)


@dataclass
class WarmupStableDecay(Schedule):
    decay_ratio: float = number(ge=0, le=1)
    min_factor: float = number(ge=0, le=1)


@dataclass
class StepDecay(Schedule):
    step_epochs: int = number(ge=1)
    gamma: float = number(gt=0, le=1)


@dataclass
class Exponential(Schedule):
    gamma: float = number(gt=0, le=1)


@dataclass
class Plateau(Schedule):
    factor: float = number(gt=0, lt=1)
    patience: int = number(ge=0)
    min_delta: float = number(ge=0)
    min_factor: float = number(ge=0, le=1)
