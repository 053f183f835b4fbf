"""What `resume=` needs of a run is taken at one moment, kept in MLflow, and checked as a stranger's when it comes back."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from conftest import thinned
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from speechtrain.app.resume import resume_arguments
from speechtrain.backends.checkpoint_files import SUFFIXES
from speechtrain.errors import ConfigError, UserError
from speechtrain.files import sqlite_address
from speechtrain.tracking.base import NothingKeptError, RunInfo
from speechtrain.tracking.mlflow import fetched_runs, tracker
from speechtrain.tracking.mlflow.client import open_client
from speechtrain.tracking.mlflow.fetched_runs import downloaded
from speechtrain.tracking.mlflow.resume_files import Snapshots, as_list, described, read_list
from speechtrain.tracking.mlflow.resume_store import ResumeStore, fetch
from speechtrain.tracking.mlflow.sender import Sender
from speechtrain.tracking.mlflow.spool import Spool
from speechtrain.tracking.mlflow.writer import _Run, _Server
from speechtrain.tracking.run_folder import find_run, write_run_file


def write_checkpoints(folder: Path, suffix: str, **contents: str) -> None:
    """Write checkpoints as backends do, each by renaming a new file."""
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        temporary = folder / "checkpoints" / ".new"
        temporary.write_text(content)
        temporary.rename(folder / "checkpoints" / f"{name}{suffix}")


def begun(folder: Path, epoch: int, suffix: str = ".ckpt") -> Path:
    write_run_file(folder, {"status": "RUNNING", "uid": "u", "run_ids": {"mlflow": "none", "wandb": "w"}, "places": {"mlflow": {}}})
    (folder / "history.jsonl").write_text("{}\n" * epoch)
    (folder / ".hydra").mkdir(exist_ok=True)
    (folder / ".hydra" / "overrides.yaml").write_text("- seed=3\n- tracking.mlflow.tracking_uri=http://old:5000\n")
    write_checkpoints(
        folder, suffix, **{"last": f"last {epoch}", "best-1": "best", "mean": "no more than a result", "epoch=001": "kept for the user"}
    )
    return folder


class Sent:
    """A run in a database whose artifacts lie in another folder, and the sender of its spool."""

    def __init__(self, folder: Path, run: Path, uri: str | None = None, run_id: str | None = None) -> None:
        self.uri = uri or sqlite_address(folder / "server" / "mlflow.db")
        self.run = run
        self.spool = Spool.new(run)
        self.client = open_client(self.uri)
        self.warnings: list[str] = []
        self.open(run_id)
        self.sender = Sender(self.spool, self.warnings.append)
        self.sender.advance()

    def open(self, run_id: str | None) -> None:
        info = RunInfo("mine", self.run, {})
        process = {"pid": 1, "host": "h", "started": 0.0}
        opened = {"uri": self.uri, "experiment": "test", "uid": info.uid, "folder": str(self.run), "tags": {}, "timestamp": 1}
        self.spool.append({"call": "open", "name": info.name, "run_id": run_id, "process": process, **opened})

    def keep(self, epoch: int | None = None) -> None:
        """What a training does when it has written its last checkpoint."""
        if epoch is not None:
            begun(self.run, epoch)
        self.spool.append({"call": "last", "snapshot": self.spool.snapshots.take(self.run)})

    def last(self) -> str:
        """The last checkpoint that another machine gets, which checks that all else is there."""
        with tempfile.TemporaryDirectory() as folder:
            fetched = fetch(self.uri, "test", "mine", Path(folder))
            names = {file.name: Path(folder) / file.artifact for file in fetched.files}
            assert names.keys() >= {"run.json", "history.jsonl", "checkpoints/best-1.ckpt"}
            return names["checkpoints/last.ckpt"].read_text()

    @property
    def artifacts(self) -> Path:
        (folder,) = (self.spool.path.parents[3] / "server" / "mlartifacts").rglob("artifacts")
        return folder / "resume"


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of MLflow without runs: to make its tables takes most of a second."""
    file = tmp_path_factory.mktemp("database") / "mlflow.db"
    open_client(sqlite_address(file))
    return file


@pytest.fixture
def sent(tmp_path: Path, database: Path) -> Sent:
    for name in ("elsewhere", "server"):
        (tmp_path / name).mkdir()
    with closing(sqlite3.connect(database)) as empty, closing(sqlite3.connect(tmp_path / "server" / "mlflow.db")) as copy:
        empty.backup(copy)
    return Sent(tmp_path, begun(tmp_path / "elsewhere" / "run", 1))


