"""What the Torch backend's training can do besides the contract."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backend_setup import Recorder, Setup

from speechtrain.backends.base import Backend
from speechtrain.backends.callbacks import Callback
from speechtrain.backends.failures import NonFiniteLossError
from speechtrain.backends.torch import lr_finder
from speechtrain.backends.torch.backend import TorchBackend
from speechtrain.errors import RunError, UserError


@pytest.fixture
def backend() -> Backend:
    return TorchBackend(threads=1)


def spoil(setup: Setup, batches: set[int]) -> Any:
    """The training loader, with NaN in its batches of those numbers, counted over all epochs."""
    train = setup.data.loader("train", shuffle=True)
    assert train is not None
    inner = type(train).__iter__
    seen = iter(range(10**6))

    class Spoilt(type(train)):  # type: ignore[misc]
        def __iter__(self) -> Any:
            for batch in inner(self):
                if next(seen) in batches:
                    batch.features[0] = np.nan
                yield batch

    train.__class__ = Spoilt
    return train


def test_a_step_whose_gradient_is_not_finite_is_left_out_and_counted(
    backend: Backend, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    setup = Setup(backend, tmp_path, "model=tdnn", "trainer.epochs=2", "data.batch_size=4", "trainer.max_skipped_steps=1")
    recorder, model = Recorder(), setup.build()
    backend.train(model, spoil(setup, {1, 4}), setup.data.loader("val"), setup.task, setup.plan(), [recorder])
    assert recorder.metrics[0]["train/skipped_steps"] == 2
    assert "train/skipped_steps" not in recorder.metrics[1]
    assert all(np.isfinite(list(metrics.values())).all() for metrics in recorder.metrics)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert caplog.text.count("a gradient is not finite, on the batch of train-") == 1


def test_too_many_such_steps_in_a_row_end_the_run(backend: Backend, tmp_path: Path) -> None:
    setup = Setup(backend, tmp_path, "model=mlp", "trainer.epochs=2", "data.batch_size=4", "trainer.max_skipped_steps=2")
    with pytest.raises(NonFiniteLossError) as caught:
        backend.train(setup.build(), spoil(setup, {1, 3, 4, 5}), None, setup.task, setup.plan(), ())
    assert set(caught.value.ids) == set(np.load(tmp_path / "bad_batch.npz")["ids"])


def test_a_skipped_step_changes_no_weight(backend: Backend, tmp_path: Path) -> None:
    setup = Setup(backend, tmp_path, "model=tdnn", "trainer.epochs=1", "data.batch_size=4", "trainer.max_skipped_steps=99")
    model = setup.build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(NonFiniteLossError):  # at the end of the epoch
        backend.train(model, spoil(setup, set(range(99))), None, setup.task, setup.plan(), ())
    after = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    assert all(torch.equal(value, before[name]) for name, value in after.items())


def test_a_learning_rate_is_found_before_training_and_nothing_else_is_changed(backend: Backend, tmp_path: Path) -> None:
    setup = Setup(backend, tmp_path, "model=tdnn", "trainer.epochs=2", "trainer.find_lr=true", "optimizer.lr=1e-9", "scheduler=constant")
    model = setup.build()
    fresh = {name: value.clone() for name, value in model.state_dict().items()}

    class Beginning(Recorder):
        def on_train_start(self, total_epochs: int, first_epoch: int) -> None:
            assert all(torch.equal(value, fresh[name]) for name, value in model.state_dict().items())

    recorder = Beginning()
    setup.train(model, recorder)
    found = recorder.metrics[0]["train/lr"]
    assert 1e-4 < found < 1e-1
    curve = json.loads((tmp_path / "lr_finder.json").read_text(encoding="utf-8"))
    assert found in [point["lr"] for point in curve]
    assert [event for event in recorder.events if event.startswith("batch 0.0")]
    setup.change({"resume": str(tmp_path)})
    setup.change({"trainer.epochs": 3})
    resumed = Recorder()
    setup.train(setup.build(), resumed)
    assert resumed.metrics[0]["train/lr"] == found


def test_a_rate_is_found_for_what_is_trained_where_parts_are_frozen() -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    layers[0].requires_grad_(requires_grad=False)
    before = layers[0].weight.clone()
    optimizer = torch.optim.SGD([{"params": layers.parameters(), lr_finder.SCALE: 0.5}], lr=1.0)
    batches = [torch.ones(4, 2)] * lr_finder.STEPS
    curve = lr_finder.sweep(optimizer, iter(batches), lambda batch: layers(batch).square().mean(), None)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * curve[-1][0], rel=0.2)  # which grows by a seventh a step
    assert curve[-1][1] < curve[0][1]
    assert torch.equal(layers[0].weight, before)


def test_the_steepest_rate_is_where_the_loss_falls_fastest_and_a_loss_that_never_falls_is_said() -> None:
    rates = [10 ** (-6 + index / 10) for index in range(60)]
    losses_ = [3 - 2 / (1 + np.exp(-(index - 35) / 2)) for index in range(60)]
    assert lr_finder.steepest(list(zip(rates, losses_, strict=True))) == rates[35]
    with pytest.raises(RunError, match=r"trainer\.find_lr=false"):
        lr_finder.steepest([(rate, 1.0 + index) for index, rate in enumerate(rates)])


def test_weights_alone_are_no_checkpoint_to_go_on_from(backend: Backend, tmp_path: Path) -> None:
    setup = Setup(backend, tmp_path, "model=mlp", "trainer.epochs=2", "trainer.average_last=2")
    result = setup.train(setup.build())
    setup.change({"resume": str(result.mean_checkpoint)})
    with pytest.raises(UserError, match=r"mean\.ckpt is not a checkpoint that can be read"):
        setup.train(setup.build())


def test_a_missing_key_that_is_no_part_of_a_checkpoint_is_not_taken_for_a_damaged_one(backend: Backend, tmp_path: Path) -> None:
    setup = Setup(backend, tmp_path, "model=mlp", "trainer.epochs=2")
    setup.train(setup.build())
    setup.change({"resume": str(tmp_path), "trainer.epochs": 3})

    class Broken(Recorder):
        def on_epoch_end(self, *given: Any) -> None:
            raise KeyError("something else")

    with pytest.raises(KeyError, match="something else"):
        setup.train(setup.build(), Broken())


def test_an_epoch_without_a_good_step_ends_the_run(backend: Backend, tmp_path: Path) -> None:
    options = [
        "model=tdnn",
        "trainer.epochs=3",
        "optimizer=sgd",
        "optimizer.lr=1e30",
        "trainer.gradient_clip_val=null",
        "scheduler=constant",
    ]
    setup = Setup(backend, tmp_path, *options, "trainer.max_skipped_steps=999")
    recorder = Recorder()
    with pytest.raises(NonFiniteLossError, match="epoch 2"):
        setup.train(setup.build(), recorder)
    assert len(recorder.metrics) == 1


def test_a_model_larger_than_its_file_is_refused_before_it_is_built(backend: Backend, tmp_path: Path) -> None:
    setup = Setup(
        backend,
        tmp_path,
        "model=tdnn",
        "model.channels=8",
        "model.stem_channels=[4]",
        "model.stem_time_strides=[2]",
        "model.dilations=[1,2]",
    )
    backend.save(setup.build(), tmp_path / "a.ckpt", {})
    sizes = {"input_size": setup.data.features.size}
    assert backend.restore(setup.cfg.model, setup.task, tmp_path / "a.ckpt", **sizes) is not None
    for changes, told in (
        ({"channels": 10**6}, r"has the shape \(.*8.*\), and its config asks for \(.*1000000"),
        ({"dilations": [1] * 1000}, r"model\.dilations of its config is \[1, 1.*and it has \d+ weights"),
        ({"dilations": [1, 2, 4]}, "it has no weight"),
        ({"dilations": [1]}, "its config has no weight"),
    ):
        with pytest.raises(UserError, match=rf"a\.ckpt holds another model: .*{told}"):
            backend.restore({**setup.cfg.model, **changes}, setup.task, tmp_path / "a.ckpt", **sizes)
    for layers in ({"n_layers": 10**9}, {"repeats": 10**9}, {"layers": [1, 10**9]}):
        with pytest.raises(UserError, match=r"of its config is \[?1"):
            backend.restore({**setup.cfg.model, **layers}, setup.task, tmp_path / "a.ckpt", **sizes)


def test_a_run_is_not_resumed_with_another_model(backend: Backend, tmp_path: Path) -> None:
    setup = Setup(backend, tmp_path, "model=mlp", "trainer.epochs=1")
    setup.train(setup.build())
    setup.change({"resume": str(tmp_path), "trainer.epochs": 2})
    with pytest.raises(UserError, match=r"last\.ckpt: training cannot go on from it \(.*\n    -> resume with the model"):
        setup.train(setup.build(hidden_sizes=[16]))


def test_the_loss_of_a_batch_is_told_whole_where_several_make_a_step(backend: Backend, tmp_path: Path) -> None:
    class Losses(Callback):
        def __init__(self) -> None:
            self.told: list[float] = []

        def on_batch_end(self, epoch: int, batch_index: int, batch_count: int, loss: float, lr: float) -> None:
            self.told.append(loss)

    first = []
    for accumulate in (1, 2):
        options = ["model=mlp", f"trainer.accumulate_grad_batches={accumulate}", "trainer.epochs=1", "data.batch_size=20"]
        setup, losses = Setup(backend, tmp_path / str(accumulate), *options), Losses()
        setup.train(setup.build(), losses)
        first.append(losses.told[0])
    assert first[0] == first[1]
