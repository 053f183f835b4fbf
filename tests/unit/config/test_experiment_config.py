"""The config as a typed object: what it is made of, what it is completed with, and how values are changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from speechtrain import compose
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.config.schemas.training import EarlyStopping, Trainer


def stored(cfg: DictConfig) -> DictConfig:
    """The config as a run's folder has it: resolved, and without types."""
    content = OmegaConf.create(OmegaConf.to_yaml(cfg, resolve=True))
    assert isinstance(content, DictConfig)
    return content


def test_options_are_dataclasses_and_components_are_their_targets_with_arguments(tmp_path: Path) -> None:
    cfg = compose(["data=synthetic", "model=conformer", "trainer.early_stopping.patience=3", "data.batch_seconds=7"], output_dir=tmp_path)
    config = ExperimentConfig.of(cfg)
    assert isinstance(config.trainer, Trainer)
    assert config.trainer.early_stopping == EarlyStopping(patience=3, min_delta=0.0, monitor=None)
    assert config.data.batch_seconds == 7
    assert config.corpus["_target_"] == "speechtrain.data.corpora.synthetic.Synthetic"
    assert "alphabet" in config.corpus
    assert "batch_seconds" not in config.corpus
    assert config.model["d_model"] == 96
    assert "size" not in config.model
    assert set(config.tracking) == {"mlflow"}
    assert config.objective.metric == cfg.objective.metric


def test_a_class_of_the_users_own_may_have_any_arguments(tmp_path: Path) -> None:
    (tmp_path / "own_encoders.py").write_text("def make(width, nested, input_size): ...\n")
    cfg = compose(["model=custom", "model._target_=own_encoders.make", "+model.width=8", "+model.nested.depth=2"], output_dir=tmp_path)
    assert ExperimentConfig.of(cfg).model == {"_target_": "own_encoders.make", "width": 8, "nested": {"depth": 2}}


def test_a_stored_config_is_the_same_as_the_composed_one(tmp_path: Path) -> None:
    cfg = compose(["data=synthetic", "trainer.ema_decay=0.9", "tracking=[]"], output_dir=tmp_path)
    assert ExperimentConfig.of(stored(cfg)) == ExperimentConfig.of(cfg)


@pytest.mark.parametrize(
    "key", ["trainer.find_lr", "trainer.checkpoint.every_n_steps", "data.check_hours", "data.on_shared.audio", "report", "trust"]
)
def test_a_key_that_an_old_run_does_not_have_has_the_value_of_conf(tmp_path: Path, key: str) -> None:
    cfg = compose(["data=synthetic"], output_dir=tmp_path)
    old = stored(cfg)
    parent, _, name = key.rpartition(".")
    del (OmegaConf.select(old, parent) if parent else old)[name]
    assert ExperimentConfig.of(old) == ExperimentConfig.of(cfg)


def test_a_key_that_is_no_more_is_no_mistake_of_an_old_run(tmp_path: Path) -> None:
    cfg = compose(["data=synthetic"], output_dir=tmp_path)
    old = stored(cfg)
    old.trainer.colour = "red"
    old.trainer.checkpoint.size = 3
    assert ExperimentConfig.of(old).trainer.epochs == cfg.trainer.epochs


def test_what_is_interpolated_from_a_changed_key_follows_it(tmp_path: Path) -> None:
    cfg = compose(["data=synthetic", "scheduler=step", "scheduler.step_epochs='${trainer.epochs}'"], output_dir=tmp_path)
    config = ExperimentConfig.of(cfg).with_values({"trainer.epochs": 3})
    assert config.trainer.epochs == config.scheduler["step_epochs"] == 3
    assert config.as_dict()["scheduler"]["step_epochs"] == 3
    assert cfg.trainer.epochs == 15


def test_parts_of_a_mix_of_corpora_have_only_their_own_arguments(tmp_path: Path) -> None:
    options = ["data=mix", "+data@data.corpora.a=synthetic", "+data@data.corpora.b=synthetic"]
    cfg = compose(options, output_dir=tmp_path)
    for config in (ExperimentConfig.of(cfg), ExperimentConfig.of(stored(cfg))):
        assert "batch_seconds" not in config.corpus["corpora"]["a"]
        assert "alphabet" in config.corpus["corpora"]["a"]