@pytest.fixture
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetch without a process that imports MLflow once more; tests/integration/test_resume_elsewhere.py has it."""
    monkeypatch.setattr(fetched_runs.fresh, "call", lambda function, *arguments, quiet: function(*arguments))


def contents(folder: Path) -> dict[str, str]:
    """The files of a snapshot by their names in the run's folder."""
    return {file.name: path.read_text() for file, path in described(folder).items()}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_snapshot_has_what_was_there_although_the_run_goes_on_and_only_the_latest_one_waits(tmp_path: Path, suffix: str) -> None:
    run = begun(tmp_path / "run", 1, suffix)
    snapshots = Snapshots(tmp_path / "snapshots")
    snapshots.take(run)
    claimed = snapshots.claim()
    assert claimed is not None
    snapshots.take(begun(run, 2, suffix))
    snapshots.take(begun(run, 3, suffix))

    names = {"run.json", "history.jsonl", ".hydra/overrides.yaml", f"checkpoints/last{suffix}", f"checkpoints/best-1{suffix}"}
    assert contents(claimed).keys() == names
    assert contents(claimed)[f"checkpoints/last{suffix}"] == "last 1"
    assert contents(claimed)["history.jsonl"] == "{}\n"
    latest = snapshots.claim()
    assert latest is not None
    assert contents(latest)[f"checkpoints/last{suffix}"] == "last 3"
    assert [path.name for path in (tmp_path / "snapshots").iterdir()] == [latest.name], "a later one takes the place of all before it"
    assert snapshots.claim() == latest, "a sender that failed, or was killed, has it again"
    assert not list(tmp_path.glob("snapshots/**/run.json")), "no snapshot is taken for a run"


