"""What is sent twice is there once."""

from __future__ import annotations

import json
import os
from pathlib import Path

from mlflow import MlflowClient

from speechtrain.processes.identity import Process
from speechtrain.tracking.mlflow.leftovers import is_in_use, send_spool
from speechtrain.tracking.mlflow.location import local_uri
from speechtrain.tracking.mlflow.runs import find_run
from speechtrain.tracking.mlflow.sender import Sender
from speechtrain.tracking.mlflow.spool import Spool

WEIGHTS = b"no weights"


def spool_of_a_run(folder: Path) -> Spool:
    """A whole run, of a process that is gone."""
    spool = Spool.new(folder)
    (folder / "best.ckpt").write_bytes(WEIGHTS)
    process = {**Process.current().to_dict(), "started": 1.0}
    opened = {
        "uri": local_uri(folder),
        "experiment": "test",
        "name": "run",
        "uid": "abc",
        "run_id": None,
        "folder": str(folder),
        "tags": {},
    }
    events: list[dict[str, object]] = [
        {"call": "open", "timestamp": 1, "process": process, "system_metrics": None, **opened},
        {"call": "params", "params": {"model.size": "3"}},
        {"call": "text", "text": "a: 1\n", "name": "config.yaml"},
        *({"call": "metrics", "metrics": {"val/wer": 0.5}, "step": step, "timestamp": 1000 + step} for step in (1, 2)),
        {"call": "table", "name": "transcripts.json", "columns": {"id": ["a"], "hypothesis": ["b"]}},
        {"call": "file", "path": str(folder / "best.ckpt"), "folder": "checkpoints"},
        {
            "call": "datasets",
            "datasets": [{"name": "d", "split": "train", "fingerprint": "f" * 32, "source": "here", "facts": {"hours": 1}}],
        },
        {"call": "model", "weights": str(folder / "best.ckpt"), "sample_rate": 8000, "example": [0.0] * 10, "facts": {}},
        {"call": "close", "status": "FINISHED", "timestamp": 2000},
    ]
    for event in events:
        spool.append(event)
    return spool


def test_a_run_whose_answers_all_got_lost_and_is_sent_again_is_there_once(tmp_path: Path) -> None:
    spool = spool_of_a_run(tmp_path)
    Sender(spool).advance()
    spool.path.with_suffix(".sent").unlink()  # nobody knows that it went through
    again = Sender(spool)
    again.advance()
    assert again.finish()

    client = MlflowClient(local_uri(tmp_path))
    experiment = client.get_experiment_by_name("test")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == again.run_id == find_run(client, experiment.experiment_id, "abc")
    assert run.info.status == "FINISHED"
    assert [(item.step, item.value) for item in client.get_metric_history(run.info.run_id, "val/wer")] == [(1, 0.5), (2, 0.5)]
    table = json.loads(Path(client.download_artifacts(run.info.run_id, "transcripts.json")).read_text())
    assert table == {"columns": ["id", "hypothesis"], "data": [["a", "b"]]}
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": "transcripts.json", "type": "table"}]
    assert run.inputs is not None
    assert len(run.inputs.dataset_inputs) == 1
    assert len(client.search_logged_models([experiment.experiment_id])) == 1
    assert not spool.path.exists()


def test_a_run_that_was_never_closed_is_failed_and_one_that_was_never_opened_leaves_nothing(tmp_path: Path) -> None:
    spool = spool_of_a_run(tmp_path)
    lines = spool.path.read_text().splitlines(keepends=True)
    spool.path.write_text("".join(lines[:4]))
    assert send_spool(spool)
    client = MlflowClient(local_uri(tmp_path))
    (run,) = client.search_runs(["1"])
    assert (run.info.status, run.data.tags["error"]) == ("FAILED", "its process died")

    orphan = Spool.new(tmp_path / "other")
    orphan.append({"call": "metrics", "metrics": {"val/wer": 1.0}, "step": 1, "timestamp": 1})
    assert send_spool(orphan)
    assert not orphan.path.exists()
    assert len(client.search_runs(["1"])) == 1


