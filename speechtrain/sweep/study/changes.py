"""Reads which trials of a study have changed since the last time, so that a sweeper's cost does not grow with its study."""

from __future__ import annotations

import contextlib

from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.trial import FrozenTrial


class TrialChanges:
    """Reads the trials that are new, or were not finished the last time; a finished trial never changes in Optuna.

    Args:
        storage: storage of the study.
        study_id: id of the study in the storage.
    """

    def __init__(self, storage: BaseStorage, study_id: int) -> None:
        self._storage = storage
        self._study_id = study_id
        self._known = 0
        self._unfinished: list[int] = []

    def read(self, *, anew: bool = False) -> tuple[list[FrozenTrial], bool]:
        """Return the trials that may have changed, in the order of their numbers, and whether these are all that there are.

        They are all at first, where it is asked for, and as long as a number is missing, for a trial that another sweeper is just storing
        would come between those that were read before.
        """
        if self._known and not anew and type(self._storage) in _BY_NUMBER:
            changed = self._read_by_number()
            self._unfinished = _unfinished(changed)
            return changed, False
        trials = self._storage.get_all_trials(self._study_id, deepcopy=False)
        places = [*self._unfinished, *range(self._known, len(trials))]
        whole = anew or not self._known or any(trials[place].number != place for place in places)
        changed = sorted(trials, key=lambda trial: trial.number) if whole else [trials[place] for place in places]
        if whole and trials and changed[-1].number != len(trials) - 1:
            self._known, self._unfinished = 0, []
        else:
            self._known = len(trials)
            self._unfinished = _unfinished(changed)
        return changed, whole

    def _read_by_number(self) -> list[FrozenTrial]:
        """Return the trials that were not finished, and the new ones."""
        by_number = self._storage.get_trial_id_from_study_id_trial_number
        changed = [self._storage.get_trial(by_number(self._study_id, number)) for number in self._unfinished]
        with contextlib.suppress(KeyError):  # there is no such trial yet
            while True:
                changed.append(self._storage.get_trial(by_number(self._study_id, self._known)))
                self._known += 1
        return changed


_BY_NUMBER = (JournalStorage, InMemoryStorage)
"""Storages that have all trials in memory, numbered without gaps, and take as long to list them as there are."""


def _unfinished(trials: list[FrozenTrial]) -> list[int]:
    return [trial.number for trial in trials if not trial.state.is_finished()]
