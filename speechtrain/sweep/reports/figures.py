"""The figures of a sweep's page, drawn by Matplotlib as SVG: they need no script, work offline, and take the colours of the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter
from matplotlib.tri import Triangulation
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from speechtrain.console import is_rate
from speechtrain.report.figures import COLOURS, STYLE, svg
from speechtrain.sweep.reports.savings import TrialCost

_INK = "#1c2733"
"""The colour of text and axes, which becomes that of the page's text, light or dark."""
_INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
_PAGE = (
    STYLE
    | dict.fromkeys(_INKED, _INK)
    | {"text.parse_math": False, "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none"}
)
_BY_STATE = {TrialState.COMPLETE: COLOURS[0], TrialState.PRUNED: COLOURS[1], TrialState.FAIL: COLOURS[6]}
_WORDS = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
_BEST = COLOURS[2]
_SHADES = LinearSegmentedColormap.from_list("blue to orange", [COLOURS[0], "#9a5fa0", COLOURS[1]])
"""The colours of an order, which are seen on a light and on a dark page."""
_COUNTED = ("epoch", "number of the trial")
_ABOVE: Any = {"fontsize": 8, "loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 4}
"""The place of a legend, where it covers nothing."""
_MOST_CURVES = 300


@dataclass(frozen=True)
class Objective:
    """An objective as a page shows it: rates in per cent.

    Attributes:
        name: name of the metric.
        minimize: whether less is better.
        index: its number among the objectives.
    """

    name: str
    minimize: bool
    index: int = 0

    @property
    def label(self) -> str:
        """Return the title of an axis with its values."""
        return f"{self.name}, %" if is_rate(self.name) else self.name

    def of(self, trial: FrozenTrial) -> float:
        """Return the value of a trial in the unit of the axis."""
        return self.scaled(trial.values[self.index])

    def scaled(self, value: float) -> float:
        """Return a value in the unit of the axis."""
        return 100 * value if is_rate(self.name) else value

    def best(self, trials: Sequence[FrozenTrial]) -> FrozenTrial:
        """Return the best of some trials, the first of equal ones."""
        return (min if self.minimize else max)(trials, key=lambda trial: trial.values[self.index])


class Parameter:
    """A swept parameter as an axis: numbers where they are, choices in the order of their list.

    Args:
        name: its name in the study.
        trials: trials that have it.
    """

    def __init__(self, name: str, trials: Sequence[FrozenTrial]) -> None:
        self.name = name
        distribution: BaseDistribution = next(trial.distributions[name] for trial in trials if name in trial.params)
        self.choices = list(distribution.choices) if isinstance(distribution, CategoricalDistribution) else None
        self.is_log = bool(getattr(distribution, "log", False))

    def at(self, trial: FrozenTrial) -> float:
        """Return the place of a trial on the axis."""
        value = trial.params[self.name]
        return float(self.choices.index(value)) if self.choices is not None else float(value)

    def even(self, trial: FrozenTrial) -> float:
        """Return the place of a trial where equal distances mean equal steps, for a logarithmic parameter too."""
        return math.log10(self.at(trial)) if self.is_log else self.at(trial)

    def scale(self, axis: Any, set_scale: Any) -> None:
        """Give an axis the scale, the ticks and the title of the parameter."""
        if self.choices is not None:
            axis.set_ticks(range(len(self.choices)), [str(choice)[:14] for choice in self.choices])
        elif self.is_log:
            set_scale("log")
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
        axis.set_label_text(f"{self.name}{' (log)' if self.is_log else ''}")


def drawn(figure: Figure) -> str:
    """Return a figure as an element of the page, in the colour of its text."""
    return svg(figure).replace(_INK, "currentColor")


def history(trials: Sequence[FrozenTrial], objective: Objective) -> str:
    """Draw each complete trial's value by its number, and the best so far."""
    better = min if objective.minimize else max
    values = [objective.of(trial) for trial in trials]
    figure, axes = _single()
    axes.plot([trial.number for trial in trials], values, "o", markersize=4, color=COLOURS[0], alpha=0.7, label="trial")
    axes.step([trial.number for trial in trials], list(accumulate(values, better)), where="post", color=_BEST, label="best so far")
    return _finish(figure, axes, "number of the trial", objective.label, legend=True)


def curves(trials: Sequence[FrozenTrial], objective: Objective, label: str) -> str:
    """Draw what trials reported, epoch by epoch from 1 on; that of the best trial is thick."""
    reported = [trial for trial in trials if trial.intermediate_values][-_MOST_CURVES:]
    if not reported:
        return ""
    figure, axes = _single()
    complete = [trial for trial in reported if trial.state is TrialState.COMPLETE]
    best = objective.best(complete) if complete else None
    for trial in reported:
        steps, values = zip(*sorted(trial.intermediate_values.items()), strict=True)
        is_best = trial is best
        colour = _BEST if is_best else _BY_STATE.get(trial.state, COLOURS[7])
        shown = [objective.scaled(value) for value in values]
        axes.plot(
            [step + 1 for step in steps],
            shown,
            color=colour,
            linewidth=2.5 if is_best else 0.9,
            alpha=1 if is_best else 0.55,
            marker="." if len(steps) < 3 else None,
        )
    _state_legend(axes, {trial.state for trial in reported}, [("best trial", _BEST)] if best is not None else [])
    return _finish(figure, axes, "epoch", label)


def importance(shares: Mapping[str, tuple[float, float, float]]) -> str:
    """Draw the share that each parameter explains, with the range over resamplings."""
    names = list(shares)[::-1]
    with rc_context(_PAGE):
        figure = Figure(figsize=(7.5, 0.9 + 0.32 * len(names)))
        axes = figure.add_subplot()
    middle = [100 * shares[name][0] for name in names]
    spread = [[100 * (shares[name][0] - shares[name][1]) for name in names], [100 * (shares[name][2] - shares[name][0]) for name in names]]
    axes.barh(names, middle, xerr=spread, color=COLOURS[0], height=0.65, ecolor=COLOURS[1], capsize=3)
    axes.set_xlim(0, max(100.0, axes.get_xlim()[1]))
    return _finish(figure, axes, "share of the variance explained, % (bar: median, line: lowest to highest)", "")


def parallel(trials: Sequence[FrozenTrial], parameters: Sequence[Parameter], objective: Objective) -> str:
    """Draw each trial as a line through its values, from blue (worst) to orange (best); the axis on the right is the objective."""
    having = [trial for trial in trials if all(parameter.name in trial.params for parameter in parameters)]
    ranked = sorted(having, key=objective.of, reverse=objective.minimize)[-_MOST_CURVES:]
    columns = [[parameter.even(trial) for trial in ranked] for parameter in parameters]
    columns.append([objective.of(trial) for trial in ranked])
    with rc_context(_PAGE):
        figure = Figure(figsize=(10.5, 3.8))
        axes = figure.add_subplot()
    bounds = [(min(column), max(column)) for column in columns]
    places = [
        [(value - low) / (high - low) if high > low else 0.5 for value in column]
        for column, (low, high) in zip(columns, bounds, strict=True)
    ]
    colours = _SHADES(np.linspace(0, 1, len(ranked)))
    for row in range(len(ranked)):
        is_best = row == len(ranked) - 1
        axes.plot(
            range(len(columns)),
            [column[row] for column in places],
            color=_BEST if is_best else colours[row],
            linewidth=2.5 if is_best else 0.9,
            alpha=1 if is_best else 0.6,
        )
    for place, (parameter, column) in enumerate(zip([*parameters, None], columns, strict=True)):
        axes.axvline(place, color=_INK, linewidth=0.8)
        for end, text in zip((0.0, 1.0), _ends(parameter, column), strict=True):
            axes.text(place, end + (0.03 if end else -0.03), text, ha="center", va="bottom" if end else "top", fontsize=8, color=_INK)
    names = [f"{parameter.name}{' (log)' if parameter.is_log else ''}" for parameter in parameters]
    axes.set_xticks(
        range(len(columns)),
        [*names, objective.label],
        fontsize=8,
        rotation=20 if len(names) > 5 else 0,
        ha="right" if len(names) > 5 else "center",
    )
    axes.tick_params(axis="x", pad=16, length=0)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return drawn(figure)


def slices(trials: Sequence[FrozenTrial], parameters: Sequence[Parameter], objective: Objective) -> str:
    """Draw the objective over each parameter by itself, from blue (first trials) to orange (last)."""
    columns = min(4, len(parameters))
    rows = -(-len(parameters) // columns)
    best = objective.best(trials)
    with rc_context(_PAGE):
        figure = Figure(figsize=(2.75 * columns, 2.5 * rows))
        for place, parameter in enumerate(parameters, start=1):
            axes = figure.add_subplot(rows, columns, place)
            having = [trial for trial in trials if parameter.name in trial.params]
            shades = _SHADES(np.linspace(0, 1, len(having)))
            axes.scatter(
                [parameter.at(trial) for trial in having],
                [objective.of(trial) for trial in having],
                s=12,
                color=shades,
            )
            if parameter.name in best.params:
                axes.plot([parameter.at(best)], [objective.of(best)], "o", markersize=8, fillstyle="none", color=_BEST)
            parameter.scale(axes.xaxis, axes.set_xscale)
            if (place - 1) % columns == 0:
                axes.set_ylabel(objective.label)
        figure.tight_layout()
    return drawn(figure)


def contours(trials: Sequence[FrozenTrial], pairs: Sequence[tuple[Parameter, Parameter]], objective: Objective) -> str:
    """Draw the objective over pairs of parameters, between the trials that were run."""
    with rc_context(_PAGE):
        figure = Figure(figsize=(3.6 * len(pairs), 3.1))
        for place, (first, second) in enumerate(pairs, start=1):
            axes = figure.add_subplot(1, len(pairs), place)
            values = [objective.of(trial) for trial in trials]
            x, y = [first.at(trial) for trial in trials], [second.at(trial) for trial in trials]
            triangles = Triangulation([first.even(trial) for trial in trials], [second.even(trial) for trial in trials]).triangles
            low, high = float(np.quantile(values, 0)), float(np.quantile(values, 0.9))
            levels = np.linspace(low, high if high > low else low + 1, 10)
            cmap = "viridis" if objective.minimize else "viridis_r"
            filled = axes.tricontourf(Triangulation(x, y, triangles), values, levels=levels, cmap=cmap, extend="both")
            axes.plot(x, y, ".", markersize=3, color=_INK)
            first.scale(axes.xaxis, axes.set_xscale)
            second.scale(axes.yaxis, axes.set_yscale)
            figure.colorbar(filled, ax=axes, label=objective.label)
        figure.tight_layout()
    return drawn(figure)


def distribution(trials: Sequence[FrozenTrial], objective: Objective) -> str:
    """Draw which share of the complete trials has a value up to each value."""
    values = sorted(objective.of(trial) for trial in trials)
    figure, axes = _single()
    axes.step([values[0], *values], [0, *(100 * (rank + 1) / len(values) for rank in range(len(values)))], where="post", color=COLOURS[0])
    axes.set_ylim(0, 103)
    return _finish(figure, axes, objective.label, "share of the complete trials, %")


def front(trials: Sequence[FrozenTrial], best: Sequence[FrozenTrial], pairs: Sequence[tuple[Objective, Objective]]) -> str:
    """Draw the objectives of all complete trials against each other, and those that no other trial beats in all."""
    with rc_context(_PAGE):
        figure = Figure(figsize=(max(5.5, 3.8 * len(pairs)), 3.4))
        for place, (first, second) in enumerate(pairs, start=1):
            axes = figure.add_subplot(1, len(pairs), place)
            axes.plot(
                [first.of(trial) for trial in trials],
                [second.of(trial) for trial in trials],
                "o",
                markersize=4,
                color=COLOURS[0],
                alpha=0.6,
                label="trial",
            )
            edge = sorted((first.of(trial), second.of(trial)) for trial in best)
            axes.plot(*zip(*edge, strict=True), "o-" if len(pairs) == 1 else "o", markersize=5, linewidth=0.8, color=_BEST, label="front")
            axes.set_xlabel(first.label)
            axes.set_ylabel(second.label)
            axes.legend(fontsize=8)
        figure.tight_layout()
    return drawn(figure)


def hypervolume(points: Sequence[tuple[int, float]]) -> str:
    """Draw the hypervolume that the front encloses after each trial, in per cent of the last one."""
    figure, axes = _single()
    axes.step(*zip(*points, strict=True), where="post", color=_BEST)
    axes.set_ylim(bottom=0)
    return _finish(figure, axes, "number of the trial", "hypervolume, % of the last")


def cost(costs: Sequence[TrialCost], *, is_cpu: bool) -> str:
    """Draw what each trial has cost, and on top of it what pruning has spared."""
    figure, axes = _single()
    numbers = [each.trial.number for each in costs]
    seconds = [each.seconds for each in costs]
    axes.bar(numbers, seconds, color=[_BY_STATE[each.trial.state] for each in costs], width=0.85)
    unspent = [(each.trial.number, each.seconds, each.unspent) for each in costs if each.unspent]
    if unspent:
        places, bottoms, heights = zip(*unspent, strict=True)
        axes.bar(places, heights, bottom=bottoms, width=0.85, color=COLOURS[1], alpha=0.22)
    _state_legend(axes, {each.trial.state for each in costs}, [("not spent", f"{COLOURS[1]}44")] if unspent else [])
    return _finish(figure, axes, "number of the trial", "CPU time, s" if is_cpu else "time from start to end, s")


def timeline(trials: Sequence[FrozenTrial]) -> str:
    """Draw when each trial ran."""
    ran = [(trial, trial.datetime_start, trial.datetime_complete) for trial in trials]
    spans = [(trial, start, end) for trial, start, end in ran if start is not None and end is not None]
    first = min(start for _, start, _ in spans)
    longest = max((end - first).total_seconds() for _, _, end in spans)
    unit, seconds = ("s", 1.0) if longest < 300 else ("min", 60.0) if longest < 3 * 3600 else ("h", 3600.0)
    figure, axes = _single()
    for trial, start, end in spans:
        left, right = ((moment - first).total_seconds() / seconds for moment in (start, end))
        axes.hlines(trial.number, left, right, color=_BY_STATE[trial.state], linewidth=max(1.0, min(5.0, 180 / len(spans))))
    axes.invert_yaxis()
    _state_legend(axes, {trial.state for trial, _, _ in spans}, [])
    return _finish(figure, axes, f"time since the first trial began, {unit}", "number of the trial")


def _single() -> tuple[Figure, Axes]:
    with rc_context(_PAGE):
        figure = Figure(figsize=(9.5, 3.3))
        return figure, figure.add_subplot()


def _finish(figure: Figure, axes: Axes, x: str, y: str, *, legend: bool = False) -> str:
    with rc_context(_PAGE):
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        if x in _COUNTED:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if legend:
            axes.legend(**_ABOVE)
        return drawn(figure)


def _state_legend(axes: Axes, states: set[TrialState], more: Sequence[tuple[str, str]]) -> None:
    with rc_context(_PAGE):
        for word, colour in [*((_WORDS[state], _BY_STATE[state]) for state in _WORDS if state in states), *more]:
            axes.plot([], [], color=colour, linewidth=4, label=word)
        axes.legend(**_ABOVE)


def _ends(parameter: Parameter | None, column: Sequence[float]) -> tuple[str, str]:
    """Return the lowest and the highest value on an axis of parallel coordinates, as text."""
    if parameter is not None and parameter.choices is not None:
        return str(parameter.choices[int(min(column))])[:14], str(parameter.choices[int(max(column))])[:14]
    low, high = (10**end if parameter is not None and parameter.is_log else end for end in (min(column), max(column)))
    return f"{low:.4g}", f"{high:.4g}"
