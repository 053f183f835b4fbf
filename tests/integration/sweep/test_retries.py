"""Trials that fail in the middle of a training, and what the next attempt makes of it."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from conftest import TINY
from mlflow import MlflowClient
from mlflow.entities import Run
from studies import make_study

from speechtrain import compose, train
from speechtrain.files import sqlite_address
from speechtrain.processes import interrupts
from speechtrain.sweep.space.space import parse_space
from speechtrain.sweep.study.attributes import was_cancelled
from speechtrain.sweep.study.control import cancel
from speechtrain.sweep.study.study import ClaimedTrial, Study
from speechtrain.sweep.trial.context import TrialContext
from speechtrain.sweep.trial.job import TrialCallback, _SeedTrainings, run_trial
from speechtrain.training.history import HISTORY, read_history

pytestmark = pytest.mark.long

EPOCHS = 4


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """A study of one trial, in its folder."""
    return make_study(tmp_path, space=parse_space(["seed=1"], {}), n_trials=1, retries=1)


def train_next(study: Study, folder: Path, *overrides: str, corpus: Sequence[str] = TINY, **context: int) -> ClaimedTrial:
    """Claim the next trial and train it in the folder of its number."""
    claimed = study.claim()
    assert claimed is not None
    cfg = compose([*corpus, "model=mlp", f"trainer.epochs={EPOCHS}", *overrides], output_dir=folder / str(claimed.number))
    about = TrialContext(study.url, study.name, claimed.id, claimed.number, ["val/loss"], retry_of=claimed.retry_of, **context)
    run_trial(about, cfg, overrides)
    return claimed


def the_machine_goes_away() -> None:
    raise RuntimeError("the machine went away")


def fail_after(monkeypatch: pytest.MonkeyPatch, epochs: int, fail: Callable[[], None] = the_machine_goes_away) -> None:
    """Let the first training fail once it has reported so many epochs."""
    report = TrialCallback.on_epoch_end
    count = 0

    def on_epoch_end(self, epoch, metrics, control):
        nonlocal count
        report(self, epoch, metrics, control)
        count += 1
        if count == epochs:
            fail()

    monkeypatch.setattr(TrialCallback, "on_epoch_end", on_epoch_end)


def losses(folder: Path) -> list[dict[str, float]]:
    """The losses and rates of each epoch, which are the same whenever they are computed."""
    return [{name: value for name, value in each.items() if not name.startswith(("time/", "train/audio"))} for each in read_history(folder)]


def test_a_retried_trial_goes_on_from_its_checkpoint_with_the_numbers_of_one_that_never_failed(study, tmp_path, monkeypatch):
    fail_after(monkeypatch, EPOCHS - 1)
    with pytest.raises(RuntimeError):
        train_next(study, tmp_path)
    trained = []
    monkeypatch.setattr(TrialCallback, "on_train_start", lambda _self, total, first: trained.append((first, total)))

    again = train_next(study, tmp_path)
    whole = compose([*TINY, "model=mlp", f"trainer.epochs={EPOCHS}"], output_dir=tmp_path / "whole")
    expected = train(whole)

    assert trained == [(EPOCHS - 2, EPOCHS)]  # the checkpoint of the epoch that failed was not written
    failed, done = study.trials()
    assert (failed.state.name, done.state.name) == ("FAIL", "COMPLETE")
    assert losses(tmp_path / str(again.number) / HISTORY) == losses(tmp_path / "whole" / HISTORY)
    assert done.value == min(epoch["val/loss"] for epoch in expected.history)
    assert list(done.intermediate_values.values()) == [epoch["val/loss"] for epoch in expected.history]
    assert not (tmp_path / "0" / "checkpoints").exists()


def kept_in_mlflow(folder: Path) -> tuple[list[str], str]:
    """The words for a corpus, and for a database whose artifacts lie beside it, away from all trials; and its address."""
    address = sqlite_address(folder / "server" / "mlflow.db")
    keys = {"tracking_uri": address, "experiment": "test", "log_last": "true", "log_model": "false", "system_metrics": "null"}
    words = [f"tracking.mlflow.{key}={value}" for key, value in keys.items()]
    return [*(item for item in TINY if item != "tracking=[]"), *words], address


def runs_at(address: str) -> list[Run]:
    client = MlflowClient(address)
    return list(client.search_runs([client.get_experiment_by_name("test").experiment_id]))


@pytest.mark.parametrize("seeds", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_trial_whose_machine_is_gone_goes_on_elsewhere_with_the_numbers_of_one_that_never_failed(study, tmp_path, monkeypatch, seeds):
    fail_after(monkeypatch, EPOCHS - 1)
    corpus, address = kept_in_mlflow(tmp_path)
    with pytest.raises(RuntimeError):
        train_next(study, tmp_path / "one machine", corpus=corpus, seeds=seeds)
    shutil.rmtree(tmp_path / "one machine")
    trained = []
    monkeypatch.setattr(TrialCallback, "on_train_start", lambda _self, total, first: trained.append((first, total)))

    again = train_next(study, tmp_path / "another", corpus=corpus, seeds=seeds)

    expected = train(compose([*TINY, "model=mlp", f"trainer.epochs={EPOCHS}"], output_dir=tmp_path / "whole"))
    assert trained == [(EPOCHS - 2, EPOCHS), (0, EPOCHS)][:seeds]
    own = tmp_path / "another" / str(again.number)
    assert losses((own if seeds == 1 else own / "seed_1") / HISTORY) == losses(tmp_path / "whole" / HISTORY)
    failed, done = study.trials()
    assert (failed.state.name, done.state.name) == ("FAIL", "COMPLETE")
    assert list(done.intermediate_values.values()) == [epoch["val/loss"] for epoch in expected.history]
    assert [run.info.status for run in runs_at(address)] == ["FINISHED"] * seeds


@pytest.mark.slow
def test_what_a_pruned_trial_would_have_gone_on_from_is_deleted_in_mlflow(study, tmp_path, monkeypatch):
    corpus, address = kept_in_mlflow(tmp_path)
    monkeypatch.setattr(TrialCallback, "on_epoch_end", lambda _self, epoch, _metrics, control: epoch == 1 and control.prune("hopeless"))

    train_next(study, tmp_path, corpus=corpus)

    (run,) = runs_at(address)
    assert run.info.status == "KILLED"
    client = MlflowClient(address)
    until = time.monotonic() + 60  # the process that sends does it, and nobody waits for it
    while client.list_artifacts(run.info.run_id, "resume") and time.monotonic() < until:
        time.sleep(0.2)
    assert client.list_artifacts(run.info.run_id, "resume") == []


def test_a_trial_that_a_scheduler_ends_with_sigterm_is_not_charged_and_goes_on_from_its_checkpoint(study, tmp_path, monkeypatch):
    def fall(_number, _frame):
        raise RuntimeError("the trial does not hear SIGTERM")

    before = signal.signal(signal.SIGTERM, fall)
    try:
        fail_after(monkeypatch, EPOCHS - 1, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(KeyboardInterrupt):
            train_next(study, tmp_path)
        assert signal.getsignal(signal.SIGTERM) is fall
    finally:
        signal.signal(signal.SIGTERM, before)
        interrupts.forget()
    trained = []
    monkeypatch.setattr(TrialCallback, "on_train_start", lambda _self, total, first: trained.append((first, total)))

    train_next(study, tmp_path)

    interrupted, done = study.trials()
    assert (interrupted.state.name, done.state.name) == ("FAIL", "COMPLETE")
    assert interrupted.user_attrs["reason"] == "interrupted"
    assert interrupted.system_attrs["speechtrain:failure"]["charged"] is False
    assert trained == [(EPOCHS - 2, EPOCHS)]


def test_a_trial_that_is_cancelled_while_it_trains_ends_after_that_epoch(study, tmp_path, monkeypatch):
    fail_after(monkeypatch, 1, lambda: cancel(study.storage, study.id, 0))

    train_next(study, tmp_path)

    (stored,) = study.trials()
    assert was_cancelled(stored)
    assert list(stored.intermediate_values) == [0, 1]  # it asks after its second epoch
    assert not study.ledger().to_retry
    assert not (tmp_path / "0" / "checkpoints").exists()


@pytest.mark.slow
def test_a_retried_trial_trains_no_seed_again_that_was_finished(study, tmp_path, monkeypatch):
    fail_after(monkeypatch, EPOCHS + 2)
    with pytest.raises(RuntimeError):
        train_next(study, tmp_path, seeds=2)
    trained = []
    monkeypatch.setattr(TrialCallback, "on_train_start", lambda _self, total, first: trained.append((first, total)))

    train_next(study, tmp_path, seeds=2)

    assert trained == [(1, EPOCHS)]
    failed, done = study.trials()
    assert done.user_attrs["seed_values"][:1] == failed.user_attrs["seed_values"]
    assert len(done.user_attrs["seed_values"]) == 2
    assert done.user_attrs["run"] == {"folder": str(tmp_path / "1" / "seed_1")}
    assert (tmp_path / "1" / "seed_1" / HISTORY).is_file()


def test_a_retried_trial_whose_run_had_finished_takes_its_result(study, tmp_path, monkeypatch):
    store_run = _SeedTrainings._store_run

    def fail_once(trainings, result):
        monkeypatch.setattr(_SeedTrainings, "_store_run", store_run)
        raise RuntimeError("the machine went away")

    monkeypatch.setattr(_SeedTrainings, "_store_run", fail_once)
    with pytest.raises(RuntimeError):
        train_next(study, tmp_path)
    trained = []
    monkeypatch.setattr(TrialCallback, "on_train_start", lambda _self, total, first: trained.append((first, total)))

    train_next(study, tmp_path)

    assert not trained
    failed, done = study.trials()
    assert (failed.state.name, done.state.name) == ("FAIL", "COMPLETE")
    assert done.value == min(failed.intermediate_values.values())
