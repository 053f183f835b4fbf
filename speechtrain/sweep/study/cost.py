"""What the trials of a sweep have cost, what pruning has saved, and a table of all trials for reports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from speechtrain.sweep.study.attributes import TrialEntry

COST = "cost"
"""User attribute of a trial: CPU seconds, GPU seconds where there are any, audio seconds, epochs that it ran and was to run."""
REPORTED = "last report"
"""Column of `trial_table` with what a trial reported last."""
_STATE_NAMES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


@dataclass
class SweepCost:
    """Sums over the finished trials of a sweep, kept up to date trial by trial.

    Attributes:
        counts: number of trials that are complete, pruned and failed; one that paused and was continued is not counted as pruned.
        wall_hours: time from start to end, summed over trials.
        cpu_hours: CPU time of the processes that ran them.
        audio_hours: audio trained on; an utterance counts in each epoch.
        saved_hours: time that the pruned trials would have taken for their other epochs, at the pace of those they ran.
    """

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_STATE_NAMES.values(), 0))
    wall_hours: float = 0.0
    cpu_hours: float = 0.0
    audio_hours: float = 0.0
    saved_hours: float = 0.0
    _saved_by_pauses: dict[int, float] = field(default_factory=dict)

    def add(self, trial: FrozenTrial) -> None:
        """Take in the cost of a finished trial."""
        entry = TrialEntry(trial)
        if entry.retry_of in self._saved_by_pauses and not entry.is_surplus:
            self.saved_hours -= self._saved_by_pauses.pop(entry.retry_of)
            self.counts["pruned"] -= 1
        self.counts[_STATE_NAMES[trial.state]] += 1
        hours = trial.duration.total_seconds() / 3600 if trial.duration is not None else 0.0
        cost: dict[str, Any] = trial.user_attrs.get(COST, {})
        self.wall_hours += hours
        self.cpu_hours += float(cost.get("cpu_s", 0.0)) / 3600
        self.audio_hours += float(cost.get("audio_s", 0.0)) / 3600
        ran, planned = float(cost.get("epochs", 0)), float(cost.get("planned_epochs", 0))
        done = entry.paused_at or ran
        saved = hours * (planned - done) / ran if trial.state is TrialState.PRUNED and ran > 0 and done < planned else 0.0
        self.saved_hours += saved
        if entry.paused_at is not None:
            self._saved_by_pauses[trial.number] = saved


def total_cost(trials: Iterable[FrozenTrial]) -> SweepCost:
    """Sum the cost of the trials that are finished."""
    cost = SweepCost()
    for trial in trials:
        if trial.state.is_finished():
            cost.add(trial)
    return cost


def reasons_of(trials: Sequence[FrozenTrial]) -> list[str | None]:
    """Return for each trial why it failed, was pruned or paused, by which trial one that paused is continued, and which finalist it was.

    It is None for the others.
    """
    entries = [TrialEntry(trial) for trial in trials]
    continued = {entry.retry_of: entry.number for entry in entries if entry.retry_of is not None and not entry.is_surplus}
    reasons = []
    for entry in entries:
        reason = entry.trial.user_attrs.get("reason")
        if entry.paused_at is not None:
            by = f", continued by trial {continued[entry.number]}" if entry.number in continued else ""
            reason = f"paused: {reason}{by}"
        if (finalist := entry.finalist) is not None:
            reason = f"finalist: trial {finalist[0]} with {finalist[1]}={finalist[2]}{f'; {reason}' if reason else ''}"
        reasons.append(reason)
    return reasons


def trial_table(trials: Sequence[FrozenTrial], objectives: Sequence[str], parameters: Sequence[str] | None = None) -> dict[str, list[Any]]:
    """Return one row for each trial, as a list for each column.

    What trials reported last to the pruner has a column of its own, as it may be another metric than the objective, or one of fewer epochs.

    Args:
        trials: the trials, in the order of the rows.
        objectives: names of the objectives, which complete trials alone have.
        parameters: names of the parameters; None: those that the trials have.
    """
    names = list(dict.fromkeys(name for trial in trials for name in trial.params)) if parameters is None else list(parameters)
    reported = [REPORTED] if any(trial.intermediate_values for trial in trials) else []
    columns: dict[str, list[Any]] = {name: [] for name in ("trial", "state", *objectives, *reported, "seconds", *names, "reason", "run")}
    for trial, reason in zip(trials, reasons_of(trials), strict=True):
        values = list(trial.values) if trial.state is TrialState.COMPLETE else []
        row: dict[str, Any] = {"trial": trial.number, "state": trial.state.name.lower()}
        row |= {name: values[index] if index < len(values) else None for index, name in enumerate(objectives)}
        row[REPORTED] = trial.intermediate_values[trial.last_step] if trial.last_step is not None else None
        row["seconds"] = round(trial.duration.total_seconds(), 1) if trial.duration is not None else None
        row |= {name: trial.params.get(name) for name in names}
        row |= {"reason": reason, "run": trial.user_attrs.get("run", {}).get("mlflow_run_id")}
        for name, column in columns.items():
            column.append(row[name])
    return columns
