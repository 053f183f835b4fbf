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
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.search_space import IntersectionSearchSpace
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from speechtrain.sweep.study.curve_model import Curve, CurveModel, NothingKnownError, features_of
from speechtrain.sweep.study.promotion import PromotionRule, check_whole
from speechtrain.sweep.study.standings import Progress, Rung, Standings

DEFAULT_SHARE = 0.25
"""Share of the epochs after which trials pause first: at a fifth to a quarter and at half of them was best in `docs/log.md`."""
_NEW = 60
"""Configs by which is judged what a new trial promises."""
_BEST, _KEPT, _STEP = 5, 0.7, 0.1
"""Best trials near which configs are tried, share of their parameters that these keep, and by how much of its range a number is moved."""


class FreezeThaw(PromotionRule):
    """Pauses every trial at each rung, and continues the one that promises most, unless a new one promises more.

    Args:
        min_resource: epochs of the first rung; each of the others has `reduction_factor` times those of the one before. None: 3; where the
            epochs of the trainings are known, the sweeper puts a quarter of the longest one's (`DEFAULT_SHARE`).
        reduction_factor: how much further the next rung is.
        n_startup_trials: trials that are begun before any is continued.
        least_probability: probability of becoming the best with which a paused trial is continued at least, once all have begun.
        epochs: epochs of a training; None: those of the first trial, which then trains to its end without a pause. Where they are known,
            the sweeper puts those of the longest one.

    Raises:
        ValueError: one of them is too small, or no probability.
    """

    uses_features = True

    def __init__(
        self,
        min_resource: int | None = None,
        reduction_factor: int = 2,
        n_startup_trials: int = 8,
        least_probability: float = 0.05,
        epochs: int | None = None,
    ) -> None:
        min_resource = 3 if min_resource is None else min_resource
        check_whole("min_resource", min_resource, least=1)
        check_whole("reduction_factor", reduction_factor, least=2)
        check_whole("n_startup_trials", n_startup_trials, least=1)
        check_whole("epochs", 1 if epochs is None else epochs, least=1)
        if not 0 <= least_probability <= 1:
            raise ValueError(f"least_probability must be from 0 to 1, received {least_probability!r}")
        self._min_resource = min_resource
        self._reduction_factor = reduction_factor
        self._n_startup_trials = n_startup_trials
        self._least_probability = least_probability
        self._epochs = epochs
        self._decided: tuple[object, int | None] = (None, None)

    def rung_at(self, epochs: int) -> int | None:
        """Return the highest rung that a trial of so many epochs has come to; None: it has come to none."""
        reached = _rungs(self._min_resource, self._reduction_factor, epochs)
        return reached[-1] if reached else None

    def goes_on(self, rung: Rung, slot: int) -> bool:  # noqa: ARG002
        """Return whether it is the trial that shows how long a training is: for the others the model of all curves has to be asked."""
        return slot == 0 and self._epochs is None

    def promotable(self, standings: Standings, progress: Progress) -> int | None:
        """Return the paused slot that promises most; None: a new trial promises more, or nothing is known yet."""
        paused = tuple(sorted(slot for rung in standings.rungs.values() for _, slot in rung.paused))
        begun = len(standings.features)
        if not paused or (begun < self._n_startup_trials and not progress.all_begun) or not (self._epochs or progress.complete):
            return None
        reports = tuple((epochs, len(rung.reached)) for epochs, rung in sorted(standings.rungs.items()))
        state = (paused, reports, begun, len(progress.complete), progress.all_begun)
        if self._decided[0] != state:
            self._decided = state, self._most_promising(standings, progress, paused)
        return self._decided[1]

    def _most_promising(self, standings: Standings, progress: Progress, paused: Sequence[int]) -> int | None:
        curves = {}
        for slot in standings.curves:
            costs = standings.costs(slot)
            end = max(costs)
            is_complete = slot in progress.complete
            if slot in progress.open_slots and not is_complete:  # of one that runs, what it reported at rungs, by which decisions are made
                costs = {at: cost for at, cost in costs.items() if self.rung_at(at) == at}
            elif not is_complete and slot not in paused:
                costs = {end: math.inf}  # it failed, or was pruned for another reason
            curves[slot] = Curve(standings.features.get(slot, {}), costs, is_complete)
        rungs = _rungs(self._min_resource, self._reduction_factor, self._epochs or max(map(max, standings.curves.values())) + 1)
        try:
            model = CurveModel(curves, rungs, self._epochs)
        except NothingKnownError:
            return None
        left = np.array([max(1, model.horizon - max(curves[slot].costs)) for slot in paused], dtype=np.float64)
        expected, probability = model.improvement([curves[slot].features for slot in paused], paused)
        best = int(np.argmax(expected / left))
        if progress.all_begun:
            return paused[best] if probability[best] >= self._least_probability else None
        new = self._new_configs([each for each in standings.features.values() if each])
        of_new = float(model.improvement(new, [-1] * len(new))[0].max()) / model.horizon
        return paused[best] if expected[best] / left[best] >= of_new else None

    def _new_configs(self, seen: Sequence[Mapping[str, float]]) -> Sequence[Mapping[str, float]]:
        """Return features of configs that might be begun, drawn at random, by which is judged what a new trial promises."""
        random = np.random.default_rng(len(seen))
        values: dict[str, set[float]] = {}
        choices: dict[str, list[str]] = {}
        for name in sorted({name for each in seen for name in each}):
            values[name] = {each[name] for each in seen if name in each}
            key, is_choice, _ = name.partition("=")
            if is_choice:
                choices.setdefault(key, []).append(name)
        return [_redrawn(random, seen[int(random.integers(len(seen)))], values, choices) for _ in range(_NEW)]


