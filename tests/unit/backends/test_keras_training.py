"""What the trainer's keys do on Keras is what they do on Torch."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

if importlib.util.find_spec("keras") is None:  # importing it would choose its engine
    pytest.skip("needs the keras extra", allow_module_level=True)

from backend_setup import Recorder, Setup

from speechtrain.backends.base import Backend
from speechtrain.backends.keras import files
from speechtrain.backends.keras.backend import KerasBackend
from speechtrain.backends.torch.backend import TorchBackend
from speechtrain.errors import ConfigError, UserError

SMALL = ["model=mlp", "data.batch_seconds=12", "trainer.epochs=3"]


def keras_backend(**options: object) -> KerasBackend:
    return KerasBackend("tensorflow", 1, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["trainer.max_steps=14"], marks=pytest.mark.long),
        pytest.param(["trainer.max_steps=10"], marks=pytest.mark.slow),
        ["trainer.val_every_n_epochs=2", "objective.metric=train/loss"],
        ["trainer.accumulate_grad_batches=4", "trainer.max_steps=4"],
    ],
    ids=" ".join,
)
def test_a_limited_training_has_the_events_and_metrics_that_it_has_on_torch(tmp_path: Path, options: list[str]) -> None:
    found = []
    backends: list[Backend] = [TorchBackend(1), keras_backend()]
    for backend in backends:
        setup = Setup(backend, tmp_path / backend.name, *SMALL, *options)
        recorder = Recorder()
        result = setup.train(setup.build(), recorder)
        found.append((recorder.events, [list(metrics) for metrics in recorder.metrics], len(result.history)))
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "precision",
    [
        *("16-mixed", pytest.param("bf16-true", marks=pytest.mark.long)),
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("bf16-mixed", "64-true")),
    ],
)
def test_every_precision_trains(tmp_path: Path, precision: str) -> None:
    setup = Setup(keras_backend(precision=precision), tmp_path, "model=tdnn", "model.channels=16", f"trainer.precision={precision}")
    setup.change({"trainer.epochs": 2})
    recorder = Recorder()
    model = setup.build()
    setup.train(model, recorder)
    assert all(math.isfinite(value) for metrics in recorder.metrics for value in metrics.values())
    assert recorder.metrics[1]["train/loss"] < recorder.metrics[0]["train/loss"]
    kinds = {str(weight.dtype) for weight in model.trainable_weights}
    assert kinds == {{"bf16-true": "bfloat16", "64-true": "float64"}.get(precision, "float32")}


def test_any_optimizer_of_keras_can_be_named_and_is_clipped_and_measured(tmp_path: Path) -> None:
    lion = ["optimizer=custom", "optimizer._target_=keras.optimizers.Lion", "+optimizer.learning_rate=1e-3"]
    setup = Setup(keras_backend(), tmp_path, *SMALL, *lion, "trainer.gradient_clip_val=0.1", "scheduler=constant")
    recorder = Recorder()
    setup.train(setup.build(), recorder)
    assert recorder.metrics[-1]["train/loss"] < recorder.metrics[0]["train/loss"]
    assert recorder.metrics[0]["train/grad_norm"] > 0.1
    assert recorder.metrics[0]["train/lr"] == pytest.approx(1e-3)


def test_a_checkpoint_is_a_file_that_keras_itself_loads(tmp_path: Path) -> None:
    import keras

    setup = Setup(keras_backend(), tmp_path, "model=tdnn", "model.channels=16", "trainer.epochs=1")
    model = setup.build()
    result = setup.train(model)
    assert result.last_checkpoint is not None
    loaded = keras.saving.load_model(result.last_checkpoint)
    features, lengths = np.random.default_rng(0).standard_normal((2, 50, 40)).astype(np.float32), np.array([50, 30], dtype=np.int32)
    np.testing.assert_array_equal(loaded(features, lengths)[0], model(features, lengths)[0])
    last = model.with_blank_last()
    np.testing.assert_array_equal(last(features, lengths)[0], np.roll(model(features, lengths)[0], -1, axis=-1))


def test_a_file_with_more_weights_than_its_config_asks_for_is_refused(tmp_path: Path) -> None:
    setup = Setup(keras_backend(), tmp_path, "model=tdnn", "model.channels=8", "model.dilations=[1,2]")
    model = setup.build()
    setup.backend.save(model, tmp_path / "a.keras", {})
    setup.backend.load(model, tmp_path / "a.keras")
    with pytest.raises(UserError, match=r"a\.keras holds another model: it has \d+ weights, and its config asks for \d+\n"):
        setup.backend.load(setup.build(dilations=[1]), tmp_path / "a.keras")


@pytest.mark.slow
def test_a_run_is_not_resumed_with_another_optimizer_or_from_a_file_without_one(tmp_path: Path) -> None:
    setup = Setup(keras_backend(), tmp_path / "one", *SMALL)
    model = setup.build()
    result = setup.train(model)
    other = Setup(keras_backend(), tmp_path / "two", *SMALL, "optimizer=sgd", f"resume={result.last_checkpoint}")
    with pytest.raises(UserError, match="state of another optimizer"):
        other.train(other.build())
    setup.backend.save(model, tmp_path / "weights.keras", {})
    alone = Setup(keras_backend(), tmp_path / "three", *SMALL, f"resume={tmp_path / 'weights.keras'}")
    with pytest.raises(UserError, match=r"weights\.keras"):
        alone.train(alone.build())


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup(keras_backend(), tmp_path, *SMALL)
    model = setup.build()
    files.write(model, tmp_path / "model.keras", {"extra": {"a": 1}})
    monkeypatch.setattr("speechtrain.files.os.fsync", lambda _: (_ for _ in ()).throw(OSError("no space left on device")))
    with pytest.raises(OSError, match="no space"):
        files.write(model, tmp_path / "model.keras", {"extra": {"a": 2}})
    assert files.read_state(tmp_path / "model.keras") == {"extra": {"a": 1}}
    assert [path.name for path in tmp_path.iterdir() if "tmp" in path.name] == []


@pytest.mark.slow
def test_the_graph_of_the_ctc_loss_is_made_once_for_all_models(tmp_path: Path) -> None:
    from speechtrain.backends.keras import losses

    losses.ctc_graph.cache_clear()
    for name in ("one", "two"):
        setup = Setup(keras_backend(), tmp_path / name, *SMALL, "trainer.epochs=1")
        setup.train(setup.build())
    assert losses.ctc_graph.cache_info().misses == 1
    assert losses.ctc_graph(setup.task.head.size).experimental_get_tracing_count() == 1


@pytest.mark.slow
def test_one_graph_predicts_batches_of_any_size(tmp_path: Path) -> None:
    setup = Setup(keras_backend(), tmp_path, *SMALL)
    model = setup.build()
    batches = list(setup.data.loader("train") or [])
    assert len({batch.features.shape for batch in batches}) > 1
    setup.outputs(model, batches)
    assert model.step(setup.task, compiled=False).predict_function.experimental_get_tracing_count() == 1, (
        "Keras has changed: Model.predict_function"
    )
    for batch in batches:
        setup.backend.infer(model, batch.features, batch.feature_lengths)
    assert model.inference(compiled=False).predict_function.experimental_get_tracing_count() == 1


def test_another_engine_than_the_processs_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"backend.engine: is jax, but this process runs Keras on tensorflow"):
        KerasBackend("jax", 1)
