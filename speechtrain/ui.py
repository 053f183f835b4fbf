"""`python -m speechtrain.ui`: MLflow on the runs of this folder, opened on the list of runs with their word error rates.

    python -m speechtrain.ui                    starts MLflow here, prints the link, and opens it where there is a screen
    python -m speechtrain.ui port=5001 experiment=digits
    python -m speechtrain.ui tracking_uri=http://server:5000      only the link

Runs that test the settings (dry_run, fast_dev_run, quick) are left out of the list unless there are no others; clear its filter to see
them. Ctrl-C ends it. Keys are those of conf/ui.yaml.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import webbrowser
from typing import IO
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from speechtrain.addresses import masked
from speechtrain.app.command import run_command
from speechtrain.config.compose import compose_command
from speechtrain.config.schemas.commands import UiConfig
from speechtrain.console import announce, console
from speechtrain.errors import ConfigError, Problem, UserError
from speechtrain.files import sqlite_file
from speechtrain.processes import interrupts
from speechtrain.tracking.mlflow.location import experiment_name, tracking_address

_STARTING = 120.0
"""Seconds that MLflow may take to answer."""
_STOPPING = 5.0


def run(arguments: list[str]) -> int:
    """Start MLflow unless the runs are on a server, print the link to the list of runs, and wait for Ctrl-C."""
    if wrong := [item for item in arguments if "=" not in item]:
        raise ConfigError([Problem("command line", f"'{wrong[0]}' is no key", "write key=value, for example port=5001")])
    cfg = compose_command(UiConfig, arguments)
    uri, name = tracking_address(cfg.tracking_uri), experiment_name(cfg.experiment)
    if uri.startswith(("http://", "https://")):
        _show(_link(uri, name, masked(uri)), cfg.browser)
        return 0
    if uri.startswith("sqlite:///") and not sqlite_file(uri).is_file():
        raise UserError(f"{sqlite_file(uri)}: there is no such database\n    -> train something, set tracking_uri, or change the folder")
    host = f"[{cfg.host}]" if ":" in cfg.host else cfg.host
    port = _free_port(cfg)
    announce("starting MLflow ...")
    link = _link(uri, name, f"http://{host}:{port}")
    defaults = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment = {**defaults, **os.environ, "MLFLOW_BACKEND_STORE_URI": uri}  # others see arguments, and a database's may hold a password
    command = [sys.executable, "-m", "mlflow", "ui", "--host", cfg.host, "--port", str(port), "--workers", "1"]
    interrupts.listen(signal.SIGHUP)  # its terminal is closed
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        try:
            with contextlib.suppress(KeyboardInterrupt):
                _wait_until_it_answers(server, f"http://{host}:{port}/health", log)
                _show(link, cfg.browser)
                server.wait()
        finally:
            with interrupts.deferred():  # a terminal that is closed sends two signals
                _stop(server)
    interrupts.forget()  # Ctrl-C is how looking ends
    return 0


def _link(uri: str, name: str, address: str) -> str:
    from speechtrain.tracking.mlflow.client import link_to_runs

    try:
        return link_to_runs(uri, name, address)
    except OSError as error:
        raise UserError(f"MLflow cannot be reached at {masked(uri)}: {error}\n    -> set tracking_uri") from error


def _free_port(cfg: UiConfig) -> int:
    """Return the port of a config, or any that is free.

    Raises:
        ConfigError: something else has it.
    """
    with socket.socket(socket.AF_INET6 if ":" in cfg.host else socket.AF_INET) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((cfg.host, cfg.port))
        except OSError as error:
            message = f"{cfg.port} of {cfg.host} cannot be opened ({error.strerror})"
            raise ConfigError([Problem("port", message, "is MLflow open already? set port to another, or to 0 for any")]) from error
        return int(listening.getsockname()[1])


def _wait_until_it_answers(server: subprocess.Popen[bytes], health: str, log: IO[bytes]) -> None:
    without_proxy = build_opener(ProxyHandler({}))
    until = time.monotonic() + _STARTING
    while time.monotonic() < until:
        with contextlib.suppress(URLError, OSError), without_proxy.open(health, timeout=1):
            return
        if server.poll() is not None:
            break
        time.sleep(0.2)
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines() or ["no output"]
    raise UserError(f"MLflow did not start: {lines[-1]:.300}\n    -> set port to another, or look at `mlflow ui`")


def _show(link: str, wanted: bool | None) -> None:
    console.print(f"MLflow      {link}", markup=False)
    has_screen = sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    if (has_screen and sys.stdout.isatty()) if wanted is None else wanted:
        webbrowser.open(link)


def _stop(server: subprocess.Popen[bytes]) -> None:
    """End MLflow with the processes that it has started, which form a group of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(_STOPPING)
            return


if __name__ == "__main__":
    run_command(__doc__, run)
