"""What earlier studies found, on other data or in other spaces, as the first trials of a study and as a prior for its sampler."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from speechtrain.errors import ConfigError, Problem, counted
from speechtrain.sweep.space.precheck import label_of
from speechtrain.sweep.space.space import Assignment, Choice, Domain, Parameter, Range, Scalar, Space
from speechtrain.sweep.study.attributes import TrialEntry
from speechtrain.sweep.study.find import FoundStudy, find_study
from speechtrain.sweep.study.results import Results

KEY = "hydra.sweeper.warm_start"
BEST_OF_EACH = 5
"""Configs of each earlier study that are tried first, at most."""
PRIOR_TRIALS = 25
"""Results of earlier studies, of all together, that the sampler sees before the first trial of its own."""
HALVED_BY = 10
"""Own trials after which it sees half of those, after twice as many a third, and so on."""
_TAKES_PRIOR = ("TPESampler", "GPSampler")
_CLIPPED, _LEFT_OUT = "taken to the bound", "left out"


@dataclass
class WarmStart:
    """What a study takes over.

    Attributes:
        first: assignments to try first, complete or in part, the best of each earlier study before the second best ones.
        prior: results as (assignment, rank), complete or in part; ranks go from 0, the best of its study, to 1.
        told: what was taken over, in a line.
    """

    first: list[Assignment] = field(default_factory=list)
    prior: list[tuple[Assignment, float]] = field(default_factory=list)
    told: str = ""


def read_warm_start(names: Sequence[str], space: Space, sampler: Mapping[str, Any] | None, *, single: bool) -> WarmStart:
    """Read earlier studies, and translate what they found to the parameters that are shared with a space.

    Args:
        names: `hydra.sweeper.warm_start`.
        space: what is searched now.
        sampler: config node of the sampler.
        single: whether there is one objective now; with several there is no prior.

    Raises:
        ConfigError: there is no such study, it has no result, or shares no parameter.
    """
    warm, lines = WarmStart(), []
    by_study: list[list[Assignment]] = []
    takes_prior = single and sampler is not None and str(sampler["_target_"]).endswith(_TAKES_PRIOR)
    for index, name in enumerate(names):
        path = f"{KEY}[{index}]"
        study = find_study(name, path)
        ranked = _ranked(study)
        if not ranked:
            raise ConfigError([Problem(path, f"the study '{study.name}' has no complete trial", "leave it out, or wait for it")])
        shared = _shared(space, [trial for trial, _ in ranked])
        if not shared:
            theirs = ", ".join(sorted({_path(each) for trial, _ in ranked for each in trial.params}))
            fix = f"leave it out, or sweep one of its parameters: {theirs}"
            raise ConfigError([Problem(path, f"the study '{study.name}' shares no parameter with this sweep", fix)])
        notes: dict[str, str] = {}
        by_study.append(_best(space, ranked, notes))
        told = f"{counted(len(by_study[-1]), 'config')} of '{study.name}' first ({', '.join(shared)})"
        lines.append(told + "".join(f"; {name} {note}" for name, note in notes.items()))
        if takes_prior and len(study.storage.get_study_directions(study.id)) == 1:
            warm.prior += [(inside, rank) for trial, rank in ranked if (inside := _translated(space, trial.params, {}, clips=False))]
    warm.first = [each[place] for place in range(BEST_OF_EACH) for each in by_study if place < len(each)]
    warm.prior.sort(key=lambda pair: pair[1])
    of_prior = f"; {min(len(warm.prior), PRIOR_TRIALS)} of {counted(len(warm.prior), 'result')} are a prior" if warm.prior else ""
    warm.told = f"warm start: {'; '.join(lines)}{of_prior}" if lines else ""
    return warm


def _ranked(study: FoundStudy) -> list[tuple[FrozenTrial, float]]:
    """Return the trials with a result, the best first, with their ranks; those that were pruned come last, a front of several first."""
    names = ["minimize" if each.name == "MINIMIZE" else "maximize" for each in study.storage.get_study_directions(study.id)]
    trials = study.storage.get_all_trials(study.id, deepcopy=False)
    results = Results(names)  # type: ignore[arg-type]
    for trial in trials:
        results.add(trial)
    if not results.best:
        return []
    sign = 1.0 if names[0] == "minimize" else -1.0

    def place(trial: FrozenTrial) -> tuple[bool, float]:
        return trial.state is not TrialState.COMPLETE, sign * trial.values[0]

    searched = [trial for trial in trials if TrialEntry(trial).finalist is None]  # the others repeat the best of these
    told = [trial for trial in searched if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and trial.values]
    sound = [trial for trial in told if math.isfinite(trial.values[0]) and all(value <= 0 for value in trial.constraints.values())]
    best = sorted(sound, key=place) if len(names) == 1 else results.best
    return [(trial, index / max(1, len(best) - 1)) for index, trial in enumerate(best)]


def _path(name: str) -> str:
    """Return the dotted key of a parameter's name, which may have the condition of its branch behind it."""
    return name.partition(" [")[0]


def _shared(space: Space, trials: Sequence[FrozenTrial]) -> list[str]:
    theirs = {_path(name) for trial in trials for name in trial.params}
    return list(dict.fromkeys(parameter.path for parameter in space.all_parameters() if parameter.path in theirs))


