"""Names of runs: what they tell, and that a run is found by the beginning of its name."""

from __future__ import annotations

from datetime import datetime

import pytest

import speechtrain
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.errors import ConfigError
from speechtrain.tracking.mlflow.lookup import choose_run
from speechtrain.tracking.mlflow.names import accepted_name, name_behind_curves, name_of_metric
from speechtrain.tracking.run_names import name_of_run

STARTED = datetime(2026, 12, 1, 14, 5)


def name(*overrides: str, test: str | None = None) -> str:
    values = ExperimentConfig.of(speechtrain.compose(["model=mlp"])).as_dict()
    return name_of_run(values, overrides, test, STARTED)


def test_a_name_tells_model_data_what_was_typed_and_when() -> None:
    typed = ["model=mlp", "optimizer.lr=0.003", "experiment=quick", "+model.dropout=0.1", "~augment", "hydra.run.dir=x", "report.worst=3"]
    assert name(*typed) == "mlp-digits lr=0.003 quick dropout=0.1 12-01 14:05"
    assert name() == "mlp-digits 12-01 14:05"


def test_a_name_marks_a_test_and_stays_short() -> None:
    assert name("dry_run=true", test="dry_run") == "mlp-digits (test: dry_run) 12-01 14:05"
    assert name(*(f"model.size_{number}={number}" for number in range(40))).endswith(" … 12-01 14:05")
    assert len(name(*(f"model.size_{number}={number}" for number in range(40)))) < 100


def test_a_run_is_found_by_the_beginning_of_its_name_and_several_are_listed_with_their_ids() -> None:
    names = {"1a" * 16: "mlp-digits 12-01 14:05", "2b" * 16: "tdnn-digits lr=0.1 12-01 13:05", "3c" * 16: "tdnn-digits 12-01 12:05"}
    assert choose_run("mlp-digits", names, "speechtrain", "sqlite:///a.db", "runs") == "1a" * 16
    with pytest.raises(ConfigError, match=r"2 runs are called 'tdnn-digits', the newest first:\n +2b2b2b2b  tdnn-digits lr=0.1 12-01"):
        choose_run("tdnn-digits", names, "speechtrain", "sqlite:///a.db", "runs")
    with pytest.raises(ConfigError, match=r"give the id or the name of a run; the newest:\n +1a1a1a1a  mlp-digits 12-01 14:05"):
        choose_run("tdnn", names, "speechtrain", "sqlite:///a.db", "runs")


def test_single_values_stand_behind_the_curves_in_mlflow_and_have_their_names_everywhere_else() -> None:
    names = ["best/val/wer", "best/epoch", "data/skipped", "model/parameters", "test/wer", "val/loss", "train/lr", "mine"]
    kept = [name_behind_curves(name) for name in names]
    assert kept[:2] == ["values/best val wer", "values/best epoch"]
    assert kept[4:] == names[4:]
    assert all(accepted_name(name) == name for name in kept)
    assert all(name.partition("/")[0] > "val" for name in kept[:4])
    assert [name_of_metric(name) for name in kept] == names
