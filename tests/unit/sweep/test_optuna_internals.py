"""Private names of Optuna that the sweeper uses: a test fails with Optuna's name when one of them changes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalFileSymlinkLock


@contextlib.contextmanager
def uses(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 # whatever broke, the library is named
        pytest.fail(f"Optuna {optuna.__version__} changed {name}, which speechtrain/sweep/study/internals.py uses: {error!r}")


def test_optuna_gives_the_id_of_a_trial_in_its_storage():
    with uses("FrozenTrial._trial_id"):
        from speechtrain.sweep.study.internals import id_of

        storage = optuna.storages.InMemoryStorage()
        optuna.create_study(storage=storage).ask()  # ids and numbers differ in the second study
        study = optuna.create_study(storage=storage)
        study.ask()

        (trial,) = study.trials
        assert storage.get_trial(id_of(trial)) == trial
        assert id_of(trial) != trial.number


def test_optuna_reads_what_has_changed_in_a_database_into_a_cache_by_number(tmp_path: Path):
    with uses("_CachedStorage._read_trials_from_remote_storage, or its _studies"):
        from speechtrain.sweep.study.internals import read_cache

        url = f"sqlite:///{tmp_path}/study.db"
        study = optuna.create_study(study_name="study", storage=url)
        storage = optuna.storages.get_storage(url)
        study_id = storage.get_study_id_from_name("study")
        for number in range(3):
            study.add_trial(optuna.create_trial(value=1.0))
            cached = read_cache(storage, study_id)
            assert cached is not None
            assert list(cached) == list(range(number + 1))
        assert cached[2] == study.trials[2]
        assert read_cache(optuna.storages.InMemoryStorage(), 0) is None


def test_optuna_takes_the_fixed_values_of_an_enqueued_trial_from_a_system_attribute():
    with uses("the system attribute 'fixed_params'"):
        from speechtrain.sweep.study.internals import FIXED_PARAMS

        study = optuna.create_study()
        study.enqueue_trial({"x": 0.25})
        assert study.trials[0].system_attrs[FIXED_PARAMS] == {"x": 0.25}
        study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.WAITING, system_attrs={FIXED_PARAMS: {"x": 0.75}}))
        assert [study.ask().suggest_float("x", 0, 1) for _ in range(2)] == [0.25, 0.75]


def test_optunas_journal_uses_a_lock_of_ours(tmp_path: Path):
    with uses("BaseJournalFileLock"):
        from speechtrain.sweep.study.internals import JournalLock

        assert issubclass(JournalFileOpenLock, JournalLock)
        assert issubclass(JournalFileSymlinkLock, JournalLock)
        assert JournalLock.__abstractmethods__ == {"acquire", "release"}
        calls = []

        class Lock(JournalLock):
            def acquire(self) -> bool:
                calls.append("acquire")
                return True

            def release(self) -> None:
                calls.append("release")

        JournalFileBackend(str(tmp_path / "journal"), lock_obj=Lock()).append_logs([{"a": 1}])
        assert calls == ["acquire", "release"]


@pytest.mark.parametrize("sampler", [optuna.samplers.TPESampler, optuna.samplers.CmaEsSampler, optuna.samplers.NSGAIISampler])
def test_optunas_samplers_do_not_see_what_is_hidden_from_them(sampler):
    with uses("Study._get_trials"):
        from speechtrain.sweep.study.internals import StudyWithout, id_of

        storage = optuna.storages.InMemoryStorage()
        study = optuna.create_study(storage=storage, study_name="study")
        study.enqueue_trial({"x": 0.25})
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
        study.ask()
        trial_id = id_of(study.trials[3])
        view = StudyWithout(study_name="study", storage=storage, sampler=sampler())
        view.hidden = {0, 1, 2}
        seen = []
        get_trials = view._get_trials
        view._get_trials = lambda *arguments, **named: seen.append(get_trials(*arguments, **named)) or seen[-1]

        optuna.trial.Trial(view, trial_id).suggest_float("x", 0, 1)

        assert seen
        assert all(trial.number == 3 for trials in seen for trial in trials)
