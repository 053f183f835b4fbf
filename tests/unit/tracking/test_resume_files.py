"""What `resume=` needs of a run is taken at one moment, kept in MLflow, and checked as a stranger's when it comes back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import thinned
from mlflow import MlflowClient

from speechtrain.app.resume import resume_arguments
from speechtrain.errors import ConfigError, UserError
from speechtrain.files import sqlite_address
from speechtrain.tracking.base import RunInfo
from speechtrain.tracking.mlflow.client import open_client
from speechtrain.tracking.mlflow.resume_files import Snapshots, as_list, described, read_list
from speechtrain.tracking.mlflow.resume_store import fetch
from speechtrain.tracking.mlflow.sender import Sender
from speechtrain.tracking.mlflow.spool import Spool
from speechtrain.tracking.run_folder import find_run, write_run_file


def write_checkpoints(folder: Path, **contents: str) -> None:
    """Write checkpoints as backends do, each by renaming a new file."""
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        temporary = folder / "checkpoints" / ".new"
        temporary.write_text(content)
        temporary.rename(folder / "checkpoints" / f"{name}.ckpt")


def begun(folder: Path, epoch: int) -> Path:
    write_run_file(folder, {"status": "RUNNING", "uid": "u", "run_ids": {"mlflow": "none", "wandb": "w"}, "places": {"mlflow": {}}})
    (folder / "history.jsonl").write_text("{}\n" * epoch)
    (folder / ".hydra").mkdir(exist_ok=True)
    (folder / ".hydra" / "overrides.yaml").write_text("- seed=3\n- tracking.mlflow.tracking_uri=http://old:5000\n")
    write_checkpoints(
        folder, **{"last": f"last {epoch}", "best-1": "best", "mean": "no more than a result", "epoch=001": "kept for the user"}
    )
    return folder


class Sent:
    """A run in a database whose artifacts lie in another folder, and the sender of its spool."""

    def __init__(self, folder: Path, run: Path, uri: str | None = None) -> None:
        self.uri = uri or sqlite_address(folder / "server" / "mlflow.db")
        self.run = run
        self.spool = Spool.new(run)
        self.client = open_client(self.uri)
        self.warnings: list[str] = []
        info = RunInfo("mine", run, {})
        process = {"pid": 1, "host": "h", "started": 0.0}
        opened = {"uri": self.uri, "experiment": "test", "uid": info.uid, "folder": str(run), "tags": {}, "timestamp": 1}
        self.spool.append({"call": "open", "name": info.name, "run_id": None, "process": process, **opened})
        self.sender = Sender(self.spool, self.warnings.append)
        self.sender.advance()

    def keep(self) -> None:
        self.spool.append({"call": "last", "snapshot": self.spool.snapshots.take(self.run)})

    @property
    def artifacts(self) -> Path:
        (folder,) = (self.spool.path.parents[3] / "server" / "mlartifacts").rglob("artifacts")
        return folder / "resume"


@pytest.fixture
def sent(tmp_path: Path) -> Sent:
    (tmp_path / "elsewhere").mkdir()
    return Sent(tmp_path, begun(tmp_path / "elsewhere" / "run", 1))


def test_a_snapshot_has_what_was_there_although_the_run_goes_on_and_only_the_latest_one_waits(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", 1)
    snapshots = Snapshots(tmp_path / "snapshots")
    first = snapshots.take(run)
    claimed = snapshots.claim(first)
    assert claimed is not None
    second, third = snapshots.take(begun(run, 2)), snapshots.take(begun(run, 3))

    def content(folder: Path) -> dict[str, str]:
        return {file.name: path.read_text() for file, path in described(folder).items()}

    names = {"run.json", "history.jsonl", ".hydra/overrides.yaml", "checkpoints/last.ckpt", "checkpoints/best-1.ckpt"}
    assert content(claimed).keys() == names
    assert content(claimed)["checkpoints/last.ckpt"] == "last 1"
    assert content(claimed)["history.jsonl"] == "{}\n"
    assert snapshots.claim(second) is None
    assert snapshots.claim("../run") is None
    latest = snapshots.claim(third)
    assert latest is not None
    assert content(latest)["checkpoints/last.ckpt"] == "last 3"
    assert not list(tmp_path.glob("snapshots/**/run.json")), "no snapshot is taken for a run"


def test_mlflow_has_the_latest_checkpoints_alone_and_a_machine_without_the_folder_gets_them(sent: Sent, tmp_path: Path) -> None:
    sent.keep()
    sent.sender.advance()
    stale = sent.artifacts / f"{'0' * 64}.ckpt"
    stale.write_text("of a process that died while it sent")
    sent.sender = Sender(sent.spool)
    begun(sent.run, 2)
    sent.keep()
    sent.keep()
    sent.sender.advance()
    assert sent.warnings == []
    assert sorted(path.suffix for path in sent.artifacts.iterdir()) == [".ckpt", ".ckpt", ".json", ".json", ".jsonl", ".yaml"]
    assert not list(sent.spool.snapshots.folder.iterdir()), "what is sent waits no longer"

    (tmp_path / "new").mkdir()
    fetched = fetch(sent.uri, "test", "mine", tmp_path / "new")
    assert (fetched.run_id, fetched.experiment, fetched.folder) == (sent.sender.run_id, "test", str(sent.run))
    contents = {file.name: (tmp_path / "new" / file.artifact).read_text() for file in fetched.files}
    assert contents["checkpoints/last.ckpt"] == "last 2"
    assert contents["history.jsonl"] == "{}\n{}\n"


def test_a_run_that_is_not_here_is_fetched_by_id_or_name_and_goes_on_at_the_server_that_has_it(sent: Sent, tmp_path: Path) -> None:
    sent.keep()
    sent.sender.advance()
    server = [f"tracking.mlflow.tracking_uri={sent.uri}", "tracking.mlflow.experiment=test"]

    found = resume_arguments(["resume=mine", "trainer.epochs=9", *server])

    folder = tmp_path / "outputs" / sent.sender.run_id
    assert found[:2] == ["seed=3", "trainer.epochs=9"], "the address that the run had stored is not taken"
    assert found[-3:] == [f"resume={folder}/checkpoints/last.ckpt", f"hydra.run.dir={folder}", "hydra.output_subdir=null"]
    stored = json.loads((folder / "run.json").read_text())
    assert stored["run_ids"] == {"mlflow": sent.sender.run_id, "wandb": "w"}
    assert (stored["mlflow_run_id"], stored["uid"], stored["status"]) == (sent.sender.run_id, "u", "RUNNING")
    assert stored["places"]["mlflow"]["tracking_uri"] == sent.uri
    assert (folder / "checkpoints" / "last.ckpt").read_text() == "last 1"
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == [folder.name]
    assert resume_arguments([f"resume={sent.sender.run_id[:8]}"])[-2] == f"hydra.run.dir={folder}", "from now on it is here"

    named = resume_arguments([f"resume={sent.sender.run_id}", "hydra.run.dir=mine/here"])
    assert named[-2] == f"hydra.run.dir={folder}"
    shutil.rmtree(tmp_path / "outputs")
    named = resume_arguments([f"resume={sent.sender.run_id}", "hydra.run.dir=mine/here", *server])
    assert named[-2] == f"hydra.run.dir={tmp_path}/mine/here"


def test_a_name_that_no_run_has_is_told_with_the_places_where_it_was_looked_for(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"no run 'none' under .*outputs.* yet"):
        resume_arguments(["resume=none"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sent.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "test")
    with pytest.raises(ConfigError, match=r"no run 'none' under .*outputs.*; there is no run 'none' in experiment 'test' of sqlite"):
        resume_arguments(["resume=none"])


def test_what_is_not_what_its_list_names_is_not_taken(sent: Sent, tmp_path: Path) -> None:
    sent.keep()
    sent.sender.advance()
    next(path for path in sent.artifacts.glob("*.ckpt") if path.read_text() == "best").write_text("else")
    (tmp_path / "new").mkdir()
    with pytest.raises(UserError, match=r"checkpoints/best-1.ckpt is not the file that its list names"):
        fetch(sent.uri, "test", "mine", tmp_path / "new")


@pytest.mark.slow
def test_what_cannot_be_fetched_says_why_and_leaves_nothing(sent: Sent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sent.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "test")
    with pytest.raises(ConfigError, match=r"has nothing to go on from among its artifacts\n.*log_last=true"):
        resume_arguments(["resume=mine"])
    sent.keep()
    sent.sender.advance()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ConfigError, match=r"full is in the way of run"):
        resume_arguments(["resume=mine", "hydra.run.dir=full"])
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["file"]
    next(path for path in sent.artifacts.glob("*.ckpt") if path.read_text() == "best").write_text("else")
    with pytest.raises(UserError, match=r"checkpoints/best-1.ckpt is not the file that its list names"):
        resume_arguments(["resume=mine"])
    assert not (tmp_path / "outputs").exists(), "nothing half-fetched stays"
    with pytest.raises(ConfigError, match="no run 'mine'"):
        find_run("mine")


GOOD: dict[str, Any] = {"name": "checkpoints/last.ckpt", "bytes": 3, "sha256": "a" * 64}


@pytest.mark.parametrize(
    "text",
    thinned(
        [
            *(
                json.dumps({"version": 1, "files": [{**GOOD, **change}]})
                for change in (
                    {"name": "../last.ckpt"},
                    {"name": "checkpoints/../../last.ckpt"},
                    {"name": "/checkpoints/last.ckpt"},
                    {"name": "checkpoints/last.py"},
                    {"name": "checkpoints/best-\ud800.ckpt"},
                    {"name": f"checkpoints/best-{'a' * 300}.ckpt"},
                    {"name": ".hydra/hydra.yaml"},
                    {"name": "config.yaml"},
                    {"name": 3},
                    {"bytes": -1},
                    {"bytes": "3"},
                    {"name": "run.json", "bytes": 10**12},
                    {"sha256": "../../etc/passwd"},
                    {"sha256": "A" * 64},
                    {"sha256": None},
                )
            ),
            json.dumps({"version": 2, "files": [GOOD]}),
            json.dumps({"version": 1, "files": [GOOD, GOOD]}),
            json.dumps({"version": 1, "files": []}),
            json.dumps({"version": 1, "files": 3}),
            "[" * 100_000,
            "no JSON",
        ],
        3,
    ),
)
def test_a_list_that_no_run_writes_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"run x: resume/files\.json "):
        read_list(text, "run x")


def test_a_list_reads_back_as_it_was_written(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path / "snapshots")
    folder = snapshots.claim(snapshots.take(begun(tmp_path / "run", 1)))
    assert folder is not None
    files = tuple(described(folder))
    assert len(files) == 5
    assert read_list(as_list(files), "run x") == files


def test_a_server_that_takes_everything_but_checkpoints_gets_the_rest(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("413 too large")

    monkeypatch.setattr(MlflowClient, "log_artifact", refuse)
    sent.keep()
    sent.spool.append({"call": "close", "status": "FINISHED", "timestamp": 2})
    sent.sender.advance()
    assert sent.sender.finish()
    assert sent.client.get_run(sent.sender.run_id).info.status == "FINISHED"
    assert len(sent.warnings) == 1
    assert "does not take what resume= needs" in sent.warnings[0]
    assert not sent.spool.snapshots.folder.exists()


@pytest.mark.slow  # tests/integration/test_compose.py has trainings on such a server
def test_a_server_with_artifacts_on_s3_keeps_the_latest_alone_and_gives_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3
    from moto.server import ThreadedMotoServer
    from test_tracking_faults import Server

    objects = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    objects.start()
    address = "http://{}:{}".format(*objects.get_host_and_port())
    keys = {"AWS_ACCESS_KEY_ID": "mlflow", "AWS_SECRET_ACCESS_KEY": "of this test", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**keys, "MLFLOW_S3_ENDPOINT_URL": address}.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=address)
    client.create_bucket(Bucket="mlflow")
    (tmp_path / "server").mkdir()
    server = Server(tmp_path / "server", "s3://mlflow/runs")
    try:
        server.start()
        for name in keys:  # the server has them, and jobs need none
            monkeypatch.delenv(name)
        (tmp_path / "elsewhere").mkdir()
        sent = Sent(tmp_path, begun(tmp_path / "elsewhere" / "run", 1), server.uri)
        sent.keep()
        sent.sender.advance()
        begun(sent.run, 2)
        sent.keep()
        sent.sender.advance()
        assert sent.warnings == []
        (tmp_path / "new").mkdir()
        fetched = fetch(server.uri, "test", "mine", tmp_path / "new")
        contents = {file.name: (tmp_path / "new" / file.artifact).read_text() for file in fetched.files}
        assert contents["checkpoints/last.ckpt"] == "last 2"
        keys_there = [item["Key"] for item in client.list_objects_v2(Bucket="mlflow")["Contents"]]
        assert len([key for key in keys_there if "/resume/" in key]) == 1 + len({file.artifact for file in fetched.files})
    finally:
        server.kill()
        objects.stop()
