"""Names under which the sweeper stores facts with a trial or a study, and the functions that finish a trial in the storage.

Stored names never change: studies of earlier versions are continued. How a job's outcome becomes a stored state is in `trial/handle.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from speechtrain.sweep.study.ledger import State
from speechtrain.sweep.study.race_plan import FINALIST

RETRY_OF, OWNER, JOB, BEAT, FAILURE = (f"speechtrain:{name}" for name in ("retry_of", "owner", "job", "beat", "failure"))
"""System attributes of a trial: number of the failed or paused trial that it goes on from, sweeper process that claimed it, process that
runs it, time of its last heartbeat, and how its failure counts."""

PAUSED = "speechtrain:paused"
"""System attribute of a pruned trial that may be continued: the epochs after which it paused."""

CANCEL = "speechtrain:cancel"
"""System attribute of a trial that is to end: from which machine that was asked for, and when."""

SPACE, SETTINGS = "speechtrain:space", "speechtrain:settings"
"""User attributes of a study: description of each parameter of the space it searches, and the settings that its trials share."""

STOPPED = "speechtrain:stopped"
"""User attribute of a study: why the last command ended before all trials were run; None if it did not."""

VERSION = "speechtrain.__version__"
"""Name among the settings under which the version stands that began the study."""


@dataclass(frozen=True)
class TrialEntry:
    """Presents an Optuna trial as the entry that the ledger reads."""

    trial: FrozenTrial

    @property
    def number(self) -> int:
        """Return the trial's number in its study."""
        return self.trial.number

    @property
    def state(self) -> State:
        """Return the trial's state in the ledger's terms."""
        return State[self.trial.state.name]

    @property
    def retry_of(self) -> int | None:
        """Return the number of the failed or paused trial that this one goes on from."""
        number = self.trial.system_attrs.get(RETRY_OF)
        return None if number is None else int(number)

    @property
    def charged(self) -> bool:
        """Return whether its failure counts towards the retries."""
        return bool(self.trial.system_attrs.get(FAILURE, {}).get("charged", True))

    @property
    def final(self) -> bool:
        """Return whether the same values would fail again."""
        return bool(self.trial.system_attrs.get(FAILURE, {}).get("final", False))

    @property
    def paused_at(self) -> int | None:
        """Return the epochs after which it paused; None for one that did not, or whose process died while it did."""
        return self.trial.system_attrs.get(PAUSED) if self.trial.state is TrialState.PRUNED else None

    @property
    def values(self) -> Mapping[int, float]:
        """Return what it has reported, by steps."""
        return self.trial.intermediate_values

    @property
    def features(self) -> Mapping[str, float]:
        """Return its parameters as numbers from 0 to 1."""
        from speechtrain.sweep.study.curve_model import features_of  # brings SciPy's optimizers, which other rules do not need

        return features_of(self.trial.params, self.trial.distributions)

    @property
    def finalist(self) -> tuple[int, str, int] | None:
        """Return the finalist that it trains once more: number of its trial, key of the seed, seed; None: it is a trial of the search."""
        stored = self.trial.system_attrs.get(FINALIST)
        return None if stored is None else (int(stored["of"]), str(stored["key"]), int(stored["seed"]))

    @property
    def is_surplus(self) -> bool:
        """Return whether it was created beside another one by two sweepers at once, so that it counts nowhere."""
        return bool(self.trial.system_attrs.get(FAILURE, {}).get("surplus"))


def shown_params(trial: FrozenTrial) -> dict[str, Any]:
    """Return the values of a trial for people, with the seed that a race has given it."""
    finalist = TrialEntry(trial).finalist
    return dict(trial.params) if finalist is None else {**trial.params, finalist[1]: finalist[2]}


def was_cancelled(trial: FrozenTrial) -> bool:
    """Return whether a trial ended because someone asked for it."""
    return trial.state is TrialState.FAIL and bool(trial.system_attrs.get(FAILURE, {}).get("cancelled"))


INTERRUPTED = "interrupted"
"""The reason of a trial that ended by Ctrl-C, or because the machine was wanted for something else."""


def was_interrupted(trial: FrozenTrial) -> bool:
    """Return whether a trial was interrupted, which is no failure: it is queued again."""
    attributes = trial.system_attrs.get(FAILURE, {})
    return trial.state is TrialState.FAIL and not attributes.get("charged", True) and trial.user_attrs.get("reason") == INTERRUPTED


def finish(storage: BaseStorage, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
    """Set the final state of a trial; return False if it was finished before."""
    try:
        storage.set_trial_state_values(trial_id, state=state, values=None if values is None else [float(value) for value in values])
    except UpdateFinishedTrialError:
        return False
    return True


def complete(storage: BaseStorage, trial_id: int, values: Sequence[float]) -> bool:
    """Record the values of the objectives; return False if the trial was finished before.

    Raises:
        ValueError: a value is NaN.
    """
    if any(math.isnan(float(value)) for value in values):
        raise ValueError("the objective is NaN")
    return finish(storage, trial_id, TrialState.COMPLETE, values)


def prune(storage: BaseStorage, trial_id: int, reason: str, *, paused_at: int | None = None) -> bool:
    """Record that a trial was pruned, with the last value it reported as its own, as Optuna does.

    Args:
        storage: storage of the study.
        trial_id: id of the trial in the storage.
        reason: what others do better, or the constraint that is broken; shown in reports.
        paused_at: epochs after which it paused, so that it may be continued; None: it may not.
    """
    trial = storage.get_trial(trial_id)
    last = trial.intermediate_values.get(trial.last_step) if trial.last_step is not None else None
    values = [last] if last is not None and not math.isnan(last) else None
    if not trial.state.is_finished():
        storage.set_trial_user_attr(trial_id, "reason", reason)
        if paused_at is not None:
            storage.set_trial_system_attr(trial_id, PAUSED, paused_at)
    return finish(storage, trial_id, TrialState.PRUNED, values)


def fail(storage: BaseStorage, trial_id: int, reason: str, *, charged: bool = True, final: bool = False) -> bool:
    """Record a failure with its reason; return False if the trial was finished before.

    Args:
        storage: storage of the study.
        trial_id: id of the trial in the storage.
        reason: what went wrong; shown in reports.
        charged: whether the failure counts towards `retries`.
        final: whether the same values would fail again, so that they are not retried.
    """
    try:
        storage.set_trial_user_attr(trial_id, "reason", reason[:2000])
        if not charged or final:
            storage.set_trial_system_attr(trial_id, FAILURE, {"charged": charged, "final": final})
    except UpdateFinishedTrialError:
        return False
    return finish(storage, trial_id, TrialState.FAIL)


def record_cancelled(storage: BaseStorage, trial_id: int) -> bool:
    """Record that a trial was cancelled, which is no failure and is not retried; return False if it was finished before."""
    host = storage.get_trial(trial_id).system_attrs.get(CANCEL, {}).get("host", "elsewhere")
    try:
        storage.set_trial_user_attr(trial_id, "reason", f"cancelled from {host}")
        storage.set_trial_system_attr(trial_id, FAILURE, {"charged": False, "final": True, "cancelled": True})
    except UpdateFinishedTrialError:
        return False
    return finish(storage, trial_id, TrialState.FAIL)


def store_stop(storage: BaseStorage, study_id: int, reason: str | None) -> None:
    """Store with a study why a command has ended before all trials were run; None if it has not."""
    if storage.get_study_user_attrs(study_id).get(STOPPED) != reason:
        storage.set_study_user_attr(study_id, STOPPED, reason)
