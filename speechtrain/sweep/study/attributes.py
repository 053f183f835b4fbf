"""What the sweeper stores with a trial or a study, and how a trial is ended in the storage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from speechtrain.sweep.study.ledger import State

RETRY_OF, OWNER, JOB, BEAT, FAILURE = (f"speechtrain:{name}" for name in ("retry_of", "owner", "job", "beat", "failure"))
"""System attributes of a trial: the failed trial it repeats, the sweeper that took it, the process that works on it, its heartbeat, and
how its failure counts."""

SPACE = "speechtrain:space"
"""User attribute of a study: the space it searches."""


FIXED = "fixed_params"
"""Optuna's own system attribute for values that a sampler is not asked for."""


@dataclass(frozen=True)
class TrialEntry:
    """An Optuna trial as the ledger reads it."""

    trial: FrozenTrial

    @property
    def number(self) -> int:
        """Of the trial."""
        return self.trial.number

    @property
    def state(self) -> State:
        """Its state."""
        return State[self.trial.state.name]

    @property
    def retry_of(self) -> int | None:
        """The failed trial that it repeats."""
        found = self.trial.system_attrs.get(RETRY_OF)
        return None if found is None else int(found)

    @property
    def charged(self) -> bool:
        """Whether its failure counts."""
        return bool(self.trial.system_attrs.get(FAILURE, {}).get("charged", True))

    @property
    def final(self) -> bool:
        """Whether it would fail again."""
        return bool(self.trial.system_attrs.get(FAILURE, {}).get("final", False))


def _settle(storage: BaseStorage, trial_id: int, state: TrialState, values: Sequence[float] | None) -> bool:
    try:
        storage.set_trial_state_values(trial_id, state=state, values=None if values is None else [float(value) for value in values])
    except UpdateFinishedTrialError:
        return False
    return True


def complete(storage: BaseStorage, trial_id: int, values: Sequence[float]) -> bool:
    """Record a result; False if the trial was settled before.

    Raises:
        ValueError: a value is not a number.
    """
    if any(math.isnan(float(value)) for value in values):
        raise ValueError("the objective is NaN")
    return _settle(storage, trial_id, TrialState.COMPLETE, values)


def prune(storage: BaseStorage, trial_id: int, reason: str) -> bool:
    """Record that a trial was pruned, with its last report as value, as Optuna does."""
    trial = storage.get_trial(trial_id)
    last = trial.intermediate_values.get(trial.last_step) if trial.last_step is not None else None
    values = [last] if last is not None and not math.isnan(last) else None
    if not trial.state.is_finished():
        storage.set_trial_user_attr(trial_id, "reason", reason)
    return _settle(storage, trial_id, TrialState.PRUNED, values)


def fail(storage: BaseStorage, trial_id: int, reason: str, *, charged: bool = True, final: bool = False) -> bool:
    """Record a failure with its reason; False if the trial was settled before."""
    try:
        storage.set_trial_user_attr(trial_id, "reason", reason[:2000])
        if not charged or final:
            storage.set_trial_system_attr(trial_id, FAILURE, {"charged": charged, "final": final})
    except UpdateFinishedTrialError:
        return False
    return _settle(storage, trial_id, TrialState.FAIL, None)
