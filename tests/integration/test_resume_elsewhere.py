"""A run goes on where its folder is not: what it needs comes from MLflow, and its numbers are those of a run that was never interrupted."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import optuna
import pytest
from conftest import TINY
from mlflow import MlflowClient

from speechtrain import compose, train
from speechtrain.app.resume import resume_arguments
from speechtrain.files import sqlite_address
from speechtrain.sweep.space.space import parse_space
from speechtrain.sweep.study.samplers import sampler_factory
from speechtrain.sweep.study.storage import open_storage
from speechtrain.sweep.study.study import ClaimedTrial, Study
from speechtrain.sweep.trial.context import TrialContext
from speechtrain.sweep.trial.job import TrialCallback, run_trial
from speechtrain.training.history import HISTORY, read_history
from speechtrain.training.result import Result

EPOCHS = 4
SHORT = [*(item for item in TINY if item != "tracking=[]"), "data.train_size=24", "tracking.mlflow.log_model=false"]
SHORT += ["tracking.mlflow.system_metrics=null", "tracking.mlflow.log_last=true"]
SHORT += ["model=mlp", "scheduler=warmup_cosine", "trainer.average_last=2"]


def at(folder: Path) -> list[str]:
    """The words for a database whose artifacts lie beside it, away from all runs."""
    return [f"tracking.mlflow.tracking_uri={sqlite_address(folder / 'server' / 'mlflow.db')}"]


def resumed(words: Sequence[str]) -> Result:
    """What `python -m speechtrain WORDS` makes of a run, with words that name it."""
    arguments = resume_arguments(list(words))
    folder = next(item.partition("=")[2] for item in arguments if item.startswith("hydra.run.dir="))
    own = [item for item in arguments if not item.startswith("hydra.")]
    return train(compose(own, output_dir=folder), overrides=own)


def numbers(folder: Path) -> list[dict[str, float]]:
    """What is the same whenever it is computed."""
    return [{name: value for name, value in each.items() if not name.startswith(("time/", "train/audio"))} for each in read_history(folder)]


def stop_after(monkeypatch: pytest.MonkeyPatch, epochs: int) -> None:
    """Let a training fail at the end of an epoch, of which no checkpoint is written then."""
    from speechtrain.tracking.callback import Track

    epoch_end = Track.on_epoch_end

    def on_epoch_end(self, epoch, metrics, control):
        epoch_end(self, epoch, metrics, control)
        if epoch + 1 == epochs:
            raise RuntimeError("the machine went away")

    monkeypatch.setattr(Track, "on_epoch_end", on_epoch_end)


@pytest.mark.parametrize("backend", [[], pytest.param(["backend=keras", "trainer.average_last=null"], marks=pytest.mark.slow)])
def test_a_run_whose_folder_is_gone_goes_on_in_the_same_run_of_mlflow_with_the_numbers_of_one_in_one_go(tmp_path, monkeypatch, backend):
    words = [*SHORT, *at(tmp_path), *backend, f"trainer.epochs={EPOCHS}"]
    untracked = [item for item in words if not item.startswith("tracking.")]
    whole = train(compose([*untracked, "tracking=[]"], output_dir=tmp_path / "whole"))
    begun = tmp_path / "begun"
    (begun / ".hydra").mkdir(parents=True)
    (begun / ".hydra" / "overrides.yaml").write_text("".join(f"- {item}\n" for item in words))  # as Hydra does
    with monkeypatch.context() as patched:
        stop_after(patched, EPOCHS - 1)
        with pytest.raises(RuntimeError, match="went away"):
            train(compose(words, output_dir=begun), overrides=words)
    client = MlflowClient(at(tmp_path)[0].partition("=")[2])
    (run,) = client.search_runs([client.get_experiment_by_name("speechtrain").experiment_id])
    shutil.rmtree(begun)

    result = resumed([f"resume={run.info.run_id}", *at(tmp_path)])

    assert result.run_ids == {"mlflow": run.info.run_id}
    assert numbers(result.folder / HISTORY) == numbers(tmp_path / "whole" / HISTORY)
    assert {name: value for name, value in result.metrics.items() if not name.endswith("_per_s") and not name.startswith("time/")} == {
        name: value for name, value in whole.metrics.items() if not name.endswith("_per_s") and not name.startswith("time/")
    }
    assert result.checkpoint is not None
    assert whole.checkpoint is not None
    assert result.checkpoint.name == whole.checkpoint.name
    assert weights(result.checkpoint) == weights(whole.checkpoint)
    ended = client.get_run(run.info.run_id)
    assert ended.info.status == "FINISHED"
    losses = [metric.value for metric in client.get_metric_history(run.info.run_id, "train/loss")]
    assert losses == [epoch["train/loss"] for epoch in numbers(tmp_path / "whole" / HISTORY)]


def weights(checkpoint: Path) -> bytes:
    """The numbers of a checkpoint's weights."""
    if checkpoint.suffix == ".keras":
        import zipfile

        import h5py

        with zipfile.ZipFile(checkpoint) as archive, archive.open("model.weights.h5") as file, h5py.File(file) as content:
            arrays: list[bytes] = []
            content.visititems(lambda _, item: arrays.append(item[()].tobytes()) if isinstance(item, h5py.Dataset) else None)
            return b"".join(arrays)
    import torch

    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    return b"".join(value.numpy().tobytes() for value in state.values())


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """A study of one trial, which may be tried once more."""
    url = f"journal:///{tmp_path}/study.journal"
    return Study(
        url,
        open_storage(url),
        "study",
        directions=["minimize"],
        space=parse_space(["seed=1"], {}),
        settings={},
        make_sampler=sampler_factory(None, conditional=False),
        pruner=optuna.pruners.NopPruner(),
        first=[],
        n_trials=1,
        retries=2,
    )


