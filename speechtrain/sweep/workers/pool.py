"""Starts worker processes, hands them jobs, and ends those that die, hang or use too much memory; only their own job is lost.

`worker.py` is what such a process runs. Which job is next is decided by the sweeper.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path

import psutil
from hydra.core.utils import JobReturn

from speechtrain.config.schemas.sweeps import PoolOptions
from speechtrain.sweep.trial.outcome import Ending, Outcome, SweepJob
from speechtrain.sweep.trial.runner import Program
from speechtrain.sweep.workers.messages import JobEnded, JobStarted, Setup, StartJob, receive, send

log = logging.getLogger(__name__)

_GRACE_SECONDS = 2.0
"""Time that a job has to end by itself after its timeout, before its process is killed."""
_START_SECONDS = 300.0
"""Time that a worker has to import what it needs and start its first job."""
_POLL_SECONDS = 0.5
"""Time between checks of workers that send nothing."""


@dataclass
class _Worker:
    """A worker process with the job it has, if any; times are those of `time.monotonic`."""

    process: subprocess.Popen[bytes]
    connection: Connection
    slot: int
    job: SweepJob | None = None
    sent: float = 0.0
    started: float | None = None
    jobs_done: int = 0


class Pool:
    """Runs jobs in up to `size` worker processes.

    Args:
        program: what all jobs share.
        size: number of workers.
        folder: the sweep's folder; what a job prints goes to `<number>/output.log` in it.
        options: threads, GPUs and limits of the workers.
        timeout: seconds a job may take.
        wants_returns: whether Hydra's whole JobReturn of each job is kept in `returned`.
    """

    ends_jobs = True

    def __init__(
        self, program: Program, size: int, folder: Path, options: PoolOptions, *, timeout: float | None = None, wants_returns: bool = False
    ) -> None:
        self.size = size
        self.folder = folder
        self.options = options
        self.timeout = timeout
        self.returned: dict[int, JobReturn] = {}
        self._setup = Setup.of_this_process(program, wants_returns=wants_returns)
        self._workers: list[_Worker] = []

    @property
    def busy(self) -> int:
        """Return the number of jobs that run."""
        return sum(worker.job is not None for worker in self._workers)

    def submit(self, job: SweepJob) -> None:
        """Start a job on an idle worker, or on a new one if all are busy."""
        worker = next((item for item in self._workers if item.job is None), None)
        if worker is None:
            assert len(self._workers) < self.size, "more jobs than workers"
            worker = self._start()
            self._workers.append(worker)
        log_file = self.folder / str(job.number) / "output.log"
        try:
            send(worker.connection, StartJob(job, log_file))
        except OSError:  # it died while it was idle
            self._discard(worker)
            self.submit(job)
            return
        worker.job, worker.sent, worker.started = job, time.monotonic(), None

    def wait(self, timeout: float) -> list[Outcome]:
        """Return the outcomes of the jobs that ended; after `timeout` seconds with none, an empty list."""
        until = time.monotonic() + timeout
        while True:
            busy = {worker.connection: worker for worker in self._workers if worker.job is not None}
            if not busy:
                return []
            ready = wait(list(busy), timeout=max(0.0, min(_POLL_SECONDS, until - time.monotonic())))
            received = [self._receive(busy[connection]) for connection in ready if isinstance(connection, Connection)]
            checked = [self._check(worker) for worker in busy.values() if worker.job is not None]
            outcomes = [outcome for outcome in (*received, *checked) if outcome is not None]
            if outcomes or time.monotonic() >= until:
                return outcomes

    def close(self) -> None:
        """End all workers; jobs that run are interrupted, as by Ctrl-C."""
        for worker in self._workers:
            if worker.job is not None:
                _signal(worker.process, signal.SIGTERM)
            worker.connection.close()
        until = time.monotonic() + _GRACE_SECONDS
        for worker in self._workers:
            try:
                worker.process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                _kill_tree(worker.process)
        self._workers.clear()

    def _start(self) -> _Worker:
        slot = min(set(range(self.size)) - {worker.slot for worker in self._workers})
        threads = str(self.options.threads or max(1, (os.cpu_count() or 1) // self.size))
        env = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)}
        if self.options.gpus:
            env["CUDA_VISIBLE_DEVICES"] = str(self.options.gpus[slot % len(self.options.gpus)])
        package = str(Path(__file__).resolve().parents[3])
        env["PYTHONPATH"] = os.pathsep.join([package, *filter(None, [env.get("PYTHONPATH")])])
        ours, theirs = Pipe()
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "workers.log").open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "speechtrain.sweep.workers.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=env,
                start_new_session=True,  # Ctrl-C must reach only the sweeper, which then ends its workers
            )
        theirs.close()
        send(ours, self._setup)
        return _Worker(process, ours, slot)

    def _receive(self, worker: _Worker) -> Outcome | None:
        """Read a worker's message; return the outcome if its job has ended."""
        job = worker.job
        assert job is not None
        try:
            message = receive(worker.connection)
        except Exception:  # closed, or broken off in the middle
            return self._end_worker(worker, "died", _exit_reason(worker.process))
        if isinstance(message, JobStarted):
            worker.started = time.monotonic()
            return None
        assert isinstance(message, JobEnded)
        if message.returned is not None:
            self.returned[job.number] = message.returned
        worker.job = None
        worker.jobs_done += 1
        if self.options.max_jobs is not None and worker.jobs_done >= self.options.max_jobs:
            self._discard(worker)
        return message.outcome

    def _check(self, worker: _Worker) -> Outcome | None:
        """Return the outcome of a job whose worker is dead or has to be killed; None if all is well."""
        if worker.process.poll() is not None and not _has_message(worker.connection):
            return self._end_worker(worker, "died", _exit_reason(worker.process))
        now = time.monotonic()
        if worker.started is None:
            late = now - worker.sent > _START_SECONDS
            return self._end_worker(worker, "died", f"its process did not start it within {_START_SECONDS:.0f} s") if late else None
        if self.timeout is not None and now - worker.started > self.timeout + _GRACE_SECONDS:
            return self._end_worker(worker, "timeout", f"took longer than hydra.sweeper.timeout={self.timeout:g} s")
        if self.options.memory_gb is not None and (used := _memory_gb(worker.process)) > self.options.memory_gb:
            return self._end_worker(worker, "memory", f"used {used:.1f} GB, hydra.launcher.memory_gb is {self.options.memory_gb:g}")
        return None

    def _end_worker(self, worker: _Worker, ending: Ending, reason: str) -> Outcome:
        """End a worker and return the outcome of its job."""
        job, worker.job = worker.job, None
        assert job is not None
        self._discard(worker)
        return Outcome(job.number, ending, reason=reason)

    def _discard(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.connection.close()
        _kill_tree(worker.process)


def _has_message(connection: Connection) -> bool:
    """Return whether a message can be received at once."""
    try:
        return connection.poll()
    except (OSError, EOFError):
        return False


def _exit_reason(process: subprocess.Popen[bytes]) -> str:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(2)
    code = process.returncode
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = ", perhaps because the machine ran out of memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process exited with code {code}" if code is not None else "its process closed the connection"


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
    process.kill()
    process.wait()


def _memory_gb(process: subprocess.Popen[bytes]) -> float:
    total = 0
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(process.pid)
        for item in [parent, *parent.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += item.memory_info().rss
    return total / 1e9
