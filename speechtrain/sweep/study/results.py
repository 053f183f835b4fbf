"""Results of a sweep: its best trials, the best as an experiment that can be run, and how an earlier best trial is found again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import DictConfig, OmegaConf

from speechtrain.addresses import keep
from speechtrain.config.targets import Direction
from speechtrain.errors import ConfigError, Problem
from speechtrain.sweep.study.race_plan import FINALIST

if TYPE_CHECKING:  # what a mistake on the command line does not wait for
    from optuna.trial import FrozenTrial

RESULTS = "optimization_results.yaml"
"""File in a sweep's folder with the best trial; the name is the official sweeper's."""

_LEFT_OUT = ("output_dir", "resume", "hydra", "sweep", "experiment")


def experiment_yaml(cfg: DictConfig) -> str:
    """Return a composed config as the body of an experiment file: the options of its groups, then every value."""
    choices = OmegaConf.to_container(cfg.hydra.runtime.choices)
    assert isinstance(choices, dict)
    groups = {
        str(group): option
        for group, option in choices.items()
        if option is not None and not str(group).startswith("hydra") and str(group) not in _LEFT_OUT
    }
    body = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(body, dict)
    values = keep({key: value for key, value in body.items() if key not in _LEFT_OUT})
    defaults = [{f"override /{group}": option} for group, option in groups.items()]
    return yaml.safe_dump({"defaults": defaults}, sort_keys=False) + "\n" + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def read_best(name: str) -> list[str]:
    """Return the overrides of the best trial of an earlier sweep.

    Args:
        name: the sweep's folder, or `last` for the newest one under `multirun/`.

    Raises:
        ConfigError: no results are stored there.
    """
    if name == "last":
        files = sorted(Path("multirun").glob(f"*/{RESULTS}"), key=lambda file: file.stat().st_mtime)
    else:
        files = [Path(name) / RESULTS]
    try:
        content = yaml.safe_load(files[-1].read_text(encoding="utf-8"))
        return [str(item) for item in content["best_overrides"]]
    except (OSError, IndexError, KeyError, TypeError, yaml.YAMLError):
        where = files[-1] if files else Path("multirun").absolute()
        fix = "give the folder of a sweep that has ended: hydra.sweeper.repeat_best_of=multirun/NAME"
        raise ConfigError([Problem("hydra.sweeper.repeat_best_of", f"no results of a sweep in {where}", fix)]) from None


class Results:
    """The best of the complete trials that meet all constraints, kept up to date trial by trial.

    Args:
        directions: direction of each objective.

    Attributes:
        best: the best trial, the first of equal ones, or the front of several objectives, by number; empty where no value is finite. It is
            the winner of a race of the finalists once that has one.
    """

    def __init__(self, directions: Sequence[Direction]) -> None:
        self.best: list[FrozenTrial] = []
        self._mean: float | None = None
        self._signs = [1.0 if direction == "minimize" else -1.0 for direction in directions]
        self._count = 0
        self._values: set[tuple[float, ...]] = set()

    @property
    def best_value(self) -> float | None:
        """Return the value of the best trial in the first objective, or the winner's mean over further seeds; None: there is none."""
        return self._mean if self._mean is not None or not self.best else float(self.best[0].values[0])

    def name_winner(self, trial: FrozenTrial, mean: float) -> None:
        """Take the winner of a race for the best trial, with its mean over further seeds."""
        self.best, self._mean = [trial], mean

    @property
    def all_equal(self) -> bool:
        """Return whether several trials have come and all have the same values, so that none is the best and no parameter matters."""
        return self._mean is None and self._count > 1 and len(self._values) == 1

    def add(self, trial: FrozenTrial) -> None:
        """Take in a trial; one that is not complete, breaks a constraint, or belongs to a race of finalists is passed over."""
        if trial.state.name != "COMPLETE" or not meets_constraints(trial) or FINALIST in trial.system_attrs:
            return
        self._count += 1
        if len(self._values) < 2:
            self._values.add(tuple(trial.values))
        costs = self._costs(trial)
        if not all(map(math.isfinite, costs)) and len(costs) == 1:
            return
        if not any(_dominates(self._costs(other), costs) for other in self.best):
            kept = [other for other in self.best if not _dominates(costs, self._costs(other))]
            self.best = sorted([*kept, trial], key=lambda each: each.number)[: 1 if len(costs) == 1 else None]

    def _costs(self, trial: FrozenTrial) -> list[float]:
        """Return the values of a trial so that less is better."""
        return [sign * value for sign, value in zip(self._signs, trial.values, strict=True)]


def meets_constraints(trial: FrozenTrial) -> bool:
    """Return whether a trial breaks none of the bounds that were checked."""
    return all(violation <= 0 for violation in trial.constraints.values())


def _dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def short_text(params: Mapping[str, Any]) -> str:
    """Return parameters in one line, each by the last part of its name where no other ends in the same."""
    lasts = [name.partition(" ")[0].rpartition(".")[2] for name in params]
    parts = []
    for (name, value), last in zip(params.items(), lasts, strict=True):
        text = f"{value:.4g}" if isinstance(value, float) else "null" if value is None else str(value)
        parts.append(f"{last if lasts.count(last) == 1 else name}={text}")
    return " ".join(parts)
