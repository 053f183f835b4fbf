"""The space of `sweep_table.py`: what can be drawn, and a drawn config as a point and as it is typed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

CHANNELS = (32, 48, 64, 96, 128)
DILATIONS = {2: "[1,2]", 4: "[1,1,2,2]", 6: "[1,1,2,2,4,4]"}
RANGES = {
    "optimizer.lr": (3e-4, 5e-2),
    "optimizer.weight_decay": (1e-5, 1e-1),
    "scheduler.warmup_ratio": (0.02, 0.4),
    "model.dropout": (0.0, 0.5),
    "model.channels": (32, 128),
    "model.dilations": (2, 6),
    "augment.noise_prob": (0.0, 1.0),
    "augment.time_masks": (0, 3),
}
LOG_SCALE = ("optimizer.lr", "optimizer.weight_decay", "model.channels")


def draw(number: int) -> dict[str, float | int]:
    """Return the config of a number: a random point of the space, the same whoever asks."""
    random = np.random.default_rng([20261130, number])

    def uniform(key: str) -> float:
        return round(random.uniform(*RANGES[key]), 3)

    def log_uniform(key: str) -> float:
        low, high = RANGES[key]
        return float(f"{np.exp(random.uniform(np.log(low), np.log(high))):.3g}")

    return {
        "optimizer.lr": log_uniform("optimizer.lr"),
        "optimizer.weight_decay": log_uniform("optimizer.weight_decay"),
        "scheduler.warmup_ratio": uniform("scheduler.warmup_ratio"),
        "model.dropout": uniform("model.dropout"),
        "model.channels": int(random.choice(CHANNELS)),
        "model.dilations": int(random.choice(list(DILATIONS))),
        "augment.noise_prob": uniform("augment.noise_prob"),
        "augment.time_masks": int(random.integers(0, 4)),
    }


def overrides_of(config: Mapping[str, float | int]) -> list[str]:
    """Return a config as it is typed."""
    return [f"{key}={DILATIONS[int(value)] if key == 'model.dilations' else value}" for key, value in config.items()]


def scaled(params: dict[str, float | int]) -> NDArray[np.float64]:
    """Return a config as a point of the unit cube."""
    values = []
    for key, (low, high) in RANGES.items():
        scale: Callable[[float], float] = np.log if key in LOG_SCALE else float
        values.append((scale(params[key]) - scale(low)) / (scale(high) - scale(low)))
    return np.array(values)