def train_next(study: Study, folder: Path, words: Sequence[str], **context: int) -> ClaimedTrial:
    """Claim the next trial and train it in the folder of its number."""
    claimed = study.claim()
    assert claimed is not None
    cfg = compose([*words, f"trainer.epochs={EPOCHS}"], output_dir=folder / str(claimed.number))
    about = TrialContext(study.url, study.name, claimed.id, claimed.number, ["val/loss"], retry_of=claimed.retry_of, **context)
    run_trial(about, cfg, words)
    return claimed


@pytest.mark.parametrize("seeds", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_trial_whose_machine_is_gone_goes_on_elsewhere_with_the_numbers_of_one_that_never_failed(study, tmp_path, monkeypatch, seeds):
    words = [*SHORT, *at(tmp_path)]
    with monkeypatch.context() as patched:
        stop_after(patched, EPOCHS - 1)
        with pytest.raises(RuntimeError, match="went away"):
            train_next(study, tmp_path / "one machine", words, seeds=seeds)
    shutil.rmtree(tmp_path / "one machine")
    trained = []
    monkeypatch.setattr(TrialCallback, "on_train_start", lambda _self, total, first: trained.append((first, total)))

    again = train_next(study, tmp_path / "another", words, seeds=seeds)

    untracked = [item for item in words if not item.startswith("tracking.")]
    whole = train(compose([*untracked, "tracking=[]", f"trainer.epochs={EPOCHS}"], output_dir=tmp_path / "whole"))
    assert trained[0] == (EPOCHS - 2, EPOCHS)
    own = tmp_path / "another" / str(again.number)
    assert numbers((own if seeds == 1 else own / "seed_0") / HISTORY) == numbers(tmp_path / "whole" / HISTORY)
    _, done = study.trials()
    assert done.state.name == "COMPLETE"
    assert list(done.intermediate_values.values()) == [epoch["val/loss"] for epoch in whole.history]
    client = MlflowClient(at(tmp_path)[0].partition("=")[2])
    runs = client.search_runs([client.get_experiment_by_name("speechtrain").experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"] * seeds
    assert "goes on from what MLflow has of trial 0" in (own / "output.log").read_text()


@pytest.mark.slow
def test_what_a_pruned_trial_would_have_gone_on_from_is_deleted_there(study, tmp_path, monkeypatch):
    words = [*SHORT, *at(tmp_path)]

    def prune(_self, epoch, metrics, control):
        control.prune(f"{metrics['val/loss']} after epoch {epoch + 1}")

    monkeypatch.setattr(TrialCallback, "on_epoch_end", prune)
    train_next(study, tmp_path, words)
    from speechtrain.tracking.mlflow.writer import writer

    process = writer()._process
    writer().close()
    if process is not None:
        process.wait(60)
    client = MlflowClient(at(tmp_path)[0].partition("=")[2])
    (run,) = client.search_runs([client.get_experiment_by_name("speechtrain").experiment_id])
    assert run.info.status == "KILLED"
    assert client.list_artifacts(run.info.run_id, "resume") == []
