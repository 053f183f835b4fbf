"""What is known of a study at a moment, read from its storage: who works on it, what runs, what is left. Prints nothing."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from speechtrain.addresses import masked
from speechtrain.processes.identity import Process
from speechtrain.sweep.study.attributes import (
    BEAT,
    CANCEL,
    JOB,
    OWNER,
    SETTINGS,
    STOPPED,
    TrialEntry,
    shown_params,
    was_cancelled,
    was_interrupted,
)
from speechtrain.sweep.study.changes import TrialChanges
from speechtrain.sweep.study.control import Signal, SweeperRecord, runs_nowhere
from speechtrain.sweep.study.ledger import Ledger
from speechtrain.sweep.study.race_plan import RACE
from speechtrain.sweep.study.results import Results

MOST_ENDED = 200
"""Trials that have ended of which each is told, the latest."""
ENDS = ("complete", "pruned", "paused", "continued", "failed", "interrupted", "cancelled")
"""How trials end; one that paused is `continued` once another one goes on from it."""
_MOST_FAILURES = 5
_RECENT = 20
"""Trials from whose lengths the time that is left is estimated."""


@dataclass(frozen=True)
class RunningTrial:
    """Tells of a trial that runs.

    Attributes:
        number: number of the trial.
        params: its values.
        epoch: epochs that it has reported; None: it reports none.
        value: what it reported last.
        host: machine of its process.
        seconds: time since it was started.
        note: `cancelled`, if it ends at its next report; `dead`, if its process is gone; else empty.
    """

    number: int
    params: dict[str, Any]
    epoch: int | None
    value: float | None
    host: str
    seconds: float
    note: str


@dataclass(frozen=True)
class EndedTrial:
    """Tells of a trial that has ended.

    Attributes:
        state: one of `ENDS`.
        values: its objectives, or what it reported last; empty where it has none.
        reason: why it failed or was pruned; else empty.
    """

    number: int
    state: str
    params: dict[str, Any]
    values: list[float]
    seconds: float | None
    reason: str


@dataclass(frozen=True)
class Status:
    """Tells of a study at a moment.

    Attributes:
        state: `running`, `paused`, `stopping`, `finished`, `stopped`, or `idle` where trials are left and no sweeper works on them.
        words: the state in words, with the reason where there is one.
        objectives: names of the metrics; empty for a program that returns its value.
        counts: number of trials by how they ended (`ENDS`), and of those that are running and waiting.
        n_trials: trials that the newest command wants in total; None: it has not told.
        left: trials that are left of those.
        seconds_left: estimate of the time for them, from the length of the last trials and the number of workers.
        best: the best trial of the search, or the front of several objectives.
        all_equal: whether all complete trials are equally good, so that the best is one of them and none is better.
        race: what the race of the finalists has come to, as `Standing.to_dict` has it; None: there is none.
        failures: the latest trials that failed.
        ended: the latest trials that ended, the last one first.
        sweepers: who has worked on it; `alive` says whether they do.
        made: when it was read, in seconds since 1970.
    """

    study: str
    storage: str
    state: str
    words: str
    objectives: list[str]
    counts: dict[str, int]
    n_trials: int | None
    left: int | None
    seconds_left: float | None
    best: list[EndedTrial]
    all_equal: bool
    race: dict[str, Any] | None
    running: list[RunningTrial]
    failures: list[EndedTrial]
    ended: list[EndedTrial]
    sweepers: list[dict[str, Any]]
    made: float

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as values that JSON can hold."""
        return asdict(self)


