"""The size of batches on Torch: the largest is tried first, one that does not fit is named, and a good one is found."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from backend_setup import Recorder, Setup
from conftest import TINY
from omegaconf import OmegaConf
from torch import nn

import speechtrain
from speechtrain import compose
from speechtrain.backends.base import Backend
from speechtrain.backends.failures import OutOfMemoryError
from speechtrain.backends.schedules import round_up
from speechtrain.backends.torch.backend import TorchBackend
from speechtrain.backends.torch.encoder import stacks_of
from speechtrain.errors import ConfigError
from speechtrain.tracking.run_folder import write_run_file
from speechtrain.training.batch_size import find_batch_seconds


@pytest.fixture
def backend() -> Backend:
    return TorchBackend(threads=1)


class Greedy(nn.Module):
    """Stands in front of a model and wants more memory than there is for long batches."""

    def __init__(self, encoder: nn.Module, frames: int) -> None:
        super().__init__()
        self.inner, self.frames = encoder, frames
        self.output_size, self.subsampling = encoder.output_size, encoder.subsampling

    def output_lengths(self, lengths: torch.Tensor) -> Any:
        return self.inner.output_lengths(lengths)  # type: ignore[operator]

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> Any:
        if features.shape[0] * features.shape[1] >= self.frames:
            torch.empty(2**52)
        return self.inner(features, lengths)


def test_the_largest_batch_is_tried_first_and_one_that_does_not_fit_is_named(backend: Backend, tmp_path: Path) -> None:
    setup = Setup(backend, tmp_path, "model=mlp", "data.batch_seconds=6", "trainer.try_largest=true")
    train = setup.data.loader("train", shuffle=True)
    assert train is not None
    largest = train.largest()
    size = largest.features.shape[0] * largest.features.shape[1]
    assert size >= max(batch.features.shape[0] * batch.features.shape[1] for batch in train)
    model, recorder = setup.build(), Recorder()
    model.encoder = Greedy(model.encoder, size)
    with pytest.raises(OutOfMemoryError, match=r"does not fit into memory") as caught:
        setup.train(model, recorder)
    assert caught.value.ids == largest.ids
    assert all(name in str(caught.value) for name in largest.ids[:8])
    assert f"data.batch_seconds={round(largest.seconds / 2)}" in str(caught.value)
    assert not recorder.metrics
    assert not [event for event in recorder.events if event.startswith("batch")]


def test_a_batch_that_does_not_fit_later_is_named_as_well(backend: Backend, tmp_path: Path) -> None:
    setup = Setup(backend, tmp_path, "model=mlp", "data.batch_seconds=6")
    train = setup.data.loader("train", shuffle=True)
    assert train is not None
    sizes = {batch.features.shape[0] * batch.features.shape[1]: batch.ids for batch in train}
    model = setup.build()
    model.encoder = Greedy(model.encoder, max(sizes))
    with pytest.raises(OutOfMemoryError) as caught:
        setup.train(model, Recorder())
    assert caught.value.ids == sizes[max(sizes)]


def test_trying_the_largest_batch_changes_no_number(backend: Backend, tmp_path: Path) -> None:
    found = []
    for wanted in ("true", "false"):
        setup = Setup(backend, tmp_path / wanted, "model=tdnn", "trainer.epochs=2", f"trainer.try_largest={wanted}")
        recorder, model = Recorder(), setup.build()
        setup.train(model, recorder)
        found.append((recorder.metrics, setup.measure(model, "val")["val/loss"]))
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("mlp", []),
        pytest.param("lstm", ["model.dropout=0"], marks=pytest.mark.slow),
        pytest.param("conformer", ["model.n_layers=2", "model.dropout=0", "task.intermediate=0.3"], marks=pytest.mark.slow),
    ],
)
def test_a_compiled_step_has_the_numbers_of_one_that_is_not_and_few_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, options: list[str]
) -> None:
    shapes: set[Any] = set()
    graphs = 0

    def traced(graph: Any, inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        shapes.update(tuple(each.shape) for each in inputs if isinstance(each, torch.Tensor) and each.ndim == 3)
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=traced))
    torch.compiler.reset()
    found = []
    for wanted in (False, True):
        backend = TorchBackend(threads=1, compile=wanted)
        common = ["model.dropout=0", "trainer.epochs=2", "data.batch_size=6", f"model={model}", *options]
        setup = Setup(backend, tmp_path / str(wanted), *common)
        recorder, built = Recorder(), setup.build()
        for norm in built.modules():
            if isinstance(norm, nn.BatchNorm1d):
                norm.eval()
                norm.train = lambda *_: None  # its statistics see what is added
        setup.train(built, recorder)
        found.append([epoch["train/loss"] for epoch in recorder.metrics] + [setup.measure(built, "val")["val/loss"]])
        again = setup.build()
        backend.load(again, tmp_path / str(wanted) / "checkpoints" / "last.ckpt")
        assert all(torch.equal(value, built.state_dict()[name]) for name, value in again.state_dict().items())
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    if stacks_of(built.encoder):
        assert 1 <= graphs <= 8  # one for all layers, those for changing sizes and for one row, with padding and without
        return
    features = {shape for shape in shapes if shape[2] == 40}
    assert features
    assert all(rows == round_up(rows, 4) and frames == round_up(frames, 4) for rows, frames, _ in features)


def test_batches_are_made_as_long_as_it_pays_and_fits_into_memory(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    setup = Setup(backend, tmp_path, "model=mlp", "data.train_size=400", "trainer.batch_seconds=auto")
    model = setup.build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pays_up_to, fits_up_to = 60.0, 1e9

    def step_seconds(model: Any, batch: Any, task: Any, trainer: Any) -> float:
        TorchBackend.step_seconds(backend, model, batch, task, trainer)
        if batch.seconds > fits_up_to:
            raise OutOfMemoryError(batch, "out of memory")
        return max(batch.seconds, pays_up_to) / 100

    monkeypatch.setattr(backend, "step_seconds", step_seconds)
    trainer = setup.plan().trainer

    def found() -> float:
        return find_batch_seconds(backend, model, setup.data, setup.task, trainer)

    with caplog.at_level(logging.INFO):
        assert found() == 60
    assert "data.batch_seconds=60 found" in caplog.text
    fits_up_to = 32
    assert found() == 30
    fits_up_to = 5
    with pytest.raises(OutOfMemoryError):
        found()
    pays_up_to, fits_up_to = 1e9, 1e9
    assert found() == 60  # each of the ten buckets is one batch, so that larger ones hold no more
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ConfigError, match=r"trainer.devices is 2"):
        find_batch_seconds(backend, model, setup.data, setup.task, replace(trainer, devices=2))


def test_the_size_of_batches_that_was_found_stays_that_of_the_run(tmp_path: Path) -> None:
    options = [*TINY, "model=mlp", "trainer.batch_seconds=auto", "data.batch_size=100"]
    result = speechtrain.train(compose([*options, "trainer.epochs=1"]))
    found = result.metrics["data/batch_seconds"]
    assert found >= 15
    assert OmegaConf.load(result.folder / "config.yaml").data.batch_seconds == found
    assert speechtrain.load(str(result.folder)).cfg.data.batch_seconds == found
    write_run_file(result.folder, {"batch_seconds": 7.0})
    resumed = speechtrain.train(compose([*options, "trainer.epochs=2", f"resume={result.folder}"], output_dir=result.folder))
    assert resumed.metrics["data/batch_seconds"] == 7
    with pytest.raises(ConfigError, match="the Keras backend cannot measure a step"):
        speechtrain.train(compose([*options, "backend=keras"]))
