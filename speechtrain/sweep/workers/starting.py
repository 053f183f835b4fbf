"""Starts worker processes: forked from a server that has imported what they need, or cold where that cannot be done.

`docs/decisions/0026-workers-are-forked.md` says why the server is our own. It never runs a job, and a worker lives without it; where it is
gone, cannot be had or has found that forking would not be safe, workers start cold.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

from speechtrain.config.schemas.sweeps import PoolOptions
from speechtrain.sweep.workers.messages import Fork, Preload, Ready, Setup, receive, send

log = logging.getLogger(__name__)

BOUND = "bound"
"""Argument of a worker that is killed when the other end of its standard input is closed."""

START_SECONDS = 300.0
"""Time that a process has to import what it needs."""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_BASE = ("speechtrain.sweep.trial.handle",)
"""Modules that every worker needs for its first trial."""


class ForkedProcess:
    """A child of this process that another one has forked, with the methods of `subprocess.Popen`.

    Attributes:
        pid: number of the process.
        returncode: exit code, below 0 for a signal; None while it runs.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code; None while it runs."""
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # somebody else has waited for it
                self.returncode = 255
            else:
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code.

        Raises:
            subprocess.TimeoutExpired: it runs longer than `timeout` seconds.
        """
        until = None if timeout is None else time.monotonic() + timeout
        pause = 0.0005
        while (code := self.poll()) is None:
            if until is not None and time.monotonic() >= until:
                raise subprocess.TimeoutExpired([], timeout or 0.0)
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        return code

    def send_signal(self, sig: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        """Kill the process, unless it has ended."""
        self.send_signal(signal.SIGKILL)


Process = subprocess.Popen[bytes] | ForkedProcess


class WorkerStarter:
    """Starts the workers of a pool.

    Args:
        setup: what each worker needs before its first job.
        size: number of workers.
        folder: the sweep's folder, in which `workers.log` has what workers print outside of jobs.
        options: threads and GPUs of the workers, and whether they are forked.
        jobs_outlive: whether a worker finishes its job if this process dies meanwhile; if not, it is killed at once.
    """

    def __init__(self, setup: Setup, size: int, folder: Path, options: PoolOptions, *, jobs_outlive: bool = True) -> None:
        self._setup = setup
        self._log_file = folder / "workers.log"
        self._options = options
        self._threads = str(options.threads or max(1, (os.cpu_count() or 1) // size))
        self._jobs_outlive = jobs_outlive
        self._may_fork = sys.platform == "linux" and options.fork and jobs_outlive
        self._server: _ForkServer | None = None

    def start(self, slot: int, overrides: Sequence[str]) -> tuple[Process, Connection]:
        """Start a worker, and return it with a connection on which it waits for jobs.

        Args:
            slot: its place in the pool, counted from 0.
            overrides: command line of its first job.
        """
        variables = dict.fromkeys(_THREADS, self._threads)
        if self._options.gpus:
            variables["CUDA_VISIBLE_DEVICES"] = str(self._options.gpus[slot % len(self._options.gpus)])
        if self._server is None and self._may_fork:  # not before there is a job
            self._may_fork = self._can_fork()
            self._server = self._start_server() if self._may_fork else None
        ours, theirs = Pipe()
        with theirs:
            process: Process | None = self._server.fork(theirs, variables, overrides) if self._server is not None else None
            is_set_up = process is not None and not self._options.gpus
            process = process or self._start_cold(theirs, variables, *([] if self._jobs_outlive else [BOUND]))
        if not is_set_up:
            send(ours, self._setup)
        return process, ours

    def close(self) -> None:
        """End the server; workers go on."""
        if self._server is not None:
            self._server.close()

    def _can_fork(self) -> bool:
        """Return whether the threads of libraries can be set after they are loaded, and log it where they cannot."""
        if self._threads == "1" or find_spec("threadpoolctl") is not None:
            return True
        log.info("workers start cold: threadpoolctl is not installed, so they could not be given %s threads after a fork", self._threads)
        return False

    def _start_server(self) -> _ForkServer:
        ours, theirs = Pipe()
        with theirs:
            process = self._start_cold(theirs, dict.fromkeys(_THREADS, "1"), "fork")
        own = None if self._options.gpus else self._setup  # a program's modules may read which GPU is theirs
        with contextlib.suppress(OSError):  # killed already: it is found to be gone when it is to fork
            send(ours, Preload(self._setup.path, (*_BASE, *self._setup.modules), own))
        return _ForkServer(process, ours)

    def _start_cold(self, connection: Connection, variables: Mapping[str, str], *arguments: str) -> subprocess.Popen[bytes]:
        env = {**os.environ, **variables}
        package = str(Path(__file__).resolve().parents[3])
        env["PYTHONPATH"] = os.pathsep.join([package, *filter(None, [env.get("PYTHONPATH")])])
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        with self._log_file.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "speechtrain.sweep.workers.worker", str(connection.fileno()), *arguments],
                pass_fds=[connection.fileno()],
                stdin=subprocess.DEVNULL if BOUND not in arguments else subprocess.PIPE,  # which ends with this process
                stdout=output,
                stderr=output,
                env=env,
                start_new_session=True,  # Ctrl-C must reach only the sweeper, which then ends its workers
            )


class _ForkServer:
    """The server, as the pool's process sees it; it ends when its connection is closed, and so with this process."""

    def __init__(self, process: subprocess.Popen[bytes], connection: Connection) -> None:
        self._process = process
        self._connection = connection
        self._is_ready: bool | None = None

    def fork(self, connection: Connection, variables: Mapping[str, str], overrides: Sequence[str]) -> ForkedProcess | None:
        """Return a new worker that serves a connection; None if it has to start cold.

        Args:
            connection: the worker's end of its connection with the pool.
            variables: variables in which the worker's environment differs from the server's.
            overrides: command line of its first job.
        """
        try:
            if self._is_ready is None:
                self._is_ready = self._wait_until_ready()
            return self._ask(connection, Fork(os.getpid(), variables, overrides)) if self._is_ready else None
        except (OSError, EOFError) as error:
            self._give_up(f"the process that forks them is gone ({error})")
            return None

    def _wait_until_ready(self) -> bool:
        """Wait for the imports, and return whether workers may be forked."""
        if not self._connection.poll(START_SECONDS):
            self._process.kill()
            raise TimeoutError(f"its imports took more than {START_SECONDS:.0f} s")
        message = receive(self._connection)
        assert isinstance(message, Ready)
        if message.problem is not None:
            self._give_up(message.problem)
        return message.problem is None

    def _give_up(self, reason: str) -> None:
        """Say why workers start cold from now on, and end the server."""
        log.info("workers start cold: %s", reason)
        self._is_ready = False
        self.close()

    def _ask(self, connection: Connection, request: Fork) -> ForkedProcess | None:
        ours, theirs = socket.socketpair()
        with ours, _adopting():
            with theirs, socket.socket(fileno=os.dup(self._connection.fileno())) as channel:
                send(self._connection, request)
                socket.send_fds(channel, [b"f"], [theirs.fileno(), connection.fileno()])
            ours.settimeout(START_SECONDS)
            answer = ours.recv(4096).decode()
        if not answer:
            raise EOFError("no process was forked")
        if answer.isdigit():
            return ForkedProcess(int(answer))
        self._give_up(answer)
        return None

    def close(self) -> None:
        """End the server, which has nothing to lose."""
        self._connection.close()
        self._process.kill()
        self._process.wait()


_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37


@contextlib.contextmanager
def _adopting() -> Iterator[None]:
    """Be the parent of descendants whose own parent ends meanwhile: a forked worker is then a child of this process as a cold one is.

    Raises:
        OSError: the system does not allow it.
    """
    library, before = ctypes.CDLL(None), ctypes.c_int()
    if library.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0) or library.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError("this system lets no process adopt others")
    try:
        yield
    finally:
        library.prctl(_PR_SET_CHILD_SUBREAPER, before.value, 0, 0, 0)
