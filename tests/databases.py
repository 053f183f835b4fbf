"""A PostgreSQL server, and a gRPC proxy of Optuna, of a test's own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def programs() -> Path:
    """The folder of PostgreSQL's programs; the test is skipped where they are not installed."""
    candidates = [shutil.which("initdb"), *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True))]
    initdb = next((item for item in candidates if item), None)
    if initdb is None:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    return Path(initdb).resolve().parent


@contextmanager
def postgresql(folder: Path, user: str, password: str | None = None) -> Iterator[int]:
    """A server with one user, on the port that is yielded; without a password it asks for none.

    Args:
        folder: where a folder for its files is made.
    """
    bin_ = programs()
    data = folder / "postgres"
    data.mkdir()
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []  # it refuses to run as root
    secret = folder / "password"
    secret.write_text(password or "")
    secret.chmod(0o644)
    if as_nobody:
        os.chown(data, 65534, 65534)
        for parent in data.parents:
            if parent.stat().st_mode & 0o001 == 0:
                parent.chmod(parent.stat().st_mode | 0o001)
    how = ["--auth=trust"] if password is None else ["--auth=scram-sha-256", f"--pwfile={secret}"]
    subprocess.run([*as_nobody, bin_ / "initdb", "-D", data, "-U", user, "-N", *how], check=True, capture_output=True)
    port = free_port()
    options = ["-p", str(port), "-k", str(data), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
    server = subprocess.Popen([*as_nobody, bin_ / "postgres", "-D", data, *options], stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            ready = subprocess.run([bin_ / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)], check=False)
            if ready.returncode == 0:
                break
            time.sleep(0.05)
        yield port
    finally:
        server.send_signal(signal.SIGINT)  # without waiting for clients
        server.wait(20)


@contextmanager
def grpc_proxy(folder: Path) -> Iterator[str]:
    """Optuna's gRPC proxy before an SQLite database in a folder; its URL is yielded."""
    port = free_port()
    code = (
        "import optuna;"
        f"storage = optuna.storages.RDBStorage('sqlite:///{folder}/behind.db', engine_kwargs={{'connect_args': {{'timeout': 60}}}});"
        f"optuna.storages.run_grpc_proxy_server(storage, host='127.0.0.1', port={port})"
    )
    server = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"grpc://127.0.0.1:{port}"
    finally:
        server.kill()
