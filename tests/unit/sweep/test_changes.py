"""A study's trials are read once they have changed, whatever order a storage gives them in."""

from __future__ import annotations

import optuna
import pytest
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from speechtrain.sweep.study.changes import TrialChanges
from speechtrain.sweep.study.internals import id_of
from speechtrain.sweep.study.storage import open_storage


@pytest.fixture(params=["memory://", "journal:///{}/study.journal", "sqlite:///{}/study.db"])
def storage(request, tmp_path):
    return open_storage(request.param.format(tmp_path)) if "{}" in request.param else InMemoryStorage()


def numbers(read: tuple[list[FrozenTrial], bool]) -> list[int]:
    return [trial.number for trial in read[0]]


def test_trials_that_are_new_or_were_not_finished_are_read(storage):
    study_id = storage.create_new_study([StudyDirection.MINIMIZE], "study")
    changes = TrialChanges(storage, study_id)
    assert changes.read() == ([], True)
    for state in (TrialState.COMPLETE, TrialState.WAITING, TrialState.COMPLETE):
        storage.create_new_trial(study_id, create_trial(state=state, value=1.0 if state.is_finished() else None))
    first, whole = changes.read()
    assert whole
    assert [trial.number for trial in first] == [0, 1, 2]

    storage.set_trial_state_values(id_of(first[1]), TrialState.RUNNING)
    storage.create_new_trial(study_id, create_trial(state=TrialState.WAITING))
    second, whole = changes.read()
    assert not whole
    assert [(trial.number, trial.state.name) for trial in second] == [(1, "RUNNING"), (3, "WAITING")]
    storage.set_trial_state_values(id_of(first[1]), TrialState.COMPLETE, [0.5])
    assert numbers(changes.read()) == [1, 3]
    assert numbers(changes.read()) == [3]
    assert numbers(changes.read(anew=True)) == [0, 1, 2, 3]
    assert numbers(changes.read()) == [3]


class OutOfOrder(InMemoryStorage):
    """Gives its trials backwards, and hides one that is just being stored."""

    hidden: int | None = None

    def get_all_trials(self, study_id: int, deepcopy: bool = True, states: object = None) -> list[FrozenTrial]:
        trials = super().get_all_trials(study_id, deepcopy=deepcopy)
        return [trial for trial in reversed(trials) if trial.number != self.hidden]


def test_all_trials_are_read_as_long_as_one_is_missing():
    storage = OutOfOrder()
    study = optuna.create_study(storage=storage)
    changes = TrialChanges(storage, storage.get_study_id_from_name(study.study_name))
    for _ in range(3):
        study.add_trial(create_trial(value=1.0))
    storage.hidden = 1
    assert [changes.read() for _ in range(2)] == [([storage.get_trial(0), storage.get_trial(2)], True)] * 2

    storage.hidden = None

    assert numbers(changes.read()) == [0, 1, 2]
