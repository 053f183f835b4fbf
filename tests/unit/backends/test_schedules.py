"""Learning rates follow their formulas."""

from __future__ import annotations

import math

import pytest
import torch

from speechtrain import compose
from speechtrain.backends.schedules import Schedule
from speechtrain.config.build import build
from speechtrain.errors import ConfigError


def schedule(name: str, *overrides: str, total: int = 100, epoch: int = 10) -> Schedule:
    made: Schedule = build("scheduler", compose([f"scheduler={name}", *overrides]).scheduler)
    made.begin(total, epoch)
    return made


def test_the_warm_up_rises_linearly_to_1() -> None:
    for name in ("warmup", "warmup_cosine"):
        factors = [schedule(name, "scheduler.warmup_steps=4").factor(step) for step in range(5)]
        assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_a_ratio_is_a_share_of_the_run() -> None:
    assert schedule("warmup", "scheduler.warmup_ratio=0.5").factor(49) < 1
    assert schedule("warmup", "scheduler.warmup_ratio=0.5").factor(50) == 1


def test_cosine_falls_from_1_to_its_floor() -> None:
    made = schedule("warmup_cosine", "scheduler.warmup_steps=0", "scheduler.min_factor=0.1")
    assert made.factor(0) == 1
    assert made.factor(50) == pytest.approx(0.55)
    assert made.factor(25) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert made.factor(100) == made.factor(120) == pytest.approx(0.1)


def test_warm_up_stable_decay_does_not_depend_on_the_length_of_the_run_until_it_falls() -> None:
    overrides = ("scheduler.warmup_steps=10", "scheduler.decay_ratio=0.4", "scheduler.min_factor=0.1")
    short, long = (schedule("warmup_stable_decay", *overrides, total=total) for total in (100, 400))
    assert [short.factor(step) for step in range(60)] == [long.factor(step) for step in range(60)]
    assert short.factor(59) == short.factor(60) == 1
    assert short.factor(70) == pytest.approx(0.1 + 0.9 * 0.5)  # a quarter of the way, whose root is a half
    assert short.factor(100) == short.factor(120) == pytest.approx(0.1)


def test_cosine_of_epochs_gives_pytorchs_rates_and_keeps_them_for_an_epoch() -> None:
    rate = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(rate, T_max=10, eta_min=0.2)
    made = schedule("cosine", "scheduler.min_factor=0.2")
    for epoch in range(10):
        expected = theirs.get_last_lr()[0]
        assert [made.factor(10 * epoch + step) for step in (0, 4, 9)] == pytest.approx([expected] * 3)
        rate.step()
        theirs.step()
    warmed = schedule("cosine", "scheduler.warmup_steps=15")
    assert warmed.factor(14) < warmed.factor(15) == warmed.factor(19) == 1 > warmed.factor(20) > warmed.factor(99) > 0


def test_step_and_exponential_count_in_epochs() -> None:
    made = schedule("step", "scheduler.step_epochs=2", "scheduler.gamma=0.5")
    assert [made.factor(step) for step in (0, 19, 20, 40)] == [1, 1, 0.5, 0.25]
    made = schedule("exponential", "scheduler.gamma=0.5")
    assert [made.factor(step) for step in (0, 10, 20)] == pytest.approx([1, 0.5, 0.25])
    assert made.factor(5) == pytest.approx(0.5**0.5)


def test_plateau_waits_then_shrinks_and_survives_a_restart() -> None:
    made = schedule("plateau", "scheduler.patience=1", "scheduler.factor=0.5")
    for value in (1.0, 0.8, 0.9):
        made.epoch_end(value, smaller_is_better=True)
    assert made.factor(50) == 1
    other = schedule("plateau", "scheduler.patience=1", "scheduler.factor=0.5")
    other.load_state_dict(made.state_dict())
    for each in (made, other):
        each.epoch_end(None, smaller_is_better=True)
        each.epoch_end(0.85, smaller_is_better=True)
        assert each.factor(50) == 0.5
    grows = schedule("plateau", "scheduler.patience=0")
    grows.epoch_end(0.1, smaller_is_better=False)
    grows.epoch_end(0.2, smaller_is_better=False)
    assert grows.factor(0) == 1


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"scheduler.warmup_steps: is 101, longer than the run of 100 steps"):
        schedule("warmup", "scheduler.warmup_steps=101")
