"""A run goes on where its folder is not: what it needs comes from MLflow, and its numbers are those of a run that was never interrupted."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import TINY
from mlflow import MlflowClient

from speechtrain import compose, train
from speechtrain.app.resume import resume_arguments
from speechtrain.files import sqlite_address
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