class StatusReader:
    """Reads the status of a study again and again; what has ended is read once.

    Args:
        storage: the opened storage.
        study_id: id of the study in it.
        name: name of the study.
        url: URL of the storage.
    """

    def __init__(self, storage: BaseStorage, study_id: int, name: str, url: str) -> None:
        self._storage = storage
        self._id = study_id
        self._name = name
        self._url = masked(url)
        self._changes = TrialChanges(storage, study_id)
        self._directions = ["minimize" if each.name == "MINIMIZE" else "maximize" for each in storage.get_study_directions(study_id)]
        self._ledger: Ledger | None = None
        self._forget()

    def _forget(self) -> None:
        self._counts = dict.fromkeys(ENDS, 0)
        self._paused: set[int] = set()
        self._seen: set[int] = set()
        self._results = Results(self._directions)  # type: ignore[arg-type]
        self._ended: deque[FrozenTrial] = deque(maxlen=MOST_ENDED)
        self._failures: deque[FrozenTrial] = deque(maxlen=_MOST_FAILURES)
        self._unfinished: list[FrozenTrial] = []
        self._entries: list[FrozenTrial] = []

    def read(self) -> Status:
        """Return the status of this moment."""
        attributes = self._storage.get_study_user_attrs(self._id)
        sweepers = SweeperRecord.all_of(attributes)
        newest = sweepers[-1] if sweepers else None
        wanted = (newest.n_trials, newest.retries) if newest is not None else None
        begins_anew = wanted is not None and (self._ledger is None or wanted != (self._ledger.n_trials, self._ledger.retries))
        changed, whole = self._changes.read(anew=begins_anew)
        if whole:
            self._forget()
        if whole and newest is not None:
            self._ledger = Ledger(n_trials=newest.n_trials, retries=newest.retries)
        self._take(changed)
        running = [_running(trial) for trial in self._unfinished if trial.state is TrialState.RUNNING]
        left = newest.n_trials - self._ledger.done if newest is not None and self._ledger is not None else None
        alive = [record for record in sweepers if record.is_alive()]
        state, words = _state(attributes, alive, sweepers, left, running)
        waiting = sum(trial.state is TrialState.WAITING for trial in self._unfinished)
        settings: Mapping[str, str] = attributes.get(SETTINGS) or {}
        return Status(
            study=self._name,
            storage=self._url,
            state=state,
            words=words,
            objectives=[name for name in settings.get("hydra.sweeper.objectives", "").split(", ") if name],
            counts={**self._counts, "running": len(running), "waiting": waiting},
            n_trials=newest.n_trials if newest is not None else None,
            left=left,
            seconds_left=self._seconds_left(left, sum(record.workers for record in alive), running),
            best=[self._told(trial) for trial in self._results.best[:10]],
            all_equal=self._results.all_equal,
            race=attributes.get(RACE),
            running=running,
            failures=[self._told(trial) for trial in reversed(self._failures)],
            ended=[self._told(trial) for trial in reversed(self._ended)],
            sweepers=[_told(record) for record in sweepers[-10:]],
            made=time.time(),
        )

    def _take(self, changed: Sequence[FrozenTrial]) -> None:
        if self._ledger is not None:
            for entry in map(TrialEntry, changed):
                if entry.finalist is None:
                    self._ledger.put(entry)
        self._unfinished = [trial for trial in changed if not trial.state.is_finished()]
        continues = {entry.retry_of for entry in map(TrialEntry, changed) if entry.retry_of is not None and not entry.is_surplus}
        new = [trial for trial in changed if trial.state.is_finished() and trial.number not in self._seen]
        for trial in sorted(new, key=lambda each: each.datetime_complete.timestamp() if each.datetime_complete is not None else 0.0):
            self._seen.add(trial.number)
            self._counts[_word(trial)] += 1
            self._results.add(trial)
            self._ended.append(trial)
            if _word(trial) == "paused":
                self._paused.add(trial.number)
            if _word(trial) == "failed":
                self._failures.append(trial)
        for number in continues & self._paused:
            self._paused.discard(number)
            self._counts["paused"] -= 1
            self._counts["continued"] += 1

    def _told(self, trial: FrozenTrial) -> EndedTrial:
        word = _word(trial)
        if word == "paused" and trial.number not in self._paused:
            word = "continued"
        seconds = trial.duration.total_seconds() if trial.duration is not None else None
        reason = str(trial.user_attrs.get("reason", "")).strip().partition("\n")[0][:200]
        return EndedTrial(trial.number, word, shown_params(trial), list(trial.values or []), seconds, reason)

    def _seconds_left(self, left: int | None, workers: int, running: Sequence[RunningTrial]) -> float | None:
        recent = [trial for trial in self._ended if _word(trial) in ("complete", "pruned", "paused")][-_RECENT:]
        lengths = [trial.duration.total_seconds() for trial in recent if trial.duration is not None]
        if not left or not workers or not lengths:
            return None
        mean = sum(lengths) / len(lengths)
        return max(0.0, left * mean - sum(min(trial.seconds, mean) for trial in running)) / workers


def _state(
    attributes: Mapping[str, Any],
    alive: Sequence[SweeperRecord],
    all_: Sequence[SweeperRecord],
    left: int | None,
    running: Sequence[RunningTrial],
) -> tuple[str, str]:
    signal = Signal.of(attributes)
    if alive and signal.word == "pause":
        return "paused", f"paused from {signal.host}; `resume` goes on"
    if any(record.began < signal.sent for record in alive) and signal.word == "stop":
        return "stopping", f"ends when the running trials have, as `{signal.said or 'stop'}` was given on {signal.host}"
    if alive:
        return "running", ", ".join(f"process {record.process.pid} on {record.process.host}" for record in alive)
    race: Mapping[str, Any] | None = attributes.get(RACE)
    races = race is not None and not race["verdict"]
    if left is not None and left <= 0 and not races:
        return "finished", "all trials are done"
    if running and any(not trial.note for trial in running):
        return "idle", "no sweeper works on it; trials that run record themselves, and the same command goes on"
    if attributes.get(STOPPED) and not (all_ and all_[-1].ended is None):
        return "stopped", str(attributes[STOPPED])
    told = (all_[-1].ended or "its sweeper died") if all_ else "no sweeper works on it"
    return "idle", f"{told}; the same command goes on"


def _running(trial: FrozenTrial) -> RunningTrial:
    attributes = trial.system_attrs
    worker = Process.from_dict(attributes.get(JOB)) or Process.from_dict(attributes.get(OWNER))
    step = trial.last_step
    note = "cancelled" if CANCEL in attributes else "dead" if runs_nowhere(trial) else ""
    seconds = time.time() - trial.datetime_start.timestamp() if trial.datetime_start is not None else 0.0
    host = worker.host if worker is not None else "?"
    beat = attributes.get(BEAT)
    if not note and worker is not None and not worker.is_local() and beat is not None and time.time() - float(beat) > 300:
        note = f"silent for {time.time() - float(beat):.0f} s"
    value = trial.intermediate_values[step] if step is not None else None
    return RunningTrial(trial.number, shown_params(trial), None if step is None else step + 1, value, host, seconds, note)


def _word(trial: FrozenTrial) -> str:
    if was_cancelled(trial):
        return "cancelled"
    if was_interrupted(trial):
        return "interrupted"
    if TrialEntry(trial).paused_at is not None:
        return "paused"
    return {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}.get(trial.state, "failed")


def _told(record: SweeperRecord) -> dict[str, Any]:
    process = record.process
    state = "alive" if record.is_alive() else "ended" if record.ended is not None else "dead"
    return {
        "host": process.host,
        "pid": process.pid,
        "began": record.began,
        "beat": record.beat,
        "workers": record.workers,
        "state": state,
        "ended": record.ended,
    }