def test_a_run_without_a_last_checkpoint_gives_no_snapshot(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", 1)
    (run / "checkpoints" / "last.ckpt").unlink()
    snapshots = Snapshots(tmp_path / "snapshots")
    with pytest.raises(OSError, match="no last checkpoint"):
        snapshots.take(run)
    assert list(snapshots.folder.iterdir()) == []


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
    there = {file.name: (tmp_path / "new" / file.artifact).read_text() for file in fetched.files}
    assert there["checkpoints/last.ckpt"] == "last 2"
    assert there["history.jsonl"] == "{}\n{}\n"


@pytest.mark.usefixtures("_in_this_process")
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


@pytest.mark.usefixtures("_in_this_process")
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
    snapshots.take(begun(tmp_path / "run", 1))
    folder = snapshots.claim()
    assert folder is not None
    files = tuple(described(folder))
    assert len(files) == 5
    assert read_list(as_list(files), "run x") == files


def answered(status: int) -> Exception:
    """The error that a server's answer is, as MLflow raises it."""
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(f"{status} of a server", response=response)


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_a_snapshot_that_has_lost_files_replaces_nothing_in_mlflow(sent: Sent) -> None:
    sent.keep()
    sent.sender.advance()
    sent.keep(2)
    (waiting,) = sent.spool.snapshots.folder.iterdir()
    for path in waiting.glob("checkpoints*"):
        path.unlink()
    sent.sender.advance()
    assert sent.last() == "last 1"
    assert "is not whole" in sent.warnings[0]


def test_a_snapshot_whose_deletion_has_begun_cannot_be_sent_any_more(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    sent.keep()
    sent.sender.advance()
    sent.keep(2)
    rmtree = shutil.rmtree
    begun_with: list[str] = []

    def slow(name: str | Path, **more: Any) -> None:
        """Deletes files before their folder, with a sender that comes in the middle."""
        if not begun_with and Path(name).parent == sent.spool.snapshots.folder and Path(name).is_dir():
            begun_with.append(str(name))
            for item in Path(name).glob("*%2F*"):
                item.unlink()
            sent.sender.advance()
        rmtree(name, **more)

    monkeypatch.setattr(shutil, "rmtree", slow)
    sent.keep(3)
    assert begun_with
    assert sent.last() == "last 3"
    assert sent.warnings == []


def test_a_sender_that_is_killed_while_it_deletes_what_it_has_sent_loses_nothing(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    sent.keep()

    def killed(name: str | Path, **_: Any) -> None:
        if "sending" in Path(name).name and Path(name).is_dir():
            for item in Path(name).glob("checkpoints*"):
                item.unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            sent.sender.advance()
    assert sent.last() == "last 1"
    Sender(sent.spool, sent.warnings.append).advance()
    assert sent.last() == "last 1"
    assert sent.warnings == []


def test_nothing_is_deleted_before_all_that_was_sent_is_there(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    sent.keep()
    sent.sender.advance()
    sent.keep(2)
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "log_artifact", lambda *_: None)  # a store that says yes and has nothing
        sent.sender.advance()
    assert sent.last() == "last 1"
    assert "are not in the store" in sent.warnings[0]
    sent.sender.unkept_due = 0.0
    sent.sender.advance()
    assert sent.last() == "last 2"


def test_what_a_store_refuses_for_good_is_given_up_and_the_rest_is_sent(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MlflowClient, "log_artifact", failing(answered(413)))
    sent.keep()
    sent.spool.append({"call": "close", "status": "FINISHED", "timestamp": 2})
    sent.sender.advance()
    assert sent.sender.finish()
    assert sent.client.get_run(sent.sender.run_id).info.status == "FINISHED"
    assert len(sent.warnings) == 1
    assert "refuses what resume= needs (413 of a server)" in sent.warnings[0]
    assert not sent.spool.snapshots.folder.exists()


def test_what_a_store_does_not_take_now_is_sent_later_and_only_the_latest(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    sent.keep()
    metric = {"call": "metrics", "metrics": {"val/wer": 0.5}, "timestamp": 1, "step": 1}
    sent.spool.append(metric)
    sent.spool.append({"call": "close", "status": "FINISHED", "timestamp": 2})
    files: list[str] = []
    log_artifact = MlflowClient.log_artifact
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "log_artifact", failing(answered(500)))
        sent.sender.advance()
        assert sent.client.get_run(sent.sender.run_id).info.status == "FINISHED", "nothing waits for the store"
        assert not sent.sender.finish(), "it stays for those that send what waits"
        assert sent.spool.path.exists()
        sent.keep(2)

    def noting(self: MlflowClient, run_id: str, path: str, folder: str) -> None:
        files.append(path)
        log_artifact(self, run_id, path, folder)

    monkeypatch.setattr(MlflowClient, "log_artifact", noting)
    sent.sender.advance()
    assert files == [], "there is a pause before the next try"
    again = Sender(sent.spool, sent.warnings.append)
    again.advance()
    assert sent.last() == "last 2"
    assert len(files) == 5 + 1, "the files of one snapshot and their list: what a later one has replaced is not sent"
    assert again.finish()
    assert [warning for warning in sent.warnings if "it is tried again" not in warning] == []


def test_a_deletion_that_a_store_refuses_is_told_once_and_tried_again(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    sent.keep()
    sent.sender.advance()
    with monkeypatch.context() as patched:
        patched.setattr(ResumeStore, "_delete", failing(answered(405)))
        for epoch in (2, 3):
            sent.keep(epoch)
            sent.sender.advance()
    assert sent.last() == "last 3"
    assert len(sent.warnings) == 1
    assert "does not delete what earlier checkpoints needed (405 of a server)" in sent.warnings[0]
    assert len(list(sent.artifacts.glob("*.ckpt"))) == 4
    sent.keep(4)
    sent.sender.advance()
    assert len(list(sent.artifacts.glob("*.ckpt"))) == 2


def test_of_a_run_that_will_not_go_on_nothing_comes_later_unless_it_goes_on_after_all(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[dict[str, Any]] = []
    monkeypatch.setattr(tracker, "writer", lambda: SimpleNamespace(send_command=commands.append))
    sent.keep()
    sent.sender.advance()
    sent.keep(2)  # which waits when the trial is pruned
    tracker.MlflowTracker(sent.uri, log_last=True).delete_last(sent.sender.run_id, sent.run)
    assert commands == [{"delete_last": sent.sender.run_id, "uri": sent.uri}]
    sent.sender.advance()
    assert list(sent.artifacts.iterdir()) == []
    sent.keep(3)  # of a machine that has not heard of it
    sent.sender.advance()
    assert list(sent.artifacts.iterdir()) == []
    assert sent.warnings == []

    sent.open(sent.sender.run_id)
    sent.keep(4)
    sent.sender.advance()
    assert sent.last() == "last 4"


def test_what_a_machine_sends_late_does_not_replace_what_another_has_sent_since(sent: Sent, tmp_path: Path) -> None:
    sent.keep()  # the machine goes away, and comes back when the run has gone on elsewhere
    (tmp_path / "another").mkdir()
    another = Sent(tmp_path, begun(tmp_path / "another" / "run", 2), run_id=sent.sender.run_id)
    another.keep()
    another.sender.advance()
    sent.sender.advance()
    assert sent.last() == "last 2"
    assert not sent.spool.snapshots.waits()


def test_two_processes_that_go_on_with_a_run_delete_nothing_that_the_other_needs(
    sent: Sent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent.keep()
    sent.sender.advance()
    (tmp_path / "another").mkdir()
    another = Sent(tmp_path, begun(tmp_path / "another" / "run", 1), run_id=sent.sender.run_id)
    for one in (another, sent):
        one.keep(2)
        one.sender.advance()
    assert sent.last() == "last 2"
    assert "another process goes on with the run, too" in sent.warnings[0]

    delete = ResumeStore._delete

    def behind(store: ResumeStore, name: str) -> None:
        """Deletes after the other process, which is an epoch behind, has sent the files of before."""
        monkeypatch.setattr(ResumeStore, "_delete", delete)
        another.keep(2)
        another.sender.advance()
        delete(store, name)

    sent.keep(3)
    sent.sender.advance()
    monkeypatch.setattr(ResumeStore, "_delete", behind)
    sent.keep(4)
    sent.sender.advance()
    another.sender.advance()
    assert another.last() == "last 2"


@pytest.mark.parametrize(
    ("error", "what", "fix"),
    [
        (NoCredentialsError(), "Unable to locate credentials", "set the keys of the store"),
        (
            ClientError({"ResponseMetadata": {"HTTPStatusCode": 403}, "Error": {"Code": "Forbidden"}}, "GetObject"),
            "Forbidden",
            "the keys",
        ),
        (EndpointConnectionError(endpoint_url="http://s3:8333"), "http://s3:8333", "try again, or look at the server's log"),
        (ModuleNotFoundError("No module named 'boto3'", name="boto3"), "boto3", r"pip install 'speechtrain\[s3\]'"),
    ],
)
def test_what_the_library_of_a_store_raises_is_told_with_what_to_do(
    sent: Sent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, what: str, fix: str
) -> None:
    monkeypatch.setattr(MlflowClient, "list_artifacts", failing(error))
    with pytest.raises(UserError, match=rf"(?s)run {sent.sender.run_id} in MLflow at .*{what}.*\n    -> .*{fix}"):
        fetch(sent.uri, "test", "mine", tmp_path)


def test_a_server_that_fails_for_a_while_is_asked_again_and_what_is_there_is_not_fetched_twice(
    sent: Sent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent.keep()
    sent.sender.advance()
    real = MlflowClient.download_artifacts
    asked: list[str] = []

    def download(self: MlflowClient, run_id: str, path: str, folder: str) -> str:
        asked.append(path)
        if len(asked) in (3, 7):
            raise answered(503)
        return real(self, run_id, path, folder)

    pauses: list[float] = []
    monkeypatch.setattr(MlflowClient, "download_artifacts", download)
    monkeypatch.setattr(time, "sleep", pauses.append)
    (tmp_path / "new").mkdir()
    fetched = fetch(sent.uri, "test", "mine", tmp_path / "new", pauses=(1.0, 4.0))
    assert pauses == [1.0, 4.0]
    assert len(asked) == 3 + len(fetched.files) + 2, "the list three times, each file once, and two that failed"
    assert {path.name for path in (tmp_path / "new").iterdir()} == {file.artifact for file in fetched.files}, "nothing is left behind"

    monkeypatch.setattr(MlflowClient, "download_artifacts", failing(answered(503)))
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"503 of a server\)\n    -> try again"):
        fetch(sent.uri, "test", "mine", tmp_path / "other", pauses=(1.0,))
    assert pauses == [1.0, 4.0, 1.0]


@pytest.mark.usefixtures("_in_this_process")
def test_processes_with_one_number_fetch_beside_each_other_and_what_a_killed_one_left_is_removed(sent: Sent, tmp_path: Path) -> None:
    sent.keep()
    sent.sender.advance()
    left, young = tmp_path / "outputs" / ".resume.a1.tmp", tmp_path / "outputs" / ".resume.b2.tmp"
    for folder in (left, young):
        folder.mkdir(parents=True)
        (folder / "part").touch()
    os.utime(left, (1.0, 1.0))
    with downloaded("mine", sent.uri, "test", tmp_path / "outputs") as (run, files):
        os.utime(files, (1.0, 1.0))
        with downloaded("mine", sent.uri, "test", tmp_path / "outputs") as (_, others):
            assert others != files
        assert all((files / file.artifact).is_file() for file in run.files)
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == [young.name]


@pytest.mark.usefixtures("_in_this_process")
def test_a_tracker_fetches_what_it_has_kept_and_tells_nothing_kept_from_no_answer(
    sent: Sent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping = tracker.MlflowTracker(sent.uri, "test", log_last=True)
    for run_id in (sent.sender.run_id, "0" * 32):
        with pytest.raises(NothingKeptError):
            keeping.fetch_last(run_id, tmp_path / "new")
    with pytest.raises(NothingKeptError):
        tracker.MlflowTracker(sqlite_address(tmp_path / "none.db"), "test", log_last=True).fetch_last("0" * 32, tmp_path / "new")
    sent.keep()
    sent.sender.advance()
    keeping.fetch_last(sent.sender.run_id, tmp_path / "new", lambda trained_in: f"of {Path(trained_in).name}")
    assert (tmp_path / "new" / "of run" / "checkpoints" / "last.ckpt").read_text() == "last 1"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["of run"]

    monkeypatch.setattr(time, "sleep", lambda _: None)
    for method in ("list_artifacts", "get_run"):
        with monkeypatch.context() as patched:
            patched.setattr(MlflowClient, method, failing(MlflowException("the database is away")))
            with pytest.raises(UserError, match="the database is away") as raised:
                keeping.fetch_last(sent.sender.run_id, tmp_path / "other")
            assert not isinstance(raised.value, ConfigError)


@pytest.mark.usefixtures("_in_this_process")
def test_a_folder_in_the_way_is_told_before_anything_is_downloaded(sent: Sent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MlflowClient, "download_artifacts", failing(AssertionError()))
    sent.keep()
    sent.sender.advance()
    folder = tmp_path / "outputs" / sent.sender.run_id
    folder.mkdir(parents=True)
    (folder / "file").touch()
    with pytest.raises(ConfigError, match=rf"{folder} is in the way of run"):
        resume_arguments(["resume=mine", f"tracking.mlflow.tracking_uri={sent.uri}", "tracking.mlflow.experiment=test"])


def test_a_process_that_sends_tries_a_checkpoint_again_until_the_store_takes_it(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    replies: list[dict[str, Any]] = []
    run = _Run(sent.spool.path, lambda **values: replies.append(values))
    sent.keep()
    sent.spool.append({"call": "close", "status": "FINISHED", "timestamp": 2})
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "log_artifact", failing(answered(503)))
        run.send()
        run.end()
    assert not run.over
    assert replies[-1] == {"away": "what resume= needs: 503 of a server", "failures": 1}
    assert not run.is_due(time.monotonic())
    assert run.is_due(time.monotonic() + 15)
    run.sender.unkept_due = 0.0
    run.send()
    assert run.over
    assert replies[-1] == {"closed": True}
    assert sent.last() == "last 1"


def test_what_cannot_be_deleted_of_a_run_that_will_not_go_on_is_told(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    replies: list[str] = []
    server = _Server(0)
    monkeypatch.setattr(_Server, "_reply", lambda *_, warning: replies.append(warning))
    server._handle({"delete_last": sent.sender.run_id, "uri": sent.uri})
    with monkeypatch.context() as patched:
        patched.setattr(ResumeStore, "delete", failing(answered(503)))
        server._fail_abandoned()
        server._fail_abandoned()
    assert len(replies) == 1
    assert "does not delete what run" in replies[0]
    assert len(server.abandoned) == 1
    server.abandoned[0]["due"] = 0.0
    monkeypatch.setattr(ResumeStore, "delete", failing(answered(403)))
    server._fail_abandoned()
    assert server.abandoned == []
    assert "refuses to delete" in replies[1]


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
        there = {file.name: (tmp_path / "new" / file.artifact).read_text() for file in fetched.files}
        assert there["checkpoints/last.ckpt"] == "last 2"
        keys_there = [item["Key"] for item in client.list_objects_v2(Bucket="mlflow")["Contents"]]
        assert len([key for key in keys_there if "/resume/" in key]) == 1 + len({file.artifact for file in fetched.files})
    finally:
        server.kill()
        objects.stop()
