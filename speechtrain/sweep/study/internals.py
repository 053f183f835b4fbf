"""Every private name of Optuna that the sweeper needs; `tests/unit/sweep/test_optuna_internals.py` names Optuna when one changes."""

from __future__ import annotations

from collections.abc import Container, Mapping

import optuna
from optuna.storages import BaseStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.storages.journal._file import BaseJournalFileLock
from optuna.trial import FrozenTrial, TrialState

from speechtrain.sweep.study.race_plan import FINALIST

FIXED_PARAMS = "fixed_params"
"""System attribute of a trial: values by name that Optuna takes instead of asking the sampler; `Study.enqueue_trial` writes it."""

JournalLock = BaseJournalFileLock
"""Base class of what `JournalFileBackend` takes as `lock_obj`."""


def id_of(trial: FrozenTrial) -> int:
    """Return the id by which a storage knows a trial; the public number only counts within its study."""
    return trial._trial_id


def read_cache(storage: BaseStorage, study_id: int) -> Mapping[int, FrozenTrial] | None:
    """Read what has changed in a database, and return all trials by number, which must not be changed; None for another storage.

    `get_all_trials` reads the same, and makes a sorted list of all trials then.
    """
    if not isinstance(storage, _CachedStorage):
        return None
    storage._read_trials_from_remote_storage(study_id)
    return storage._studies[study_id].trials


class StudyWithout(optuna.Study):
    """A study whose samplers and pruners do not see some of its trials, among them those of a race, which repeat the best with other seeds.

    Attributes:
        hidden: numbers of the others of these trials.
    """

    hidden: Container[int] = ()

    def look_anew(self) -> None:
        """Forget which trials there were when a sampler asked last, as `ask` does, for those who set a waiting trial running instead."""
        self._thread_local.cached_all_trials = None

    def _get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False) -> list[FrozenTrial]:
        trials = super()._get_trials(deepcopy, states, use_cache)
        return [trial for trial in trials if trial.number not in self.hidden and FINALIST not in trial.system_attrs]
