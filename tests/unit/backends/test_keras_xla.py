"""Compiled by XLA, a training is the same; batches are padded to few shapes, and what is added counts nowhere."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if importlib.util.find_spec("keras") is None:  # importing it would choose its engine
    pytest.skip("needs the keras extra", allow_module_level=True)

from backend_setup import Recorder, Setup, alone
from conformance import BackendConformance
from task_conformance import ClassificationConformance, RegressionConformance

from speechtrain.backends.keras.backend import KerasBackend
from speechtrain.backends.keras.feed import Shapes
from speechtrain.backends.schedules import round_up
from speechtrain.data.batches import Batch

pytestmark = pytest.mark.long

SGD = ["optimizer=sgd", "optimizer.lr=1e-3", "model.dropout=0", "augment=none"]
FEW_SHAPES = ["data.num_buckets=1", "data.train_size=16", "data.batch_size=16"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [["model=tdnn", "model.dilations=[1]"], pytest.param(["model=mlp", "task.consistency=0.2"], marks=pytest.mark.slow)],
    ids=" ".join,
)
def test_a_compiled_training_gives_the_same_losses(tmp_path: Path, options: list[str]) -> None:
    found = []
    for compiled in (False, True):
        setup = Setup(
            KerasBackend("tensorflow", 1, jit_compile=compiled), tmp_path / str(compiled), *SGD, *FEW_SHAPES, *options, "trainer.epochs=2"
        )
        recorder = Recorder()
        setup.train(setup.build(), recorder, views=2 if setup.task.consistency else 1)
        found.append(recorder.metrics)
    for plain, jitted in zip(*found, strict=True):
        assert jitted == pytest.approx(plain, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("task", [ClassificationConformance, pytest.param(RegressionConformance, marks=pytest.mark.slow)])
def test_other_tasks_are_the_same_compiled(tmp_path: Path, task: type[BackendConformance]) -> None:
    found, outputs = [], []
    for compiled in (False, True):
        backend = KerasBackend("tensorflow", 1, jit_compile=compiled)
        options = ["model=mlp", *SGD, "data.num_buckets=1", "data.train_size=11", "data.batch_size=11", "trainer.epochs=2"]
        setup = Setup(backend, tmp_path / str(compiled), *options, base=task.options)
        recorder, model = Recorder(), setup.build()
        setup.train(model, recorder)
        found.append(recorder.metrics)
        outputs.append(setup.outputs(model, list(setup.data.loader("val") or []))[0].values)
    for plain, jitted in zip(*found, strict=True):
        assert jitted == pytest.approx(plain, rel=1e-3, abs=1e-5)
    np.testing.assert_allclose(outputs[1], outputs[0], atol=1e-4)


def test_sizes_are_rounded_up_to_a_row_that_wastes_at_most_a_quarter() -> None:
    sizes = {round_up(size, 4) for size in range(1, 1000)}
    assert sorted(sizes)[:14] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24]
    assert all(size <= round_up(size, 4) < 1.25 * size for size in range(1, 1000))
    assert {round_up(size, 1) for size in range(1, 100)} == {1, 2, 4, 8, 16, 32, 64, 128}


def test_padding_keeps_views_halves_of_the_batch_and_adds_rows_of_no_length(tmp_path: Path) -> None:
    setup = Setup(KerasBackend("tensorflow", 1), tmp_path, "model=mlp", "data.batch_size=9")
    loader = setup.data.loader("train", views=2)
    assert loader is not None
    batch = next(iter(loader))
    arrays: dict[str, Any] = Shapes(active=True).inputs(batch, views=2)
    rows, frames = len(batch.ids) // 2, batch.features.shape[1]
    padded = round_up(rows, 4)
    assert arrays["features"].shape == (2 * padded, round_up(frames, 4), batch.features.shape[2])
    for view in range(2):
        ours = slice(view * padded, view * padded + rows)
        np.testing.assert_array_equal(arrays["features"][ours, :frames], batch.features[view * rows : (view + 1) * rows])
        np.testing.assert_array_equal(arrays["target_lengths"][ours], batch.target_lengths[view * rows : (view + 1) * rows])
        assert not arrays["feature_lengths"][view * padded + rows : (view + 1) * padded].any()
    assert not arrays["features"][:, frames:].any()


@pytest.mark.parametrize(
    "options",
    [
        ["model=tdnn", "model.dilations=[1]"],
        pytest.param(["model=crdnn", "model.rnn_size=16", "model.rnn_layers=1"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_a_compiled_model_predicts_what_a_plain_one_does(tmp_path: Path, options: list[str]) -> None:
    outputs = []
    for compiled in (False, True):
        setup = Setup(KerasBackend("tensorflow", 1, jit_compile=compiled), tmp_path / str(compiled), *options)
        batch: Batch = next(iter(setup.data.loader("val") or []))
        outputs.append(setup.outputs(setup.build(), [batch, alone(batch, 0)]))
    for plain, jitted in zip(*outputs, strict=True):
        np.testing.assert_array_equal(plain.lengths, jitted.lengths)
        np.testing.assert_allclose(plain.losses, jitted.losses, rtol=1e-4)
        for row, length in enumerate(plain.lengths):
            np.testing.assert_allclose(plain.values[row, :length], jitted.values[row, :length], atol=1e-4)
