"""What the trials of a sweep have cost, and what ending some of them early has saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

COST = "cost"
"""User attribute of a trial: CPU seconds, seconds of audio, epochs that it ran and was to run."""
_WORDS = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


@dataclass(frozen=True)
class Cost:
    """Of all trials.

    Attributes:
        counts: trials that are complete, pruned, failed.
        wall_hours: summed over trials.
        cpu_hours: of the processes that ran them.
        audio_hours: that were trained on, each time an utterance was seen.
        saved_hours: that the pruned trials would have gone on, at the pace they had.
    """

    counts: dict[str, int]
    wall_hours: float
    cpu_hours: float
    audio_hours: float
    saved_hours: float


def costs(trials: Sequence[FrozenTrial]) -> Cost:
    """Of the finished trials."""
    counts = dict.fromkeys(_WORDS.values(), 0)
    wall = cpu = audio = saved = 0.0
    for trial in trials:
        if not trial.state.is_finished():
            continue
        counts[_WORDS[trial.state]] += 1
        took = trial.duration.total_seconds() if trial.duration is not None else 0.0
        spent: dict[str, Any] = trial.user_attrs.get(COST, {})
        wall += took
        cpu += float(spent.get("cpu_s", 0.0))
        audio += float(spent.get("audio_s", 0.0))
        ran, planned = float(spent.get("epochs", 0)), float(spent.get("planned_epochs", 0))
        if trial.state is TrialState.PRUNED and 0 < ran < planned:
            saved += took * (planned - ran) / ran
    return Cost(counts, wall / 3600, cpu / 3600, audio / 3600, saved / 3600)


def table(trials: Sequence[FrozenTrial], objectives: Sequence[str]) -> dict[str, list[Any]]:
    """A row a trial, by columns."""
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    columns: dict[str, list[Any]] = {name: [] for name in ("trial", "state", *objectives, "seconds", *names, "reason", "run")}
    for trial in trials:
        values = list(trial.values or [])
        row: dict[str, Any] = {"trial": trial.number, "state": trial.state.name.lower()}
        row |= {name: values[index] if index < len(values) else None for index, name in enumerate(objectives)}
        row["seconds"] = round(trial.duration.total_seconds(), 1) if trial.duration is not None else None
        row |= {name: trial.params.get(name) for name in names}
        row |= {"reason": trial.user_attrs.get("reason"), "run": trial.user_attrs.get("run", {}).get("mlflow_run_id")}
        for name, column in columns.items():
            column.append(row[name])
    return columns
