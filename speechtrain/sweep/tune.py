"""A search within one process, for what takes seconds: settings of a decoder on log-probabilities that are there already."""

from __future__ import annotations

from collections.abc import Callable

import optuna

from speechtrain.config.targets import Direction
from speechtrain.errors import ConfigError, Problem
from speechtrain.sweep.space.space import Scalar, Space
from speechtrain.sweep.study.study import distribution


def search_in_process(
    space: Space, value_of: Callable[[list[str]], float], *, direction: Direction, n_trials: int | None, seed: int
) -> tuple[list[str], float]:
    """The overrides with the best value, and that value; of equal ones the first.

    Args:
        space: a finite one is tried once each without `n_trials`, any other one searched by Optuna's TPE.
        value_of: tries overrides.
        direction: which way values are better.
        n_trials: how many are tried.
        seed: of the search.

    Raises:
        ConfigError: the space is infinite and `n_trials` is not said.
    """
    sign = 1 if direction == "minimize" else -1
    found: list[tuple[float, list[str]]] = []
    if n_trials is None:
        if not space.is_finite():
            raise ConfigError([Problem("n_trials", "must be said, for the ranges hold infinitely many values", "for example n_trials=50")])
        for point in space.points():
            settings = space.overrides(point)
            found.append((value_of(settings), settings))
    else:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(direction=direction, sampler=optuna.samplers.TPESampler(seed=seed))
        for _ in range(n_trials):
            trial = study.ask()
            values: dict[str, Scalar] = {}
            for parameter in space.all_parameters():
                values[parameter.name] = trial._suggest(parameter.name, distribution(parameter.domain))
            settings = space.overrides(values)
            found.append((value_of(settings), settings))
            study.tell(trial, found[-1][0])
    value, settings = min(found, key=lambda item: sign * item[0])
    return settings, value