def _best(space: Space, ranked: Sequence[tuple[FrozenTrial, float]], notes: dict[str, str]) -> list[Assignment]:
    """Return the best distinct configs in terms of the space, and note which values are changed or left out."""
    best: dict[str, Assignment] = {}
    for trial, _ in ranked:
        if len(best) == BEST_OF_EACH:
            break
        if assignment := _translated(space, trial.params, notes, clips=True):
            best.setdefault(repr(sorted(assignment.items())), assignment)
    return list(best.values())


def _translated(space: Space, params: Mapping[str, Any], notes: dict[str, str], *, clips: bool) -> Assignment:
    """Return the values of an earlier trial that the space takes.

    Args:
        space: what is searched now.
        params: values of the earlier trial, by name.
        notes: gets what is changed, by parameter.
        clips: whether a number outside of a range becomes the nearest bound; if not, it is left out.
    """
    by_path = {_path(name): value for name, value in params.items()}
    assignment: Assignment = {}
    complete: Assignment = {}
    for parameter in space.active(complete):
        value = params.get(parameter.name, by_path.get(parameter.path))
        if parameter.name in params or parameter.path in by_path:
            inside, taken = _taken(parameter, value, clips=clips)
            if inside:
                assignment[parameter.name] = taken
            if not inside or taken != value:
                notes.setdefault(parameter.path, f"{value} {_CLIPPED if inside else _LEFT_OUT}")
        complete[parameter.name] = assignment.get(parameter.name, _any(parameter.domain, np.random.default_rng(0)))
    return assignment


def _taken(parameter: Parameter, value: Scalar, *, clips: bool) -> tuple[bool, Scalar]:
    """Return whether a parameter takes a value, and the value as the study stores it."""
    domain = parameter.domain
    if isinstance(domain, Choice):
        stored = [label for label in domain.labels if type(label) is type(value) and label == value]
        return (True, stored[0]) if stored else label_of(parameter, value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return False, None
    if value in domain:
        return True, domain.number(value)
    return (True, _nearest(domain, value)) if clips else (False, None)


def _nearest(domain: Range, value: float) -> int | float:
    clipped = min(max(value, domain.low), domain.high)
    if domain.step:
        clipped = domain.low + round((clipped - domain.low) / domain.step) * domain.step
        clipped = clipped if clipped <= domain.high else clipped - domain.step
    return domain.number(clipped)


def _any(domain: Domain, rng: np.random.Generator) -> Scalar:
    """Return a value drawn from a domain as a random search draws it."""
    if isinstance(domain, Choice):
        return domain.labels[int(rng.integers(len(domain.labels)))]
    if domain.enumerable:
        return domain.values()[int(rng.integers(len(domain)))]
    low, high = (math.log(domain.low), math.log(domain.high)) if domain.log else (domain.low, domain.high)
    drawn = float(rng.uniform(low, high))
    return _nearest(domain, math.exp(drawn) if domain.log else drawn)


class Prior:
    """Results of earlier studies as observations for a sampler, fewer and fewer as own results come.

    Their values are those of own trials of the same rank, for a WER on other data is on another scale. Parameters that an earlier study
    did not have get random values, so that they say nothing about these.

    Args:
        found: results as (assignment, rank), by rank.
        space: what is searched.
        distributions: Optuna's distribution of each parameter, by name.
    """

    def __init__(self, found: Sequence[tuple[Assignment, float]], space: Space, distributions: Mapping[str, BaseDistribution]) -> None:
        rng = np.random.default_rng(0)
        self._found = [(_completed(space, assignment, rng), rank) for assignment, rank in found]
        self._distributions = distributions

    def size(self, own: int) -> int:
        """Return how many results the sampler sees beside so many own ones."""
        return min(len(self._found), round(PRIOR_TRIALS / (1 + own / HALVED_BY)))

    def observations(self, own: Sequence[FrozenTrial], *, minimize: bool) -> list[FrozenTrial]:
        """Return the results as trials, spread evenly over the ranks, the best among them.

        Args:
            own: trials of the study itself.
            minimize: direction of its objective.
        """
        complete = [trial for trial in own if trial.state is TrialState.COMPLETE and math.isfinite(trial.values[0])]
        values = sorted((trial.values[0] for trial in complete), reverse=not minimize)
        met = {name: 0.0 for trial in complete for name in trial.constraints}
        count = self.size(sum(trial.state.is_finished() for trial in own))
        chosen = [self._found[round(place * (len(self._found) - 1) / max(1, count - 1))] for place in range(count)]
        return [
            optuna.create_trial(
                value=_value(values, rank, minimize=minimize),
                params=assignment,
                distributions={name: self._distributions[name] for name in assignment},
                constraints=met,
            )
            for assignment, rank in chosen
        ]


def _completed(space: Space, assignment: Assignment, rng: np.random.Generator) -> Assignment:
    complete: Assignment = {}
    for parameter in space.active(complete):
        complete[parameter.name] = assignment[parameter.name] if parameter.name in assignment else _any(parameter.domain, rng)
    return complete


def _value(values: Sequence[float], rank: float, *, minimize: bool) -> float:
    """Return the own value of a rank, between its neighbours; before there are two, the rank itself."""
    if len(values) < 2:
        return rank if minimize else -rank
    place = rank * (len(values) - 1)
    below = min(int(place), len(values) - 2)
    return values[below] + (place - below) * (values[below + 1] - values[below])
