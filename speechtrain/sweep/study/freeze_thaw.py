"""Freeze-thaw optimization: a model of all learning curves chooses which paused trial is continued, and which config is begun.

`FreezeThaw` is the rule (`hydra.sweeper.pruner`), `FreezeThawSampler` proposes what is begun (`hydra.sweeper.sampler`). They work together
best, and each without the other. Both ask for the largest expected improvement for each epoch that a trial still has to train.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.search_space import IntersectionSearchSpace
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from speechtrain.sweep.study.curve_model import Curve, CurveModel, features_of
from speechtrain.sweep.study.promotion import PromotionRule, check_whole
from speechtrain.sweep.study.standings import Progress, Rung, Standings

DEFAULT_SHARE = 0.25
"""Share of the epochs after which trials pause first: at a fifth to a quarter and at half of them was best of what `docs/log.md` has."""
_NEW = 60
"""Configs by which is judged what a new trial promises."""
_BEST, _KEPT, _STEP = 5, 0.7, 0.1
"""Best trials near which configs are tried, share of their parameters that these keep, and by how much of its range a number is moved."""


class FreezeThaw(PromotionRule):
    """Pauses every trial at each rung, and continues the one that promises most, unless a new one promises more.

    The first trial trains to its end, for the model has to know how curves go on.

    Args:
        min_resource: epochs of the first rung; each of the others has `reduction_factor` times those of the one before. None: 3; where the
            epochs of the trainings are known, the sweeper puts a quarter of the longest one's (`DEFAULT_SHARE`).
        reduction_factor: how much further the next rung is.
        n_startup_trials: trials that are begun before any is continued.
        least_probability: probability of becoming the best with which a paused trial is continued at least, once all have begun.

    Raises:
        ValueError: one of them is too small, or no probability.
    """

    uses_features = True

    def __init__(
        self, min_resource: int | None = None, reduction_factor: int = 2, n_startup_trials: int = 8, least_probability: float = 0.05
    ) -> None:
        min_resource = 3 if min_resource is None else min_resource
        check_whole("min_resource", min_resource, least=1)
        check_whole("reduction_factor", reduction_factor, least=2)
        check_whole("n_startup_trials", n_startup_trials, least=1)
        self._min_resource = min_resource
        self._reduction_factor = reduction_factor
        if not 0 <= least_probability <= 1:
            raise ValueError(f"least_probability must be from 0 to 1, received {least_probability!r}")
        self._n_startup_trials = n_startup_trials
        self._least_probability = least_probability
        self._decided: tuple[object, int | None] = (None, None)

    def rung_at(self, epochs: int) -> int | None:
        """Return the highest rung that a trial of so many epochs has come to; None: it has come to none."""
        reached = [rung for rung in _rungs(self._min_resource, self._reduction_factor, epochs) if rung <= epochs]
        return reached[-1] if reached else None

    def goes_on(self, rung: Rung, slot: int) -> bool:  # noqa: ARG002
        """Return whether it is the first trial: for the others the model of all curves has to be asked."""
        return slot == 0

    def promotable(self, standings: Standings, progress: Progress) -> int | None:
        """Return the paused slot that promises most; None: a new trial promises more, or nothing is known yet."""
        paused = tuple(sorted(slot for rung in standings.rungs.values() for _, slot in rung.paused))
        if not paused or not progress.has_result or (len(standings.features) < self._n_startup_trials and not progress.all_begun):
            return None
        known = tuple((slot, len(curve), list(curve.values())[-1]) for slot, curve in sorted(standings.curves.items()))
        state = (paused, known, len(standings.features), tuple(sorted(progress.open_slots)), progress.all_begun)
        if self._decided[0] != state:
            self._decided = state, self._most_promising(standings, progress, paused)
        return self._decided[1]

    def _most_promising(self, standings: Standings, progress: Progress, paused: Sequence[int]) -> int | None:
        ended = {slot for slot in standings.curves if slot not in paused and slot not in progress.open_slots}
        horizon = max((max(standings.curves[slot]) for slot in ended), default=-1)
        curves = {
            slot: Curve(standings.features.get(slot, {}), standings.costs(slot), slot in ended and max(values) == horizon)
            for slot, values in standings.curves.items()
        }
        try:
            model = CurveModel(curves, _rungs(self._min_resource, self._reduction_factor, horizon + 1))
        except ValueError:
            return None
        left = np.array([model.horizon - max(curves[slot].costs) + 1 for slot in paused], dtype=np.float64)
        expected, probability = model.improvement([curves[slot].features for slot in paused], paused)
        best = int(np.argmax(expected / left))
        if progress.all_begun:
            return paused[best] if probability[best] >= self._least_probability else None
        new = self._new_configs([curve.features for curve in curves.values()])
        of_new = float(model.improvement(new, [-1] * len(new))[0].max()) / (model.horizon + 1)
        return paused[best] if expected[best] / left[best] >= of_new else None

    def _new_configs(self, seen: Sequence[Mapping[str, float]]) -> Sequence[Mapping[str, float]]:
        """Return features of configs that might be begun, drawn at random, by which is judged what a new trial promises."""
        random = np.random.default_rng(len(seen))
        return [_redrawn(random, seen) for _ in range(_NEW)]


class FreezeThawSampler(optuna.samplers.BaseSampler):
    """Proposes the config that promises most, by a model of all learning curves, among many that are drawn at random.

    Parameters that not all trials have are drawn at random, as is all for the first trials and for several objectives.

    Args:
        seed: seed of all that is drawn.
        n_startup_trials: trials that are drawn at random before any is proposed.
        n_candidates: configs among which one is chosen; half of them are near the best that are known.
    """

    def __init__(self, seed: int | None = None, n_startup_trials: int = 8, n_candidates: int = 200) -> None:
        self._random = np.random.default_rng(seed)
        self._independent = optuna.samplers.RandomSampler(seed)
        self._n_startup_trials = n_startup_trials
        self._n_candidates = n_candidates

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        """Return the parameters that all trials have."""
        space = IntersectionSearchSpace(include_pruned=True).calculate(study)
        return {name: distribution for name, distribution in space.items() if not distribution.single()}

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        """Return the values of a new trial; nothing where all are drawn at random."""
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        trials = [each for each in study.get_trials(deepcopy=False, states=states) if all(name in each.params for name in search_space)]
        finished = [each for each in trials if each.state.is_finished()]
        if not search_space or len(study.directions) > 1 or len(finished) < self._n_startup_trials:
            return {}
        sign = 1.0 if study.direction is StudyDirection.MINIMIZE else -1.0
        curves = {each.number: _curve_of(each, search_space, sign) for each in trials if each.intermediate_values or each.values}
        horizon = max((max(curve.costs) for curve in curves.values() if curve.is_complete), default=0)
        curves = {number: Curve(each.features, each.costs, max(each.costs) == horizon) for number, each in curves.items()}
        try:
            model = CurveModel(curves, _rungs(1, 3, horizon))
        except ValueError:
            return {}
        ranked = [each for each in trials if each.number in curves]
        mean, _ = model.predict([curves[each.number].features for each in ranked], [each.number for each in ranked])
        candidates = self._candidates(study, trial, search_space, [ranked[index] for index in np.argsort(mean)[:_BEST]])
        features = [features_of(each, search_space) for each in candidates]
        expected, _ = model.improvement(features, [-1] * len(features))
        return candidates[int(np.argmax(expected))]

    def _candidates(
        self, study: optuna.Study, trial: FrozenTrial, space: Mapping[str, BaseDistribution], best: Sequence[FrozenTrial]
    ) -> list[dict[str, Any]]:
        """Return configs of the space: half of them drawn from all of it, half near one of the best."""
        candidates = [
            {name: self.sample_independent(study, trial, name, distribution) for name, distribution in space.items()}
            for _ in range(self._n_candidates)
        ]
        for candidate in candidates[::2]:
            near = best[int(self._random.integers(len(best)))].params
            for name, distribution in space.items():
                if self._random.random() < _KEPT:
                    candidate[name] = _moved(near[name], distribution, _STEP * self._random.standard_normal())
        return candidates

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        """Return a random value."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)


