"""When a study has had enough: a goal is reached, no improvement is expected, or a budget is used up.

Everything follows from the trials in the storage, whichever command or machine ran them, so that the same command given again comes to the
same answer, and one with a higher budget goes on. `sweeper.py` asks after each change.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from optuna.trial import FrozenTrial, TrialState

from speechtrain.config.schemas.sweeps import StopWhen
from speechtrain.config.targets import Direction
from speechtrain.console import format_metric
from speechtrain.sweep.study.attributes import BEAT, TrialEntry
from speechtrain.sweep.study.cost import COST

FEWEST_TRIALS = 20
"""Trials with a result before `no_improvement` may end a study."""


class StopRule:
    """Says whether a study has had enough, and why; it is kept up to date trial by trial.

    Args:
        conditions: `hydra.sweeper.stop_when`.
        directions: direction of each objective.
        metric: name of the first objective; empty for a program that returns its value.
        patience: seconds without a heartbeat after which a trial counts as dead.
    """

    def __init__(self, conditions: StopWhen, directions: Sequence[Direction], metric: str = "", *, patience: float = 300.0) -> None:
        self._conditions = conditions
        self._sign = 1.0 if directions[0] == "minimize" else -1.0
        self._metric = metric
        self._patience = patience
        self._counted = 0
        self._best: list[float] = []
        self._best_number = -1
        self._busy = Intervals()
        self._seconds = {"cpu": 0.0, "gpu": 0.0}

    def update(self, finished: Sequence[FrozenTrial]) -> None:
        """Take in the trials that have ended since the last call, at the end of a list of all that have."""
        for trial in finished[self._counted :]:
            self._add(trial)
        self._counted = len(finished)

    def _add(self, trial: FrozenTrial) -> None:
        if trial.datetime_start is not None:
            self._busy.add(trial.datetime_start.timestamp(), _end(trial, self._patience))
            for kind in self._seconds:
                self._seconds[kind] += _seconds_of(trial, kind, _end(trial, self._patience))
        if trial.state is TrialState.FAIL or TrialEntry(trial).finalist is not None:
            return
        best = self._best[-1] if self._best else math.inf
        meets = trial.state is TrialState.COMPLETE and all(value <= 0 for value in trial.constraints.values())
        cost = self._sign * trial.values[0] if meets else math.inf
        if cost < best:
            best, self._best_number = cost, trial.number
        self._best.append(best)

    def enough(self) -> str | None:
        """Return why the search need not go on: a goal or no improvement; None while it should."""
        return self._goal() or self._no_improvement()

    def used_up(self, running: Iterable[FrozenTrial] = ()) -> str | None:
        """Return which budget is used up, so that no trial of any kind is started; None while none is.

        Args:
            running: the trials that run, whose cost so far counts as well.
        """
        return self._budget([each for each in running if each.datetime_start is not None])

    def _goal(self) -> str | None:
        goal = self._conditions.goal
        if goal is None or not self._best or self._best[-1] > self._sign * goal:
            return None
        value = format_metric(self._metric, self._sign * self._best[-1])
        return f"the goal is reached: {value} of trial {self._best_number}, wanted {format_metric(self._metric, goal)}"

    def _no_improvement(self) -> str | None:
        """Compare the best of all trials with that of their first half: what twice the trials gained, twice as many may gain again."""
        least, count = self._conditions.no_improvement, len(self._best)
        if least is None or count < FEWEST_TRIALS or math.isinf(before := self._best[count // 2 - 1]):
            return None
        gain = (before - self._best[-1]) / abs(before) if before else math.inf
        if before != self._best[-1] and gain >= least:
            return None
        gained = 0.0 if before == self._best[-1] else gain
        return f"no improvement is expected: the second half of {count} trials made the best {gained:.2%} better, less than {least:.2%}"

    def _budget(self, running: Sequence[FrozenTrial]) -> str | None:
        now = datetime.now(tz=UTC).timestamp()
        starts = [each.datetime_start.timestamp() for each in running if each.datetime_start is not None]
        for kind, words in (("wall", "wall time"), ("cpu", "CPU time"), ("gpu", "GPU time")):
            most: float | None = getattr(self._conditions, f"{kind}_hours")
            if most is None:
                continue
            if kind == "wall":
                seconds = self._busy.length(starts, now)
            else:
                seconds = self._seconds[kind] + sum(_seconds_of(each, kind, now) for each in running)
            if seconds >= 3600 * most:
                return f"the budget is used up: {seconds / 3600:.3g} of {most:g} hours of {words}"
        return None


def _seconds_of(trial: FrozenTrial, kind: str, end: float) -> float:
    """Return the CPU or GPU seconds of a trial; one that has told nothing is taken for one busy core and no GPU."""
    cost = trial.user_attrs.get(COST, {})
    if (told := cost.get(f"{kind}_s")) is not None:
        return float(told)
    assert trial.datetime_start is not None
    return max(0.0, end - trial.datetime_start.timestamp()) if kind == "cpu" else 0.0


def _end(trial: FrozenTrial, patience: float) -> float:
    """Return when a trial ended, in seconds; one whose process died unseen ended with its last sign of life."""
    assert trial.datetime_start is not None
    start = trial.datetime_start.timestamp()
    end = trial.datetime_complete.timestamp() if trial.datetime_complete is not None else start
    last_sign = float(trial.system_attrs.get(BEAT, start))
    unseen = trial.state is TrialState.FAIL and not TrialEntry(trial).charged and end - last_sign > patience
    return max(start, last_sign if unseen else end)


class Intervals:
    """The union of intervals of time, kept up to date interval by interval."""

    def __init__(self) -> None:
        self._starts: list[float] = []
        self._ends: list[float] = []
        self._length = 0.0

    def add(self, start: float, end: float) -> None:
        """Take in an interval, which may overlap others."""
        first, last = bisect_left(self._ends, start), bisect_right(self._starts, end)
        if first < last:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
            self._length -= math.fsum(self._ends[first:last]) - math.fsum(self._starts[first:last])
        self._starts[first:last], self._ends[first:last] = [start], [end]
        self._length += end - start

    def length(self, open_since: Sequence[float] = (), now: float = 0.0) -> float:
        """Return the length of the union of all intervals and of those that began at `open_since` and last until now."""
        if not open_since:
            return self._length
        start = min(open_since)
        first = bisect_left(self._ends, start)
        if first == len(self._ends):
            return self._length + max(0.0, now - start)
        within = math.fsum(self._ends[first:]) - math.fsum(self._starts[first:])
        return self._length - within + max(now, self._ends[-1]) - min(start, self._starts[first])
