"""What a process trains that comes through the network, where anybody may have written it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import TINY
from omegaconf import DictConfig, OmegaConf

import speechtrain
from speechtrain.app.launch import own_config
from speechtrain.backends.torch.rendezvous import Order
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.errors import ConfigError, UserError
from speechtrain.processes.launch_environment import Launch
from speechtrain.training.distributed import check_launch, config_of

ARGUMENTS = [*TINY, "model=mlp"]
LAUNCH = Launch("srun", 1, 2, 0, 1, False, "slurm-1-0", "localhost", 1, None, restarts=False)


@pytest.fixture(scope="module")
def order() -> Order:
    cfg = ExperimentConfig.of(speechtrain.compose(ARGUMENTS))
    return Order(cfg.as_yaml(), "run", None, {}, 2, False, None)


def with_value(order: Order, key: str, value: str) -> Order:
    cfg = OmegaConf.create(order.config)
    OmegaConf.update(cfg, key, value)
    return replace(order, config=OmegaConf.to_yaml(cfg))


def never() -> DictConfig:
    raise AssertionError("composed without need")


def test_a_config_that_names_classes_of_this_package_is_trained_as_it_is(order: Order) -> None:
    assert config_of(order, never).as_yaml() == order.config


@pytest.mark.parametrize("key", ["model._target_", "optimizer._target_", "data.extra._target_"])
def test_a_class_that_was_not_typed_for_this_process_is_not_called(order: Order, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key}: is os.system, which is not of this package, and not what was typed for this process"):
        config_of(with_value(order, key, "os.system"), lambda: own_config(ARGUMENTS))


def test_a_class_that_was_typed_for_this_process_is(order: Order) -> None:
    target = "model._target_=torch.nn.Linear"
    handed_out = with_value(order, "model._target_", "torch.nn.Linear")
    assert config_of(handed_out, lambda: own_config([*ARGUMENTS, target])).model["_target_"] == "torch.nn.Linear"
    with pytest.raises(ConfigError, match=r"task\._target_: is torch\.nn\.Linear"):
        config_of(with_value(handed_out, "task._target_", "torch.nn.Linear"), lambda: own_config([*ARGUMENTS, target]))


def test_a_class_of_a_file_of_ones_own_is_known(order: Order, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/mine.yaml").write_text("_target_: torch.nn.Linear\nin_features: 3\n")
    own = own_config(["--config-dir", str(tmp_path), *TINY, "model=mine"])
    assert config_of(with_value(order, "model._target_", "torch.nn.Linear"), lambda: own).model["_target_"] == "torch.nn.Linear"


def test_what_would_be_looked_up_on_this_machine_is_refused(order: Order) -> None:
    with pytest.raises(UserError, match="what process 0 hands out: its config cannot be read"):
        config_of(with_value(order, "run_name", "${oc.env:HOME}"), never)


@pytest.mark.parametrize(
    ("key", "value"),
    [("trainer.batch_seconds", "auto"), ("model.unfreeze_after", 2), ("backend.name", "keras")],
)
def test_what_several_processes_cannot_train_is_refused_whatever_each_machine_has(key: str, value: object) -> None:
    cfg = speechtrain.compose(ARGUMENTS)
    check_launch(cfg, LAUNCH)
    OmegaConf.update(cfg, key, value, force_add=True)
    check_launch(cfg, None)
    with pytest.raises(ConfigError, match="srun has started 2 processes"):
        check_launch(cfg, LAUNCH)
