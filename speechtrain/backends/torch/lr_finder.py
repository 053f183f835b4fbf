"""The learning rate range test (Smith 2017): the learning rate grows with each step, and the loss shows where it learns fastest."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import chain, count
from pathlib import Path
from typing import TypeVar

import torch

from speechtrain.errors import RunError
from speechtrain.files import write_json

T = TypeVar("T")
SCALE = "lr_scale"
"""The key of a group of parameters, in an optimizer, that holds the share of the learning rate which it has."""
LOWEST, HIGHEST, STEPS = 1e-6, 1.0, 100
_SMOOTHING = 0.9
_SKIPPED = 10  # first points, where the smoothed loss is still that of a few batches


def sweep(
    optimizer: torch.optim.Optimizer,
    batches: Iterable[T],
    loss_of: Callable[[T], torch.Tensor],
    gradient_clip_val: float | None,
) -> list[tuple[float, float]]:
    """Train with a growing rate; return (rate, smoothed loss) of each step, until the loss is four times the least one.

    Args:
        optimizer: optimizer of weights that are restored afterwards.
        batches: training batches, at least `STEPS` of them.
        loss_of: computes the loss of a batch.
        gradient_clip_val: the norm that gradients are clipped to; None: they are not.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.requires_grad]
    curve: list[tuple[float, float]] = []
    smoothed, least = 0.0, math.inf
    for step, batch in zip(range(STEPS), batches, strict=False):
        rate = LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1))
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get(SCALE, 1.0)
        loss = loss_of(batch)
        smoothed = _SMOOTHING * smoothed + (1 - _SMOOTHING) * float(loss.detach())
        current = smoothed / (1 - _SMOOTHING ** (step + 1))
        if not math.isfinite(current) or (step > _SKIPPED and current > 4 * least):
            break
        least = min(least, current)
        curve.append((rate, current))
        optimizer.zero_grad()
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val or math.inf)
        optimizer.step()
    return curve


def steepest(curve: list[tuple[float, float]]) -> float:
    """Return the rate at which the loss falls fastest with the logarithm of the rate.

    Raises:
        RunError: the loss never falls.
    """
    slopes = [(later - earlier, rate) for (_, earlier), (rate, _), (_, later) in zip(curve[:-2], curve[1:-1], curve[2:], strict=True)]
    falling = [(slope, rate) for slope, rate in slopes[_SKIPPED:] if slope < 0]
    if not falling:
        raise RunError(
            f"the loss falls at no learning rate between {LOWEST:g} and {HIGHEST:g}\n"
            "    -> set trainer.find_lr=false and optimizer.lr; lr_finder.json in the run's folder has the losses"
        )
    return min(falling)[1]


def write(curve: list[tuple[float, float]], folder: Path) -> None:
    """Write the curve to `lr_finder.json` in a folder."""
    write_json(folder / "lr_finder.json", [{"lr": rate, "loss": loss} for rate, loss in curve])


def endless(epoch: Callable[[int], Iterable[T]]) -> Iterable[T]:
    """Yield the batches of one epoch after another, without an end."""
    return chain.from_iterable(epoch(number) for number in count())