class FreezeThawSampler(optuna.samplers.BaseSampler):
    """Proposes the config that promises most, by a model of all learning curves, among many that are drawn at random.

    Parameters that not all trials have are drawn at random, as is all for the first trials and for several objectives.

    Args:
        seed: seed of all that is drawn.
        n_startup_trials: trials that are drawn at random before any is proposed.
        n_candidates: configs among which one is chosen; half of them are near the best that are known.
    """

    def __init__(self, seed: int | None = None, n_startup_trials: int = 8, n_candidates: int = 200) -> None:
        check_whole("n_startup_trials", n_startup_trials, least=1)
        check_whole("n_candidates", n_candidates, least=1)
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
        reports = any(each.intermediate_values for each in trials)
        curves = {each.number: _curve_of(each, search_space, sign, reports=reports) for each in trials}
        curves = {number: curve for number, curve in curves.items() if curve.costs}
        try:
            model = CurveModel(curves, _rungs(1, 3, max((max(curve.costs) for curve in curves.values()), default=0)))
        except NothingKnownError:
            return {}
        ranked = [each for each in trials if each.number in curves]
        mean, _ = model.predict([curves[each.number].features for each in ranked], [each.number for each in ranked])
        candidates = self._candidates(study, trial, search_space, [ranked[index] for index in np.argsort(mean)[:_BEST]])
        tried = [{name: each.params[name] for name in search_space} for each in trials]
        candidates = [each for each in candidates if each not in tried]
        if not candidates:
            return {}
        model.expect([features_of(params, search_space) for params, each in zip(tried, trials, strict=True) if each.number not in curves])
        expected, _ = model.improvement([features_of(each, search_space) for each in candidates], [-1] * len(candidates))
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
        """Return a value that is drawn at random."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)


def _rungs(first: int, factor: int, most: int) -> list[int]:
    """Return numbers of epochs up to the most, each of them the factor times the one before."""
    rungs = [first] if first <= most else []
    while rungs and rungs[-1] * factor <= most:
        rungs.append(rungs[-1] * factor)
    return rungs


def _curve_of(trial: FrozenTrial, space: Mapping[str, BaseDistribution], sign: float, *, reports: bool) -> Curve:
    """Return what a trial has reported, or its result where no trial of the study `reports`; the worst where it breaks a constraint."""
    costs = {step + 1: sign * value for step, value in trial.intermediate_values.items()}
    if not reports and trial.values:
        costs = {1: sign * trial.values[0]}
    is_complete = trial.state is TrialState.COMPLETE
    if any(violation > 0 for violation in trial.constraints.values()) or (trial.state is TrialState.PRUNED and not costs):
        costs, is_complete = {1: math.inf}, False
    costs = {epochs: math.inf if math.isnan(cost) else cost for epochs, cost in costs.items()}
    return Curve(features_of({name: trial.params[name] for name in space}, space), costs, is_complete)


def _redrawn(
    random: np.random.Generator, template: Mapping[str, float], values: Mapping[str, set[float]], choices: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """Return features of a config that might be drawn: those of a trial, each number that varies drawn anew, half of the choices others.

    Args:
        random: source of random numbers.
        template: features of the trial.
        values: what was seen of each feature.
        choices: the features of each parameter of choices.
    """
    features: dict[str, float] = {}
    for name in template:
        key, is_choice, _ = name.partition("=")
        if is_choice:
            features[choices[key][int(random.integers(len(choices[key])))] if random.random() < 0.5 else name] = 1.0
        else:
            features[name] = float(random.random()) if len(values[name]) > 1 else template[name]
    return features


def _moved(value: Any, distribution: BaseDistribution, step: float) -> Any:
    """Return a number moved by a share of its range, as far as its distribution allows; another value as it is."""
    if not isinstance(distribution, FloatDistribution | IntDistribution):
        return value
    scale, back = (math.log, math.exp) if distribution.log else (float, float)
    low, high = scale(distribution.low), scale(distribution.high)
    moved = back(min(max(scale(value) + step * (high - low), low), high))
    if distribution.step is not None:
        moved = distribution.low + round((moved - distribution.low) / distribution.step) * distribution.step
    moved = min(max(moved, distribution.low), distribution.high)
    return round(moved) if isinstance(distribution, IntDistribution) else moved
