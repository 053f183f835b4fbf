"""Starts worker processes, hands them jobs, and ends those that die, hang or use too much memory; only their own job is lost.

`worker.py` is what such a process runs, `starting.py` how it starts. Which job is next is decided by the sweeper.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import subprocess
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

import psutil
from hydra.core.utils import JobReturn

from speechtrain.config.schemas.sweeps import PoolOptions
from speechtrain.sweep.space.compose import ComposedJob
from speechtrain.sweep.trial.outcome import Ending, Outcome, SweepJob
from speechtrain.sweep.workers.messages import JobEnded, JobStarted, Setup, StartJob, receive, send
from speechtrain.sweep.workers.starting import START_SECONDS, Process, WorkerStarter

log = logging.getLogger(__name__)

_GRACE_SECONDS = 2.0
"""Time that a job has to end by itself after its timeout, before its process is killed."""
_POLL_SECONDS = 0.5
"""Time between checks of workers that send nothing."""


@dataclass
class _Worker:
    """A worker process with the job it has, if any; times are those of `time.monotonic`."""

    process: Process
    connection: Connection
    slot: int
    job: SweepJob | None = None
    sent: float = 0.0
    started: float | None = None
    jobs_done: int = 0


class Pool:
    """Runs jobs in up to `size` worker processes.

    Args:
        setup: what each worker needs before its first job.
        size: number of workers.
        folder: the sweep's folder; what a job prints goes to `<number>/output.log` in it.
        options: threads, GPUs and limits of the workers.
        timeout: seconds a job may take.
        wants_returns: whether Hydra's whole JobReturn of each job is kept in `returned`.
        jobs_outlive: whether a worker finishes its job if this process dies meanwhile; if not, it is killed at once.
    """

    ends_jobs = True
    is_local = False

    def __init__(
        self,
        setup: Setup,
        size: int,
        folder: Path,
        options: PoolOptions,
        *,
        timeout: float | None = None,
        wants_returns: bool = False,
        jobs_outlive: bool = True,
    ) -> None:
        self.size = size
        self.folder = folder
        self.options = options
        self.timeout = timeout
        self.returned: dict[int, JobReturn] = {}
        self._wants_returns = wants_returns
        self._starter = WorkerStarter(setup, size, folder, options, jobs_outlive=jobs_outlive)
        self._workers: list[_Worker] = []

    @property
    def busy(self) -> int:
        """Return the number of jobs that run."""
        return sum(worker.job is not None for worker in self._workers)

    def expect(self, jobs: int) -> None:
        """Do nothing: a worker is started when its first job is submitted."""

    def submit(self, job: SweepJob, composed: ComposedJob | None = None) -> None:
        """Start a job on an idle worker, or on a new one if all are busy; one that is not `composed` the worker composes."""
        worker = next((item for item in self._workers if item.job is None), None)
        if worker is None:
            assert len(self._workers) < self.size, "more jobs than workers"
            worker = self._start(job)
            self._workers.append(worker)
        log_file = self.folder / str(job.number) / "output.log"
        try:
            send(worker.connection, StartJob(job, log_file, self._wants_returns, composed))
        except OSError:  # it died while it was idle
            self._discard(worker)
            self.submit(job, composed)
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
        self._starter.close()
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

    def _start(self, job: SweepJob) -> _Worker:
        slot = min(set(range(self.size)) - {worker.slot for worker in self._workers})
        return _Worker(*self._starter.start(slot, job.overrides), slot)

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
            late = now - worker.sent > START_SECONDS
            return self._end_worker(worker, "died", f"its process did not start it within {START_SECONDS:.0f} s") if late else None
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


def _exit_reason(process: Process) -> str:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(2)
    code = process.returncode
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = ", perhaps because the machine ran out of memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process exited with code {code}" if code is not None else "its process closed the connection"


def _signal(process: Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def _kill_tree(process: Process) -> None:
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
    process.kill()
    process.wait()


def _memory_gb(process: Process) -> float:
    total = 0
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(process.pid)
        for item in [parent, *parent.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += item.memory_info().rss
    return total / 1e9
