"""Names of runs: what they tell, and that a run is found by the beginning of its name."""

from __future__ import annotations

import functools
from datetime import datetime
from typing import Any

import pytest

import speechtrain
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.errors import ConfigError
from speechtrain.tracking.mlflow.lookup import choose_run
from speechtrain.tracking.mlflow.names import accepted_name, name_behind_curves, name_of_metric
from speechtrain.tracking.run_names import name_of_run

STARTED = datetime(2026, 12, 1, 14, 5)


@functools.cache
def config() -> dict[str, Any]:
    return ExperimentConfig.of(speechtrain.compose(["model=mlp"])).as_dict()


def name(*overrides: str, test: str | None = None) -> str:
    return name_of_run(config(), overrides, test, STARTED)


def test_a_name_tells_model_data_what_was_typed_and_when() -> None:
    typed = ["model=mlp", "optimizer.lr=0.003", "experiment=quick", "+model.dropout=0.1", "~augment", "hydra.run.dir=x", "report.worst=3"]
    assert name(*typed) == "mlp-digits lr=0.003 quick dropout=0.1 12-01 14:05"
    assert name() == "mlp-digits 12-01 14:05"


def test_a_name_marks_a_test_and_stays_short() -> None:
    assert name("dry_run=true", test="dry_run") == "mlp-digits (test: dry_run) 12-01 14:05"
    assert name(*(f"model.size_{number}={number}" for number in range(40))).endswith(" … 12-01 14:05")
    assert len(name(*(f"model.size_{number}={number}" for number in range(40)))) < 100


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("data.train=/home/jane.doe/clinic/patients/train.jsonl", "train=train.jsonl"),
        ("data.train='/home/jane doe/train set.jsonl'", "train='train set.jsonl'"),
        ("data.train=[/home/jane/a.jsonl,/home/jane/b.jsonl]", "train=[a.jsonl,b.jsonl]"),
        ("data.train=/home/jane/corpus/", "train=corpus"),
        (r"data.train=C:\Users\jane\corpus", "train=corpus"),
        ("model.from=hf://facebook/mms-1b-all@deu", "from=mms-1b-all@deu"),
        ("model.note=two\nlines  \tof text", "note=two lines of text"),
        (f"model.note={'x' * 500}", f"note={'x' * 22}…"),
    ],
)
def test_a_name_has_no_folders_one_line_and_no_long_value(typed: str, told: str) -> None:
    assert name(typed) == f"mlp-digits {told} 12-01 14:05"


def test_what_does_not_fit_is_left_out_and_what_follows_it_is_not() -> None:
    long = [f"model.{letter}={'x' * 40}" for letter in "abc"]
    assert name(*long, "seed=7") == f"mlp-digits a={'x' * 25}… b={'x' * 25}… … 12-01 14:05"
    assert name(long[0], "seed=7", *long[1:], "optimizer.lr=0.1") == f"mlp-digits a={'x' * 25}… seed=7 lr=0.1 … 12-01 14:05"


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