def _rungs(first: int, factor: int, most: int) -> list[int]:
    """Return numbers of epochs up to the most, each of them the factor times the one before."""
    rungs = [first] if first <= most else []
    while rungs and rungs[-1] * factor <= most:
        rungs.append(rungs[-1] * factor)
    return rungs


def _curve_of(trial: FrozenTrial, space: Mapping[str, BaseDistribution], sign: float) -> Curve:
    """Return what a trial has reported, or its result where it reports nothing."""
    reported = {step + 1: sign * value for step, value in trial.intermediate_values.items()}
    costs = reported or {1: sign * trial.values[0]}
    costs = {epochs: math.inf if math.isnan(cost) else cost for epochs, cost in costs.items()}
    params = {name: trial.params[name] for name in space}
    return Curve(features_of(params, space), costs, trial.state is TrialState.COMPLETE)


def _redrawn(random: np.random.Generator, seen: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return features of a config that might be drawn: those of a trial, each number drawn anew, each choice one that was seen."""
    features: dict[str, float] = {}
    for name in seen[int(random.integers(len(seen)))]:
        key, is_choice, _ = name.partition("=")
        if is_choice:
            offered = sorted({other for each in seen for other in each if other.startswith(f"{key}=")})
            features[offered[int(random.integers(len(offered)))]] = 1.0
        else:
            features[name] = float(random.random())
    return features


def _moved(value: Any, distribution: BaseDistribution, step: float) -> Any:
    """Return a number moved by a share of its range, as far as its distribution allows; another value as it is."""
    if isinstance(distribution, CategoricalDistribution) or not isinstance(distribution, FloatDistribution | IntDistribution):
        return value
    scale, back = (math.log, math.exp) if distribution.log else (float, float)
    low, high = scale(distribution.low), scale(distribution.high)
    moved = back(min(max(scale(value) + step * (high - low), low), high))
    if distribution.step is not None:
        moved = distribution.low + round((moved - distribution.low) / distribution.step) * distribution.step
    moved = min(max(moved, distribution.low), distribution.high)
    return round(moved) if isinstance(distribution, IntDistribution) else moved
