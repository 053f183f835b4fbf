"""Whatever happens to the server, to the disk or to the run: nothing is missing, nothing is there twice, the status is true."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from speechtrain.sync import sync
from speechtrain.tracking.base import RunInfo
from speechtrain.tracking.mlflow.client import open_client
from speechtrain.tracking.mlflow.location import local_uri
from speechtrain.tracking.mlflow.spool import spools_in
from speechtrain.tracking.mlflow.tracker import MlflowTracker
from speechtrain.tracking.mlflow.writer import writer

EPOCHS = 6


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Server:
    """A real `mlflow server` that can be killed and started again."""

    def __init__(self, folder: Path, artifacts: str | None = None) -> None:
        self.folder = folder
        self.artifacts = artifacts or str(folder / "kept")
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        open_client(f"sqlite:///{folder / 'server.db'}")  # migrations once, so that a start is quick

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}", "--artifacts-destination", self.artifacts]
        with (self.folder / "server.log").open("ab") as log:
            env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # the rest of the server is all that is asked for
            self.process = subprocess.Popen(command, cwd=self.folder, env=env, stdout=log, stderr=log, start_new_session=True)
        until = time.monotonic() + 90
        while time.monotonic() < until:
            with contextlib.suppress(OSError), urlopen(f"{self.uri}/health", timeout=1):
                return
            time.sleep(0.2)
        raise AssertionError((self.folder / "server.log").read_text())

    def kill(self) -> None:
        if self.process is not None:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                child.kill()
            self.process.kill()
            self.process.wait()
            self.process = None

    def runs(self) -> list[Run]:
        client = open_client(f"sqlite:///{self.folder / 'server.db'}")
        found = client.get_experiment_by_name("test")
        return list(client.search_runs([found.experiment_id])) if found is not None else []


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "server"
    folder.mkdir()
    one = Server(folder)
    yield one
    one.kill()


def tracker(uri: str | None, **changes: Any) -> MlflowTracker:
    return MlflowTracker(**{"tracking_uri": uri, "experiment": "test", "system_metrics": None, "patience": 1.0, **changes})


def begin(uri: str | None, folder: Path, **changes: Any) -> tuple[MlflowTracker, str]:
    folder.mkdir(exist_ok=True)
    one = tracker(uri, **changes)
    one.start(RunInfo("run", folder, {"model": {"size": 3}}, texts={"config.yaml": "model: {size: 3}\n"}))
    run_id = one.opened()
    assert run_id is not None
    return one, run_id


def history(uri: str, run_id: str, name: str = "val/wer") -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in open_client(uri).get_metric_history(run_id, name)]


def until_true(check: Callable[[], bool], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.long
def test_a_server_that_dies_in_the_middle_and_comes_back_has_everything_once(server: Server, tmp_path: Path) -> None:
    server.start()
    one, run_id = begin(server.uri, tmp_path / "run", patience=60.0)
    for epoch in range(EPOCHS):
        one.log_metrics({"val/wer": 1 / (epoch + 1)}, epoch + 1)
        if epoch == 1:
            until_true(lambda: len(history(f"sqlite:///{server.folder / 'server.db'}", run_id)) == 2)
            server.kill()
        if epoch == 3:
            until_true(lambda: bool(writer().state(one._spool.path).get("away")))
            server.start()
    one.finish("FINISHED")
    assert history(server.uri, run_id) == [(epoch + 1, 1 / (epoch + 1)) for epoch in range(EPOCHS)]
    (run,) = server.runs()
    assert run.info.status == "FINISHED"
    assert spools_in(tmp_path / "run") == []


@pytest.mark.slow
def test_what_never_arrived_waits_beside_the_run_and_sync_sends_it(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.start()
    one, run_id = begin(server.uri, tmp_path / "run")
    server.kill()
    for epoch in range(EPOCHS):
        one.log_metrics({"val/wer": 0.5}, epoch + 1)
    one.log_table("transcripts", {"reference": ["a"], "hypothesis": ["b"]})
    one.finish("FINISHED")
    assert "python -m speechtrain.sync" in caplog.text
    assert len(spools_in(tmp_path / "run")) == 1
    writer().close()
    command = [sys.executable, "-m", "speechtrain.sync", "run"]
    away = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (away.returncode, "goes on" in away.stdout) == (0, True)  # this very process still has it
    lines = spools_in(tmp_path / "run")[0].path.read_text().splitlines()
    first = json.loads(lines[0])
    gone = subprocess.Popen([sys.executable, "-c", ""])
    first["process"] |= {"pid": gone.pid, "started": 1.0}
    gone.wait()
    spools_in(tmp_path / "run")[0].path.write_text("\n".join([json.dumps(first).ljust(len(lines[0])), *lines[1:]]) + "\n")
    until_true(lambda: subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 1)
    server.start()
    until_true(lambda: sync([tmp_path / "run"]) == 0)
    assert history(server.uri, run_id) == [(epoch + 1, 0.5) for epoch in range(EPOCHS)]
    assert "transcripts.json" in {item.path for item in MlflowClient(server.uri).list_artifacts(run_id)}
    (run,) = server.runs()
    assert run.info.status == "FINISHED"
    assert spools_in(tmp_path / "run") == []


class Slow(ThreadingHTTPServer):
    """Passes requests on after a while; every third answer is lost on its way back."""

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Slow)
        self.target = target
        self.count = 0
        self.uri = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Slow(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.handle_any()

    def do_POST(self) -> None:
        self.handle_any()

    def do_PUT(self) -> None:
        self.handle_any()

    def log_message(self, *_: Any) -> None:
        pass

    def handle_any(self) -> None:
        server = self.server
        assert isinstance(server, Slow)
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        time.sleep(0.2)
        request = Request(
            server.target + self.path, body or None, {"content-type": self.headers.get("content-type", "")}, method=self.command
        )
        try:
            with urlopen(request, timeout=30) as answer:
                code, content, form = answer.status, answer.read(), answer.headers.get("content-type", "")
        except HTTPError as error:
            code, content, form = error.code, error.read(), error.headers.get("content-type", "")
        server.count += 1
        if server.count % 3 == 0:
            self.connection.close()
            return
        self.send_response(code)
        self.send_header("content-type", form)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.mark.long
def test_a_slow_server_whose_answers_get_lost_keeps_nobody_waiting_and_has_nothing_twice(server: Server, tmp_path: Path) -> None:
    server.start()
    slow = Slow(server.uri)
    one, run_id = begin(slow.uri, tmp_path / "run", patience=120.0)
    started = time.process_time()
    for epoch in range(EPOCHS):
        one.log_metrics({"val/wer": 0.5, "val/cer": 0.25}, epoch + 1)
    one.log_table("transcripts", {"reference": ["a"], "hypothesis": ["b"]})
    assert len(history(server.uri, run_id)) < EPOCHS  # none of these calls waited for an answer
    assert time.process_time() - started < 5
    one.finish("FINISHED")
    slow.shutdown()
    assert len(server.runs()) == 1
    table = json.loads(Path(MlflowClient(server.uri).download_artifacts(run_id, "transcripts.json")).read_text())
    assert table["data"] == [["a", "b"]]
    assert history(server.uri, run_id) == [(epoch + 1, 0.5) for epoch in range(EPOCHS)]


def test_a_full_disk_under_the_spool_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, run_id = begin(None, tmp_path / "run")
    uri = local_uri(tmp_path)
    full = one._spool.path
    one._spool.path = Path("/dev/full")
    for epoch in range(3):
        one._add("metrics", metrics={"val/wer": 0.5}, step=epoch + 1)
    assert "No space left" in caplog.text
    assert one._spool.held == 3
    one._spool.path = full  # there is room again
    one.log_metrics({"val/wer": 0.4}, 4)
    one.finish("FINISHED")
    assert history(uri, run_id) == [(1, 0.5), (2, 0.5), (3, 0.5), (4, 0.4)]


def test_a_disk_that_stays_full_is_gone_round(tmp_path: Path) -> None:
    one, run_id = begin(None, tmp_path / "run")
    until_true(lambda: not one._spool.path.exists() or "run_id" in writer().state(one._spool.path))
    path = one._spool.path
    until_true(lambda: sum(1 for _ in one._spool.read(0)) >= 2)
    real = os.open

    def full(name: Any, *arguments: Any, **more: Any) -> int:
        if name == path:
            raise OSError(28, "No space left on device")
        return real(name, *arguments, **more)

    os.open = full  # type: ignore[assignment]
    try:
        one.log_metrics({"val/wer": 0.5}, 1)
        one.finish("FINISHED")
    finally:
        os.open = real
    assert history(local_uri(tmp_path), run_id) == [(1, 0.5)]
    assert MlflowClient(local_uri(tmp_path)).get_run(run_id).info.status == "FINISHED"


DIES = """
import os, signal, sys
from pathlib import Path
from speechtrain.tracking.base import RunInfo
from speechtrain.tracking.mlflow.tracker import MlflowTracker
from speechtrain.tracking.mlflow.writer import writer
one = MlflowTracker(None, "test", system_metrics=None)
Path("run").mkdir()
one.start(RunInfo("run", Path("run").absolute(), {}))
run_id = one.opened()
for step in range(1, 4):
    one.log_metrics({"val/wer": 0.5}, step)
