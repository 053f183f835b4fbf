"""MLflow gets everything, also when it was away; its status tells the truth."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from speechtrain import compose
from speechtrain.config.build import build
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.errors import ConfigError, UserError
from speechtrain.files import sqlite_address
from speechtrain.tracking.base import RunInfo, flat
from speechtrain.tracking.mlflow.client import open_client
from speechtrain.tracking.mlflow.location import local_uri
from speechtrain.tracking.mlflow.lookup import open_reader
from speechtrain.tracking.mlflow.names import accepted_name
from speechtrain.tracking.mlflow.spool import spools_in
from speechtrain.tracking.mlflow.tracker import MlflowTracker
from speechtrain.tracking.provenance import run_tags


def tracker(**changes: Any) -> MlflowTracker:
    return MlflowTracker(**{"experiment": "test", "system_metrics": None, **changes})


def info(folder: Path, **changes: Any) -> RunInfo:
    config = {"model": {"size": 3, "long": "x" * 9000}, **{f"key{index}": index for index in range(250)}}
    return RunInfo(**{"name": "run", "folder": folder, "config": config, "tags": {"host": "here"}, "texts": {"a.txt": "text"}, **changes})


def test_a_run_holds_its_config_tags_metrics_tables_and_files(tmp_path: Path) -> None:
    one = tracker()
    one.start(info(tmp_path))
    run_id = one.opened()
    assert run_id is not None
    one.log_metrics({"val/wer": 0.5, "train/loss": 2.0}, step=1)
    one.log_metrics({"val/wer": 0.25}, step=2)
    one.log_table("transcripts", {"reference": ["a"], "hypothesis": ["b"]})
    (tmp_path / "best.ckpt").write_text("weights")
    one.log_checkpoint(tmp_path / "best.ckpt")
    one.finish("FINISHED")
    client = MlflowClient(local_uri(tmp_path))
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["model.size"] == "3"
    assert len(run.data.params) == 252
    assert run.data.tags["host"] == "here"
    assert [metric.value for metric in client.get_metric_history(run_id, "val/wer")] == [0.5, 0.25]
    assert {item.path for item in client.list_artifacts(run_id)} == {"a.txt", "checkpoints", "transcripts.json"}
    assert run.info.artifact_uri.startswith(f"file://{tmp_path}/mlartifacts")


def test_the_local_database_is_in_write_ahead_mode_and_here(tmp_path: Path) -> None:
    open_client(local_uri(Path.cwd()))
    assert sqlite3.connect(tmp_path / "mlflow.db").execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.slow
def test_a_fresh_database_may_be_opened_by_many_processes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPEECHTRAIN_TEST_MIGRATIONS", "1")
    code = (
        "import sys; from pathlib import Path; from speechtrain.tracking.mlflow.tracker import *; "
        "t = MlflowTracker(None, 'e'); p = Path(sys.argv[1]); p.mkdir(); t.start(RunInfo('r', p, {})); t.opened(); t.finish('FINISHED')"
    )
    workers = [
        subprocess.Popen([sys.executable, "-c", code, str(number)], cwd=tmp_path, stderr=subprocess.PIPE, text=True) for number in range(8)
    ]
    for worker in workers:
        _, err = worker.communicate(timeout=120)
        assert worker.returncode == 0, err
    client = MlflowClient(local_uri(tmp_path))
    experiment = client.get_experiment_by_name("e")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == 8


def test_metrics_that_are_not_numbers_do_not_stop_the_rest(tmp_path: Path) -> None:
    one = tracker()
    one.start(info(tmp_path))
    run_id = one.opened()
    one.log_metrics({"val/loss": float("nan"), "val/wer": 0.5}, step=1)
    one.finish("FAILED")
    run = MlflowClient(local_uri(tmp_path)).get_run(str(run_id))
    assert run.data.metrics["val/wer"] == 0.5
    assert run.info.status == "FAILED"


def test_what_mlflow_refuses_when_a_run_is_opened_is_told_with_the_remedy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    begun = tracker()
    begun.start(info(tmp_path))
    run_id = str(begun.opened())
    begun.finish("FINISHED")
    client = MlflowClient(local_uri(tmp_path))

    def refusal(**changes: Any) -> str:
        again = tracker()
        again.start(info(tmp_path, **changes))
        with pytest.raises(UserError) as caught:
            again.opened()
        return str(caught.value)

    client.delete_run(run_id)
    told = refusal(run_id=run_id)
    assert "cannot be reached" not in told
    assert f"the run {run_id} is deleted there\n    -> restore it with `mlflow runs restore --run-id {run_id}`" in told
    again = tracker()
    again.start(info(tmp_path, run_id="f" * 32, uid="another"))
    assert again.opened() not in (None, run_id, "f" * 32)
    again.finish("FINISHED")
    assert "does not have the run ffff" in caplog.text
    refused = refusal(uid="third", tags={"mlflow.runName": "another"})
    assert "mlflow.runName" in refused
    assert "tracking=[]" in refused
    assert "tracking.mlflow.experiment" not in refused
    experiment = client.get_experiment_by_name("test")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    assert f"mlflow experiments restore --experiment-id {experiment.experiment_id}" in refusal()
    with pytest.raises(ConfigError, match=r"tracking.mlflow.experiment: has 0 letters[^*]*registered_model: is 'a/b'"):
        compose(["tracking.mlflow.experiment=''", "tracking.mlflow.registered_model=a/b"])


ODD = "50% a?b#c {d} %2F"


def test_a_database_lies_in_the_folder_or_file_that_is_named_whatever_characters_are_in_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ODD).mkdir()
    monkeypatch.chdir(tmp_path / ODD)
    one = tracker()
    one.start(info(tmp_path / ODD))
    run_id = one.opened()
    one.log_table("transcripts", {"id": ["a"], "reference": ["b"], "hypothesis": ["c"]})
    one.finish("FINISHED")
    reader = open_reader(None, "test", runs=["run"])
    assert reader.run("run").id == run_id
    assert reader.transcripts(reader.run("run")) == {"a": ("b", "c")}
    assert one.how_to_look() == "MLflow      make ui, or: speechtrain ui"
    assert [path.name for path in tmp_path.iterdir()] == [ODD]
    assert {"mlflow.db", "mlartifacts"} < {path.name for path in (tmp_path / ODD).iterdir()} < {*DATABASE, "mlartifacts", "unsent"}


DATABASE = {f"mlflow.db{ending}" for ending in ("", "-wal", "-shm", ".lock")}


@pytest.mark.parametrize(("uri", "folder"), [("sqlite:///mlflow.db?timeout=30", "."), ("sqlite:///c%20d/mlflow.db", "c d")])
def test_an_address_of_a_database_is_relative_to_the_folder_and_decoded_as_sqlalchemy_does(tmp_path: Path, uri: str, folder: str) -> None:
    one = tracker(tracking_uri=uri)
    one.start(info(tmp_path / "out"))
    run_id = one.opened()
    one.finish("FINISHED")
    assert open_reader(uri, "test").run("run").id == run_id
    assert (tmp_path / folder / "mlflow.db").is_file()
    assert (tmp_path / folder / "mlartifacts" / str(run_id) / "artifacts" / "a.txt").is_file()
    assert {path.name for path in tmp_path.iterdir()} <= {*DATABASE, "mlartifacts", "out", folder}


def test_the_variables_of_mlflow_hold_where_the_config_names_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///elsewhere.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "named")
    cfg = ExperimentConfig.of(compose([]))
    one = build("tracking.mlflow", cfg.tracking["mlflow"])
    assert isinstance(one, MlflowTracker)
    assert (one.uri, one.experiment) == (sqlite_address(tmp_path / "elsewhere.db"), "named")
    assert tracker(tracking_uri="http://here:5000").uri == "http://here:5000"
    assert tracker().experiment == "test"
    with pytest.raises(UserError, match=r"elsewhere.db: there is no such database"):
        open_reader(None, None)


def test_a_server_that_is_not_there_is_named_with_what_to_do(tmp_path: Path) -> None:
    begun = tracker(tracking_uri="http://127.0.0.1:9")
    begun.start(info(tmp_path))
    with pytest.raises(UserError, match=r"http://127.0.0.1:9.*\n.*tracking.mlflow.tracking_uri"):
        begun.opened()
    assert spools_in(tmp_path) == []
    (tmp_path / "folder.db").mkdir()
    begun = tracker(tracking_uri=f"sqlite:///{tmp_path}/folder.db")
    begun.start(info(tmp_path))
    with pytest.raises(UserError, match=r"folder.db"):
        begun.opened()


def test_a_config_is_flattened_to_dotted_keys() -> None:
    assert flat({"a": {"b": [1, 2], "c": {"d": None}}, "e": True}) == {"a.b": "[1, 2]", "a.c.d": "null", "e": "True"}
    assert json.dumps(flat({})) == "{}"


def test_an_epoch_that_a_resumed_run_repeats_is_not_written_twice(tmp_path: Path) -> None:
    one = tracker()
    one.start(info(tmp_path))
    run_id = one.opened()
    one.log_metrics({"val/wer": 0.5}, step=1)
    one.finish("KILLED")
    again = tracker()
    again.start(info(tmp_path, run_id=run_id))
    assert again.opened() == run_id
    for step in (1, 2):
        again.log_metrics({"val/wer": 0.5}, step=step)
    again.finish("FINISHED")
    history = MlflowClient(local_uri(tmp_path)).get_metric_history(str(run_id), "val/wer")
    assert [metric.step for metric in history] == [1, 2]


def test_passwords_and_odd_keys_do_not_get_in(tmp_path: Path) -> None:
    address = "postgresql://me:secret@host/db"
    one = tracker()
    one.start(info(tmp_path, config={"a": {"b|c": 1, "storage": address}, "d": [address]}, tags={}, texts={}))
    run_id = one.opened()
    one.finish("FINISHED")
    params = MlflowClient(local_uri(tmp_path)).get_run(str(run_id)).data.params
    assert params == {accepted_name("a.b|c"): "1", "a.storage": "postgresql://me:***@host/db", "d": "['postgresql://me:***@host/db']"}
    assert "secret" not in str(run_tags([f"hydra.sweeper.storage={address}"]))


def test_a_name_that_mlflow_refuses_is_changed_and_told_once_and_holds_up_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    odd = {"val/acc@5": 0.5, "val/acc_5": 0.6, "val/acc%5": 0.7, "x" * 300: 0.8, "/val//acc": 0.9, "": 1.0}
    one = tracker()
    one.start(info(tmp_path, config={"weights": {"a@b": 1, "a_b": 2, "y" * 300: 3}, "seed": 1}, tags={"who?": "me", "host": "here"}))
    run_id = one.opened()
    for step in (1, 2):
        one.log_metrics({**odd, "val/wer": 0.25}, step=step)
    one.finish("FINISHED")
    client = MlflowClient(local_uri(tmp_path))
    run = client.get_run(str(run_id))
    for name, value in {**odd, "val/wer": 0.25}.items():
        assert [each.value for each in client.get_metric_history(str(run_id), accepted_name(name))] == [value, value], name
    assert run.data.metrics["val/acc_5"] == 0.6
    assert sorted(run.data.params.values()) == ["1", "1", "2", "3"]
    assert run.data.params["weights.a_b"] == "2"
    assert run.data.tags[accepted_name("who?")] == "me"
    assert run.data.tags["host"] == "here"
    told = [record.message for record in caplog.records if "val/acc@5" in record.message]
    assert told == [f"MLflow does not take the name 'val/acc@5'; there it is '{accepted_name('val/acc@5')}'"]