def test_a_spool_that_somebody_else_is_sending_is_left_to_him(tmp_path: Path) -> None:
    spool = spool_of_a_run(tmp_path)
    with Spool(spool.path).lock():
        assert not send_spool(spool)
    assert send_spool(spool)


def test_only_files_of_the_runs_own_folder_are_sent(tmp_path: Path) -> None:
    (tmp_path / "secret.ckpt").write_text("mine")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "link.ckpt").symlink_to(tmp_path / "secret.ckpt")
    (folder / "linked").symlink_to(tmp_path)
    spool = spool_of_a_run(folder)
    opened, *_, closed = spool.path.read_text().splitlines()
    names = [
        str(tmp_path / "secret.ckpt"),
        f"{folder}/../secret.ckpt",
        f"{folder}/link.ckpt",
        f"{folder}/linked/secret.ckpt",
        "/dev/null",
        "a\0b",
    ]
    events = [{"call": "file", "path": name, "folder": ""} for name in [*names, str(folder / "best.ckpt")]]
    events += [{"call": "model", "weights": name, "sample_rate": 8000, "example": [0.0], "facts": {}} for name in names]
    spool.path.write_text("\n".join([opened, *map(json.dumps, events), closed]) + "\n")
    warnings: list[str] = []
    sender = Sender(spool, warnings.append)
    sender.advance()
    assert sender.finish()
    assert len(warnings) == len(names)  # each is told once
    assert all("outside of the run's folder" in text or "embedded null" in text for text in warnings)
    client = MlflowClient(sender.uri)
    assert [item.path for item in client.list_artifacts(sender.run_id)] == ["best.ckpt"]
    assert client.search_logged_models(["1"]) == []


def test_events_that_no_tracker_wrote_hold_nothing_up(tmp_path: Path) -> None:
    spool = spool_of_a_run(tmp_path)
    lines = spool.path.read_text().splitlines()
    strange = [
        {"call": "metrics", "metrics": "x", "step": 1, "timestamp": 1},
        {"call": "text", "name": "a"},
        {"call": "params"},
        {"call": 5},
        {"call": "model", "weights": None},
    ]
    bad = [*map(json.dumps, strange), "[" * 100_000, "no JSON", "3"]
    spool.path.write_text("\n".join([lines[0], *bad, *lines[1:]]) + "\n")
    spool.path.with_suffix(".sent").write_text('{"offset": "x"}')
    said: list[str] = []

    sender = Sender(spool, said.append)
    sender.advance()

    assert sender.finish()
    assert len(said) == 4
    assert "its 'metrics' is 'x'" in said[0]


def test_a_spool_of_a_process_that_is_none_is_not_in_use(tmp_path: Path) -> None:
    spool = Spool.new(tmp_path)
    spool.path.parent.mkdir()
    for process in ("x", [1], {"pid": 1}, {"host": "a", "boot": "b", "pid": "x", "started": 1}):
        spool.path.write_text(json.dumps({"call": "open", "process": process}) + "\n")
        assert not is_in_use(spool)


def test_what_mlflow_refuses_in_a_batch_is_named_and_the_rest_of_the_batch_is_kept(tmp_path: Path) -> None:
    spool = spool_of_a_run(tmp_path)
    spool.append({"call": "metrics", "metrics": {**{f"m{number}": 1.0 for number in range(20)}, "bad": "text"}, "step": 1, "timestamp": 1})
    told: list[str] = []
    sender = Sender(spool, told.append)
    sender.advance()
    kept = MlflowClient(local_uri(tmp_path)).get_run(sender.run_id).data.metrics
    assert {f"m{number}" for number in range(20)} < set(kept)
    assert "MLFLOW_TRACKING_URI" not in os.environ  # which a logged model leaves behind, and later runs would follow
    assert len([each for each in told if "the metric 'bad'" in each]) == len(told) == 1
