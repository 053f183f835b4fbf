"""Objectives of a sweep, the direction in which each is better, and constraints such as `model/parameters <= 2e6`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from speechtrain.config.targets import Direction
from speechtrain.errors import ConfigError, Problem

ALIASES = {"params": "model/parameters", "parameters": "model/parameters", "latency_ms": "model/latency_ms"}
"""Short names of metrics that are known before training."""

DIRECTIONS: dict[str, Direction] = {
    "model/parameters": "minimize",
    "model/latency_ms": "minimize",
    "train/audio_s_per_s": "maximize",
}
"""Direction of each metric that belongs to no task."""

_CONSTRAINT = re.compile(r"\s*([\w/]+)\s*(<=|>=|≤|≥|<|>)\s*([-+]?[\d_]*\.?\d+(?:[eE][-+]?\d+)?)\s*")


@dataclass(frozen=True)
class Constraint:
    """A bound that a metric must not cross.

    Attributes:
        metric: full name of the metric.
        upper: whether the metric must stay below the limit, not above it.
        limit: the bound, in the metric's unit.
    """

    metric: str
    upper: bool
    limit: float

    @classmethod
    def parse(cls, text: str) -> Constraint:
        """Read a constraint such as `params <= 2e6`.

        Raises:
            ConfigError: the text is not a metric, a comparison and a number.
        """
        match = _CONSTRAINT.fullmatch(text)
        if match is None:
            fix = "write a metric, <= or >=, and a number, for example 'params <= 2e6'"
            raise ConfigError([Problem("hydra.sweeper.constraints", f"'{text}' cannot be read", fix)])
        name, sign, limit = match.groups()
        return cls(ALIASES.get(name, name), sign in ("<=", "≤", "<"), float(limit))

    def violation(self, value: float) -> float:
        """Return by how much the bound is broken: above 0 where it is, as Optuna defines constraints."""
        return value - self.limit if self.upper else self.limit - value

    def __str__(self) -> str:
        return f"{self.metric} {'<=' if self.upper else '>='} {self.limit:g}"


def full_name(metric: str) -> str:
    """Return the full name of a metric that may be given by its short one."""
    return ALIASES.get(metric, metric)


def directions_of(metrics: Sequence[str], configured: str | Sequence[str] | None, of_task: Mapping[str, Direction]) -> list[Direction]:
    """Return the direction in which each objective is better.

    Args:
        metrics: full names of the objectives.
        configured: `hydra.sweeper.direction`; None: what the task, or `DIRECTIONS`, says.
        of_task: directions of the task's metrics, by their names without the stage.

    Raises:
        ConfigError: a direction is not known, or their number is not that of the objectives.
    """
    listed = [configured] if isinstance(configured, str) else list(configured or [])
    problems = [
        Problem("hydra.sweeper.direction", f"must be minimize or maximize, received '{item}'", "leave it out: it follows from the metric")
        for item in listed
        if item not in ("minimize", "maximize")
    ]
    if listed and len(listed) != len(metrics):
        message = f"has {len(listed)} entries for {len(metrics)} objectives ({', '.join(metrics)})"
        problems.append(Problem("hydra.sweeper.direction", message, "give one for each objective, or leave it out"))
    if problems:
        raise ConfigError(problems)
    if listed:
        return [_as_direction(item) for item in listed]
    directions: list[Direction] = []
    for metric in metrics:
        direction = DIRECTIONS.get(metric) or of_task.get(metric.rpartition("/")[2])
        if direction is None:
            fix = "name a metric of the task, or set hydra.sweeper.direction"
            raise ConfigError([Problem("objective.metric", f"it is not known whether '{metric}' should be minimized or maximized", fix)])
        directions.append(direction)
    return directions


def _as_direction(text: str) -> Direction:
    return "maximize" if text == "maximize" else "minimize"
