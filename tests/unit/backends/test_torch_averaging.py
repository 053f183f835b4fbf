"""Averages of weights: the moving one, and the mean of the last checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from backend_setup import Recorder, Setup
from torch import nn

from speechtrain import compose
from speechtrain.backends.base import Backend
from speechtrain.backends.torch.averaging import MovingAverage
from speechtrain.backends.torch.backend import TorchBackend
from speechtrain.errors import ConfigError


@pytest.fixture
def backend() -> Backend:
    return TorchBackend(threads=1)


def weights(path: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return found


def test_the_moving_average_is_that_of_the_formula() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 4.0)
    average = MovingAverage(model, 0.2)
    nn.init.constant_(model.weight, 8.0)
    average.update()  # min(0.2, 2 / 11)
    nn.init.constant_(model.weight, 0.0)
    average.update()  # min(0.2, 3 / 12)
    expected = 0.2 * (4 * 2 / 11 + 8 * 9 / 11)
    assert average.weights["weight"].item() == pytest.approx(expected)
    average.swap()
    assert model.weight.item() == pytest.approx(expected)
    average.swap()
    assert model.weight.item() == 0


def test_validation_checkpoints_and_the_model_have_the_average_and_a_resumed_run_goes_on_with_the_weights(
    backend: Backend, tmp_path: Path
) -> None:
    options = ["model=tdnn", "trainer.epochs=4", "data.batch_size=4", "trainer.ema_decay=0.9"]
    whole, resumed = Recorder(), Recorder()
    one = Setup(backend, tmp_path / "one", *options)
    averaged = one.build()
    one.train(averaged, whole)
    stored = torch.load(tmp_path / "one/checkpoints/last.ckpt", weights_only=True)
    for name, value in averaged.state_dict().items():
        assert torch.equal(stored["state_dict"][f"model.{name}"], value)
    assert not torch.equal(stored["trained"]["model.head.weight"], averaged.head.weight)
    again = one.build()
    backend.load(again, tmp_path / "one/checkpoints/last.ckpt")
    assert one.measure(again, "val")["val/loss"] == pytest.approx(whole.metrics[-1]["val/loss"])
    two = Setup(backend, tmp_path / "two", *options)
    with pytest.raises(KeyboardInterrupt):
        two.train(two.build(), Recorder(interrupt_in=2))
    two.change({"resume": str(tmp_path / "two")})
    continued = two.build()
    two.train(continued, resumed)
    assert resumed.metrics == whole.metrics[2:]
    assert torch.equal(continued.head.weight, averaged.head.weight)


def test_the_mean_of_the_last_checkpoints_is_kept(backend: Backend, tmp_path: Path) -> None:
    options = ["model=tdnn", "trainer.epochs=4", "trainer.average_last=2", "trainer.test_checkpoint=mean"]
    setup = Setup(backend, tmp_path, *options, "trainer.checkpoint.every_n_epochs=1")
    result = setup.train(setup.build())
    folder = tmp_path / "checkpoints"
    assert result.mean_checkpoint == folder / "mean.ckpt"
    mean, third, fourth = (weights(folder / f"{name}.ckpt") for name in ("mean", "epoch=003", "epoch=004"))
    for name, value in mean.items():
        wanted = (third[name] + fourth[name]) / 2 if value.is_floating_point() else fourth[name]
        torch.testing.assert_close(value, wanted)
    assert sorted(path.name for path in folder.glob("recent*")) == ["recent-epoch=003.ckpt", "recent-epoch=004.ckpt"]
    backend.load(setup.build(), result.mean_checkpoint)


def test_the_mean_is_tested_only_where_weights_are_averaged() -> None:
    with pytest.raises(ConfigError, match=r"set trainer\.average_last=5"):
        compose(["trainer.test_checkpoint=mean"])
