"""Every private name of Optuna that the sweeper needs; `tests/unit/sweep/test_optuna_internals.py` names Optuna when one changes."""

from __future__ import annotations

from optuna.storages.journal._file import BaseJournalFileLock
from optuna.trial import FrozenTrial

FIXED_PARAMS = "fixed_params"
"""System attribute of a trial: values by name that Optuna takes instead of asking the sampler; `Study.enqueue_trial` writes it."""

JournalLock = BaseJournalFileLock
"""Base class of what `JournalFileBackend` takes as `lock_obj`."""


def id_of(trial: FrozenTrial) -> int:
    """Return the id by which a storage knows a trial; the public number only counts within its study."""
    return trial._trial_id
