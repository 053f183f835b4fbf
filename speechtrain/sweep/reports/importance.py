"""How much each parameter matters for an objective, and how sure that is: fANOVA over resampled trials."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence

import optuna
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import FrozenTrial

RESAMPLINGS = 8
_TREES = 24
_MOST_TRIALS = 300
"""Trials in a resampling at most: the time to grow a forest is that of their number."""
_FEWEST_TRIALS = 5


def importances(trials: Sequence[FrozenTrial], index: int) -> dict[str, tuple[float, float, float]]:
    """Return (median, lowest, highest) share of the variance of an objective that each parameter explains, the most important first.

    The forest of fANOVA (Hutter, Hoos and Leyton-Brown 2014) is grown anew, with another seed, on trials that are drawn with replacement:
    the spread is that of chance in trials and trees.

    Args:
        trials: complete trials; parameters that not all of them have are left out.
        index: number of the objective.

    Returns:
        Nothing where too few trials are complete, or all have the same value.
    """
    if len(trials) < _FEWEST_TRIALS or len({trial.values[index] for trial in trials}) == 1:
        return {}
    shares: dict[str, list[float]] = {}
    rng = random.Random(0)  # noqa: S311
    for seed in range(RESAMPLINGS):
        drawn = rng.choices(trials, k=min(len(trials), _MOST_TRIALS))
        if len({trial.values[index] for trial in drawn}) == 1:
            continue
        study = optuna.create_study()
        study.add_trials(
            [optuna.create_trial(value=each.values[index], params=each.params, distributions=each.distributions) for each in drawn]
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = FanovaImportanceEvaluator(n_trees=_TREES, max_depth=16, seed=seed).evaluate(study)
        for name, share in found.items():
            shares.setdefault(name, []).append(share)
    ranked = {name: (sorted(values)[len(values) // 2], min(values), max(values)) for name, values in shares.items()}
    return dict(sorted(ranked.items(), key=lambda item: -item[1][0]))
