"""How a study is steered from elsewhere: by attributes in its storage, so that any launcher and storage will do.

`sweep/__main__.py` sends signals, `sweeper.py` reads them between trials and a trial when it reports.
"""

from __future__ import annotations

import platform
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from speechtrain.errors import UserError
from speechtrain.processes.identity import Process
from speechtrain.sweep.study.attributes import CANCEL, JOB, OWNER, record_cancelled
from speechtrain.sweep.study.internals import id_of

Word = Literal["run", "pause", "stop"]

SIGNAL = "speechtrain:signal"
"""User attribute of a study: the last signal that was sent to its sweepers."""
SWEEPER = "speechtrain:sweeper:"
"""Beginning of the user attributes of a study with the sweepers that have worked on it, one each."""
READ_SECONDS = 1.0
"""Time between readings of the signal by a sweeper."""
MISSED_BEATS = 5
"""Heartbeats after which what runs on another machine counts as dead."""


@dataclass(frozen=True)
class Signal:
    """What the sweepers of a study are to do.

    Attributes:
        word: `run`: start trials; `pause`: start none until told to; `stop`: start none, and end when the running ones have.
        id: different for each signal, so that a command is not stopped by the stop of an earlier one.
        host: machine that it was sent from.
        sent: when, in seconds since 1970.
        said: the command that sent it, where that is another word: `cancel`, which stops as well.
    """

    word: Word
    id: str
    host: str
    sent: float
    said: str = ""

    @classmethod
    def of(cls, attributes: Mapping[str, Any]) -> Signal:
        """Return the signal among the user attributes of a study."""
        stored = attributes.get(SIGNAL)
        return cls(**stored) if stored else cls("run", "", "", 0.0)


def send(storage: BaseStorage, study_id: int, word: Word, said: str = "") -> None:
    """Tell the sweepers of a study what to do; `said` is the command that does, where that is another word."""
    signal = Signal(word, uuid.uuid4().hex, platform.node(), time.time(), said)
    storage.set_study_user_attr(study_id, SIGNAL, asdict(signal))


class SignalReader:
    """Reads the signal for one sweeper, at most once a second; a stop that was sent before it began is not meant for it.

    Args:
        storage: storage of the study.
        study_id: id of the study in the storage.
    """

    def __init__(self, storage: BaseStorage, study_id: int) -> None:
        self._storage = storage
        self._study_id = study_id
        self._signal = Signal.of(storage.get_study_user_attrs(study_id))
        self._earlier = self._signal.id if self._signal.word == "stop" else None
        self._read = time.monotonic()

    def read(self) -> Signal:
        """Return the signal that holds now."""
        if time.monotonic() - self._read >= READ_SECONDS:
            self._signal = Signal.of(self._storage.get_study_user_attrs(self._study_id))
            self._read = time.monotonic()
        return replace(self._signal, word="run") if self._signal.id == self._earlier else self._signal


@dataclass(frozen=True)
class SweeperRecord:
    """Holds what a sweeper tells of itself.

    Attributes:
        process: its process.
        began: when it began, in seconds since 1970.
        beat: its last sign of life, likewise.
        heartbeat: seconds between those.
        workers: trials that it runs at a time.
        n_trials: slots of the study, as its command has them.
        retries: retries of a slot, likewise.
        ended: how it ended; None while it runs, or if it could not tell.
    """

    process: Process
    began: float
    beat: float
    heartbeat: float
    workers: int
    n_trials: int
    retries: int
    ended: str | None = None

    @classmethod
    def all_of(cls, attributes: Mapping[str, Any]) -> list[SweeperRecord]:
        """Return the sweepers among the user attributes of a study, the one that began first at first."""
        stored = [value for name, value in attributes.items() if name.startswith(SWEEPER)]
        return sorted((cls(**{**value, "process": Process(**value["process"])}) for value in stored), key=lambda record: record.began)

    def store(self, storage: BaseStorage, study_id: int) -> None:
        """Store the record in place of the one of before."""
        process = self.process
        storage.set_study_user_attr(study_id, f"{SWEEPER}{process.host}:{process.pid}:{process.started:.2f}:{self.began:.2f}", asdict(self))

    def is_alive(self) -> bool:
        """Return whether it works; of another machine's the last sign of life says so, by the clocks of both."""
        if self.ended is not None:
            return False
        return self.process.is_alive() if self.process.is_local() else time.time() - self.beat <= MISSED_BEATS * self.heartbeat


def runs_nowhere(trial: FrozenTrial) -> bool:
    """Return whether the process of a running trial is known to be dead; of other machines' none is."""
    worker = Process.from_dict(trial.system_attrs.get(JOB)) or Process.from_dict(trial.system_attrs.get(OWNER))
    return worker is not None and worker.is_local() and not worker.is_alive()


def cancel(storage: BaseStorage, study_id: int, number: int) -> str:
    """Have a trial end, and say when it will: one that runs at its next report, one that waits or whose process died at once.

    Raises:
        UserError: there is no such trial, or it has ended.
    """
    last = storage.get_n_trials(study_id) - 1
    if not 0 <= number <= last:
        there = f"there are 0 to {last}" if last >= 0 else "there is none yet"
        raise UserError(f"there is no trial {number}\n    -> {there}")
    trial = storage.get_trial(storage.get_trial_id_from_study_id_trial_number(study_id, number))
    host = platform.node()
    try:
        storage.set_trial_system_attr(id_of(trial), CANCEL, {"host": host, "sent": time.time()})
    except UpdateFinishedTrialError:
        raise UserError(f"trial {number} has ended: {trial.state.name.lower()}\n    -> `status` shows which ones run") from None
    if trial.state is TrialState.WAITING or runs_nowhere(trial):
        record_cancelled(storage, id_of(trial))
        return f"trial {number} is cancelled"
    return f"trial {number} ends at its next report"
