"""Reads which trials of a study have changed since the last time, so that a sweeper's cost does not grow with its study."""

from __future__ import annotations

import contextlib

from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.trial import FrozenTrial

from speechtrain.sweep.study.internals import read_cache


class TrialChanges:
    """Reads the trials that are new, or were not finished the last time; a finished trial never changes in Optuna.

    Args:
        storage: storage of the study.
        study_id: id of the study in the storage.

    Attributes:
        known: number of trials that were read; 0 as long as one is missing.
    """

    def __init__(self, storage: BaseStorage, study_id: int) -> None:
        self._storage = storage
        self._study_id = study_id
        self.known = 0
        self._unfinished: list[int] = []

    def read(self, *, anew: bool = False) -> tuple[list[FrozenTrial], bool]:
        """Return the trials that may have changed, in the order of their numbers, and whether these are all that there are.

        They are all at first, where it is asked for, and as long as a number is missing, for a trial that another sweeper is just storing
        would come between those that were read before.
        """
        if self.known and not anew and (changed := self._read_by_number()) is not None:
            self._unfinished = _unfinished(changed)
            return changed, False
        trials = self._storage.get_all_trials(self._study_id, deepcopy=False)
        places = [*self._unfinished, *range(self.known, len(trials))]
        whole = anew or not self.known or any(trials[place].number != place for place in places)
        changed = sorted(trials, key=lambda trial: trial.number) if whole else [trials[place] for place in places]
        if whole and trials and changed[-1].number != len(trials) - 1:
            self.known, self._unfinished = 0, []
        else:
            self.known = len(trials)
            self._unfinished = _unfinished(changed)
        return changed, whole

    def _read_by_number(self) -> list[FrozenTrial] | None:
        """Return the trials that were not finished, and the new ones; None for a storage that takes as long for each as for all."""
        if (cached := read_cache(self._storage, self._study_id)) is not None:
            trial_of = cached.__getitem__
        elif type(self._storage) in _BY_NUMBER:
            by_number = self._storage.get_trial_id_from_study_id_trial_number

            def trial_of(number: int) -> FrozenTrial:
                return self._storage.get_trial(by_number(self._study_id, number))
        else:
            return None
        changed = [trial_of(number) for number in self._unfinished]
        with contextlib.suppress(KeyError):  # there is no such trial yet
            while True:
                changed.append(trial_of(self.known))
                self.known += 1
        return changed


_BY_NUMBER = (JournalStorage, InMemoryStorage)
"""Storages that have all trials in memory, numbered without gaps, and take as long to list them as there are."""


def _unfinished(trials: list[FrozenTrial]) -> list[int]:
    return [trial.number for trial in trials if not trial.state.is_finished()]
