"""What a sweep goes by: objectives, which way each is better, and constraints such as `model/parameters <= 2e6`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from speechtrain.config.targets import Direction
from speechtrain.errors import ConfigError, Problem

ALIASES = {"params": "model/parameters", "parameters": "model/parameters", "latency_ms": "model/latency_ms"}
"""Short names of metrics that are known before training."""

KNOWN: dict[str, Direction] = {
    "model/parameters": "minimize",
    "model/latency_ms": "minimize",
    "train/audio_s_per_s": "maximize",
}
"""Metrics that belong to no task, and which way each is better."""

_CONSTRAINT = re.compile(r"\s*([\w/]+)\s*(<=|>=|≤|≥|<|>)\s*([-+]?[\d_]*\.?\d+(?:[eE][-+]?\d+)?)\s*")


@dataclass(frozen=True)
class Constraint:
    """A bound of a metric."""

    metric: str
    upper: bool
    limit: float

    @classmethod
    def parse(cls, text: str) -> Constraint:
        """Read `params <= 2e6`.

        Raises:
            ConfigError: it does not read so.
        """
        match = _CONSTRAINT.fullmatch(text)
        if match is None:
            fix = "write a metric, <= or >=, and a number, for example 'params <= 2e6'"
            raise ConfigError([Problem("hydra.sweeper.constraints", f"'{text}' cannot be read", fix)])
        name, sign, limit = match.groups()
        return cls(ALIASES.get(name, name), sign in ("<=", "≤", "<"), float(limit))

    def violation(self, value: float) -> float:
        """Above 0 where the bound is broken; Optuna's convention."""
        return value - self.limit if self.upper else self.limit - value

    def __str__(self) -> str:
        return f"{self.metric} {'<=' if self.upper else '>='} {self.limit:g}"


def full_name(metric: str) -> str:
    """A metric's name for a short one."""
    return ALIASES.get(metric, metric)


def directions_of(metrics: Sequence[str], given: str | Sequence[str] | None, of_task: Mapping[str, Direction]) -> list[Direction]:
    """Which way each objective is better: as given, else as the task or the table above says.

    Raises:
        ConfigError: it is not known, or the number given does not fit.
    """
    listed = [given] if isinstance(given, str) else list(given or [])
    problems = [
        Problem("hydra.sweeper.direction", f"must be minimize or maximize, received '{item}'", "leave it out: it follows from the metric")
        for item in listed
        if item not in ("minimize", "maximize")
    ]
    if listed and len(listed) != len(metrics):
        shown = ", ".join(metrics)
        problems.append(Problem("hydra.sweeper.direction", f"has {len(listed)} entries for {len(metrics)} objectives ({shown})", ""))
    if problems:
        raise ConfigError(problems)
    if listed:
        return [_as_direction(item) for item in listed]
    found: list[Direction] = []
    for metric in metrics:
        known = KNOWN.get(metric) or of_task.get(metric.rpartition("/")[2])
        if known is None:
            fix = "name a metric of the task, or set hydra.sweeper.direction"
            raise ConfigError([Problem("objective.metric", f"nothing is known of which way '{metric}' is better", fix)])
        found.append(known)
    return found


def _as_direction(text: str) -> Direction:
    return "maximize" if text == "maximize" else "minimize"