print(run_id, writer()._process.pid, flush=True)
sys.stdin.read()
"""


def dying(folder: Path) -> tuple[subprocess.Popen[str], str, int]:
    process = subprocess.Popen([sys.executable, "-c", DIES], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    run_id, helper = process.stdout.readline().split()
    return process, run_id, int(helper)


def test_a_killed_run_is_failed_at_once_with_everything_it_had_told(tmp_path: Path) -> None:
    process, run_id, _ = dying(tmp_path)
    until_true(lambda: len(history(local_uri(tmp_path), run_id)) == 3)  # its writer has nothing to do
    process.kill()
    process.wait()
    client = MlflowClient(local_uri(tmp_path))
    until_true(lambda: client.get_run(run_id).info.status == "FAILED")
    assert client.get_run(run_id).data.tags["error"] == "its process died"
    assert history(local_uri(tmp_path), run_id) == [(1, 0.5), (2, 0.5), (3, 0.5)]


def test_a_run_killed_with_its_writer_is_failed_by_the_next_start(tmp_path: Path) -> None:
    process, run_id, helper = dying(tmp_path)
    os.kill(helper, signal.SIGKILL)
    process.kill()
    process.wait()
    client = MlflowClient(local_uri(tmp_path))
    assert client.get_run(run_id).info.status == "RUNNING"
    one, _ = begin(None, tmp_path / "next")
    until_true(lambda: client.get_run(run_id).info.status == "FAILED")
    one.finish("FINISHED")
    assert history(local_uri(tmp_path), run_id) == [(1, 0.5), (2, 0.5), (3, 0.5)]
    assert spools_in(tmp_path / "run") == []


@pytest.mark.long
def test_a_writer_that_is_killed_is_replaced_and_nothing_is_lost(tmp_path: Path) -> None:
    one, run_id = begin(None, tmp_path / "run")
    one.log_metrics({"val/wer": 0.5}, 1)
    process = writer()._process
    assert process is not None
    process.kill()
    process.wait()
    one.log_metrics({"val/wer": 0.4}, 2)
    one.finish("FINISHED")
    assert history(local_uri(tmp_path), run_id) == [(1, 0.5), (2, 0.4)]


def test_what_mlflow_refuses_does_not_hold_up_the_rest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, run_id = begin(None, tmp_path / "run")
    one.log_metrics({"not|a|name": 0.5}, 1)
    one.log_file(tmp_path / "gone.txt")
    one.log_metrics({"val/wer": 0.5}, 1)
    one.finish("FINISHED")
    assert history(local_uri(tmp_path), run_id) == [(1, 0.5)]
    until_true(lambda: "does not take the name 'not|a|name'" in caplog.text and "refuses file" in caplog.text, 5)


def test_a_writer_that_cannot_start_is_a_mistake_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken" / "mlflow").mkdir(parents=True)
    (tmp_path / "broken" / "mlflow" / "__init__.py").write_text("raise ImportError('mlflow is broken here')")
    code = (
        "import sys; from pathlib import Path; from speechtrain.tracking.base import RunInfo\n"
        "from speechtrain.tracking.mlflow.tracker import MlflowTracker\n"
        "one = MlflowTracker(); one.start(RunInfo('run', Path.cwd(), {}))\n"
        "try:\n    one.opened()\nexcept Exception as error:\n    print(type(error).__name__, error)"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "broken")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert "UserError MLflow cannot be reached" in done.stdout
    assert "mlflow is broken here" in done.stdout
    assert spools_in(tmp_path) == []
