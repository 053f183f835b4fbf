"""`speechtrain ui`: MLflow that it starts, which nobody else sees the database of and which ends with it, and links to servers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import psutil

from speechtrain.tracking.mlflow.client import experiment_id, open_client
from speechtrain.tracking.mlflow.location import local_uri


def test_mlflow_is_reached_past_a_proxy_hides_its_database_and_ends_when_the_terminal_is_closed(tmp_path: Path) -> None:
    experiment_id(open_client(local_uri(tmp_path)), local_uri(tmp_path), "speechtrain")
    environment = {**os.environ, "http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "no_proxy": "", "NO_PROXY": ""}
    command = [sys.executable, "-m", "speechtrain.ui", "port=0", "browser=false"]
    said = tmp_path / "said"

    def hang_up_ends() -> None:  # a parent that nohup started ignores it, and so would its children
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    with said.open("wb") as log:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log, preexec_fn=hang_up_ends)
    try:
        until = time.monotonic() + 110
        while (link := re.search(r"MLflow +(http\S+)/#", said.read_text())) is None and process.poll() is None and time.monotonic() < until:
            time.sleep(0.2)
        assert link is not None, said.read_text()
        with build_opener(ProxyHandler({})).open(f"{link[1]}/health") as answer:
            assert answer.read() == b"OK"
        children = psutil.Process(process.pid).children(recursive=True)
        arguments = [" ".join(child.cmdline()) for child in children]
        assert arguments
        assert not [line for line in arguments if "mlflow.db" in line]
        process.send_signal(signal.SIGHUP)
        assert process.wait(30) == 0, said.read_text()
        assert not psutil.wait_procs(children, timeout=10)[1]
    finally:
        process.terminate()
        process.wait(30)
