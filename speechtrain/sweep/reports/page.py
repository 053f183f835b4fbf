"""Makes the report of a sweep: an HTML page with figures, a sentence on each, a table of all trials and the cost.

`recorder.py` asks for it; `figures.py` draws.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from speechtrain.console import format_metric
from speechtrain.errors import counted
from speechtrain.files import write_text
from speechtrain.report.pages import render
from speechtrain.sweep.reports import figures
from speechtrain.sweep.reports.figures import Objective, Parameter
from speechtrain.sweep.reports.finalists import race_rows, verdict_of
from speechtrain.sweep.reports.importance import RESAMPLINGS, importances
from speechtrain.sweep.reports.savings import TrialCost, costs_of
from speechtrain.sweep.reports.status import StatusReader
from speechtrain.sweep.study.attributes import TrialEntry
from speechtrain.sweep.study.cost import total_cost, trial_table
from speechtrain.sweep.study.race_plan import RACE
from speechtrain.sweep.study.results import Results, meets_constraints
from speechtrain.sweep.study.storage import open_storage

_MOST_PARAMETERS = 12
_MOST_EQUAL = 5
"""Trials that are named where several are equal."""


@dataclass(frozen=True)
class Section:
    """A figure of the page, with its heading and what to read from it."""

    heading: str
    sentence: str
    figure: str


def sweep_page(study: optuna.Study, objectives: Sequence[str], state: str = "") -> str:
    """Return the page; figures that cannot be drawn from these trials are left out.

    Args:
        study: the study.
        objectives: names of the metrics.
        state: whether it runs, or why it has ended, in words.
    """
    trials = study.get_trials(deepcopy=False)
    results = Results(["minimize" if direction.name == "MINIMIZE" else "maximize" for direction in study.directions])
    for trial in trials:
        results.add(trial)
    names = list(objectives) or ["value"]
    metrics = [
        Objective(name, direction.name == "MINIMIZE", index)
        for index, (name, direction) in enumerate(zip(names, study.directions, strict=False))
    ]
    costs, is_cpu = costs_of(trials)
    race = study.user_attrs.get(RACE)
    best = results.best[:10]
    if race is not None and race["winner"] is not None:
        best = [trial for trial in trials if trial.number == race["winner"]]
    return render(
        "sweep.html.j2",
        title=f"Sweep {study.study_name}",
        goal=", ".join(f"{direction.name.lower()} {name}" for name, direction in zip(names, study.directions, strict=False)),
        cost=total_cost(trials),
        saved=_saved(costs, is_cpu=is_cpu),
        running=sum(not trial.state.is_finished() for trial in trials),
        state=state,
        race=None if race is None else {"verdict": verdict_of(race), "rows": race_rows(race, names[0]), "winner": race["winner"]},
        all_equal=results.all_equal and (race is None or race["winner"] is None),
        ties=_ties(trials, results),
        best=[
            {
                "number": trial.number,
                "values": [format_metric(metric.name, trial.values[metric.index]) for metric in metrics],
                "params": dict(trial.params),
            }
            for trial in best
        ],
        objectives=names,
        table=trial_table(trials, names),
        metric=format_metric,
        sections=list(_sections(study, trials, results, metrics, costs, is_cpu=is_cpu)),
        made=f"{datetime.now(tz=UTC):%Y-%m-%d %H:%M} UTC",
    )


def _sections(
    study: optuna.Study,
    trials: Sequence[FrozenTrial],
    results: Results,
    metrics: Sequence[Objective],
    costs: Sequence[TrialCost],
    *,
    is_cpu: bool,
) -> Iterator[Section]:
    """Yield the sections whose figures can be drawn."""
    searched = [trial for trial in trials if TrialEntry(trial).finalist is None]
    complete = [trial for trial in searched if trial.state is TrialState.COMPLETE]
    swept = list(dict.fromkeys(name for trial in complete for name in trial.params))
    shares = [importances(complete, metric.index) for metric in metrics]
    makers: list[Callable[[], Section]] = []
    if len(metrics) == 1 and complete:
        objective = metrics[0]
        ranked = sorted(swept, key=lambda name: -shares[0].get(name, (0.0, 0.0, 0.0))[0])[:_MOST_PARAMETERS]
        parameters = [Parameter(name, complete) for name in ranked]
        makers += [
            lambda: _history(complete, results, objective),
            lambda: Section("Intermediate values", _of_curves(searched), figures.curves(searched, objective, objective.label)),
            lambda: _importance("Importance", objective, shares[0]),
            lambda: Section("Parallel coordinates", _OF_PARALLEL, figures.parallel(complete, parameters, objective)),
            lambda: Section("Slices", _OF_SLICES, figures.slices(complete, parameters, objective)),
            lambda: _contours(complete, parameters, objective),
            lambda: _distribution(complete, objective),
        ]
    elif complete:
        pairs = list(itertools.combinations(metrics, 2))[:3]
        text = f"{counted(len(results.best), 'trial')} of {len(complete)} {'is' if len(results.best) == 1 else 'are'} on the front: "
        text += "no other is better in one objective and as good in all."
        makers += [
            lambda: Section("Pareto front", text, figures.front(complete, results.best, pairs)),
            lambda: _hypervolume(study, complete, metrics),
            *(lambda metric=metric: _importance(f"Importance for {metric.name}", metric, shares[metric.index]) for metric in metrics),
        ]
    makers += [
        lambda: _cost(costs, is_cpu=is_cpu),
        lambda: Section("Timeline", "Each line is a trial; gaps are time in which a worker had none.", figures.timeline(trials)),
    ]
    for make in makers:
        try:
            section = make()
        except Exception:  # too few trials, one value only: each figure has its own conditions
            continue
        if section.figure:
            yield section


_OF_PARALLEL = (
    "Each line is a complete trial, from blue (worst) to orange (best); the thick one is the best. Where the orange lines meet on an axis, "
    "that value matters."
)
_OF_SLICES = (
    "Each dot is a complete trial, from blue (the first) to orange (the last); the ring is the best. A slope or a valley shows what a "
    "parameter does, an even cloud that it does little."
)


def _history(complete: Sequence[FrozenTrial], results: Results, objective: Objective) -> Section:
    best = objective.best(complete)
    after = sum(trial.number > best.number for trial in complete)
    value = format_metric(objective.name, best.values[objective.index])
    if results.all_equal:
        sentence = f"All complete trials have {value}."
    else:
        sentence = (
            f"The best value, {value}, came with trial {best.number}; {counted(after, 'complete trial')} after it brought nothing better."
        )
    return Section("History", sentence, figures.history(complete, objective))


def _of_curves(trials: Sequence[FrozenTrial]) -> str:
    reported = [trial for trial in trials if trial.intermediate_values]
    pruned = sum(trial.state is TrialState.PRUNED for trial in reported)
    ends = f"{pruned} {'was' if pruned == 1 else 'were'} pruned, and {'its line ends' if pruned == 1 else 'their lines end'} early"
    return f"What {counted(len(reported), 'trial')} reported; {ends}."


def _importance(heading: str, objective: Objective, shares: dict[str, tuple[float, float, float]]) -> Section:
    if not shares:
        return Section(heading, "", "")
    (first, (middle, low, high)), *others = shares.items()
    sentence = (
        f"{first} explains {100 * middle:.0f} % of the differences in {objective.name} ({100 * low:.0f} to {100 * high:.0f} % in "
        f"{RESAMPLINGS} resamplings of the trials, fANOVA)"
    )
    if others and others[0][1][2] >= low:
        sentence += f"; its line overlaps that of {others[0][0]}, so which of both matters more is not settled"
    return Section(heading, f"{sentence}.", figures.importance(shares))


def _contours(complete: Sequence[FrozenTrial], parameters: Sequence[Parameter], objective: Objective) -> Section:
    numeric = [
        each for each in parameters if each.choices is None and len({each.at(trial) for trial in complete if each.name in trial.params}) > 2
    ]
    pairs = list(itertools.combinations(numeric[:3], 2))
    having = [trial for trial in complete if all(each.name in trial.params for each in numeric[:3])]
    if not pairs or len(having) < 8:
        return Section("Contours", "", "")
    sentence = "The objective between the trials (dots), for the parameters that matter most; where no dot is near, the colour is a guess."
    return Section("Contours", sentence, figures.contours(having, pairs, objective))


def _distribution(complete: Sequence[FrozenTrial], objective: Objective) -> Section:
    if len(complete) < 3:
        return Section("Distribution of values", "", "")
    values = sorted(trial.values[objective.index] for trial in complete)
    middle = format_metric(objective.name, values[len(values) // 2])
    sentence = (
        f"Half of the complete trials are up to {middle}. A steep rise at the better end: many settings are about as good as the best."
    )
    return Section("Distribution of values", sentence, figures.distribution(complete, objective))


def _hypervolume(study: optuna.Study, complete: Sequence[FrozenTrial], metrics: Sequence[Objective]) -> Section:
    from optuna.visualization import plot_hypervolume_history

    worst = [(max if metric.minimize else min)(trial.values[metric.index] for trial in complete) for metric in metrics]
    (trace,) = plot_hypervolume_history(study, worst).data
    if not trace.y[-1]:
        return Section("Hypervolume", "", "")
    points = [(int(number), 100 * float(volume) / float(trace.y[-1])) for number, volume in zip(trace.x, trace.y, strict=True)]
    reached = next(number for number, share in points if share >= 99)
    sentence = f"The volume between the front and the worst values of all trials; trial {reached} had brought 99 % of it."
    return Section("Hypervolume", sentence, figures.hypervolume(points))


def _cost(costs: Sequence[TrialCost], *, is_cpu: bool) -> Section:
    if not any(each.seconds for each in costs):
        return Section("Cost of each trial", "", "")
    dearest = max(costs, key=lambda each: each.seconds)
    sentence = f"The dearest was trial {dearest.trial.number} with {dearest.seconds:,.1f} s. {_saved(costs, is_cpu=is_cpu)}."
    return Section("Cost of each trial", sentence, figures.cost(costs, is_cpu=is_cpu))


def _saved(costs: Sequence[TrialCost], *, is_cpu: bool) -> str:
    """Return in words what pruning has saved, against the full length of all trials that began."""
    pruned = [each for each in costs if each.unspent]
    if not pruned:
        return "Nothing was saved by pruning"
    seconds, spent = sum(each.unspent for each in pruned), sum(each.seconds for each in costs)
    steps, planned = sum(each.planned - each.steps for each in pruned), sum(each.planned for each in costs)
    kind = "CPU time" if is_cpu else "the trials' time"
    return (
        f"Pruning saved {steps:,.0f} of {planned:,.0f} epochs, and with them {100 * seconds / (seconds + spent):.0f} % of {kind}: "
        f"{seconds / 3600:.3f} h at the pace of what was run"
    )


def _ties(trials: Sequence[FrozenTrial], results: Results) -> list[int]:
    """Return the numbers of the trials that are as good as the best one of one objective, with it; none where it is alone."""
    if len(results.best) != 1 or results.all_equal:
        return []
    value = results.best[0].values
    equal = [
        trial.number
        for trial in trials
        if trial.state is TrialState.COMPLETE and trial.values == value and meets_constraints(trial) and TrialEntry(trial).finalist is None
    ]
    return equal[:_MOST_EQUAL] if len(equal) > 1 else []


def write_page(path: Path, storage: str, study_name: str, objectives: Sequence[str]) -> None:
    """Write the page of a study, which is read from the storage of a URL."""
    warnings.simplefilter("ignore")
    opened = open_storage(storage)
    study = optuna.load_study(study_name=study_name, storage=opened)
    status = StatusReader(opened, opened.get_study_id_from_name(study_name), study_name, storage).read()
    write_text(path, sweep_page(study, objectives, f"{status.state}: {status.words}"))
