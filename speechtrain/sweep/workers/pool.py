"""Warm worker processes: each runs many jobs, and one that dies, hangs or eats all memory takes only its own job with it."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path

import cloudpickle
import psutil
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn

from speechtrain.sweep.trial.outcome import Ending, Job, Outcome
from speechtrain.sweep.trial.runner import Program
from speechtrain.sweep.workers.worker import STARTED

log = logging.getLogger(__name__)

_GRACE = 2.0
"""Seconds that a job has to end by itself after its time is up, before its process is killed."""
_START = 300.0
"""Seconds that a worker has to come up and begin its first job."""
_POLL = 0.5


@dataclass
class PoolOptions:
    """How workers are set up; the fields are those of `conf/hydra/launcher/pool.yaml`.

    Attributes:
        threads: each worker's; None: the cores divided among the workers.
        gpus: indices given out in turn; None: every worker sees all.
        memory_gb: resident memory, with its children, at which a worker is killed.
        max_jobs: after which a worker is replaced by a fresh one.
    """

    threads: int | None = None
    gpus: Sequence[int] | None = None
    memory_gb: float | None = None
    max_jobs: int | None = None


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    slot: int
    job: Job | None = None
    sent: float = 0.0
    started: float | None = None
    jobs_done: int = 0


class Pool:
    """Up to `size` worker processes.

    Args:
        program: what every job shares.
        folder: of the sweep; a job writes to `<number>/output.log` in it.
        timeout: seconds a job may take.
        wants_returns: whether Hydra's whole JobReturn is wanted.
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
        self._setup = cloudpickle.dumps(
            {
                "path": [str(Path(item).absolute()) for item in sys.path],
                "program": cloudpickle.dumps(program),
                "singletons": Singleton.get_state(),
                "wants_returns": wants_returns,
            }
        )
        self._workers: list[_Worker] = []

    @property
    def busy(self) -> int:
        """Jobs that run."""
        return sum(worker.job is not None for worker in self._workers)

    def submit(self, job: Job) -> None:
        """Start a job on an idle worker, which is made if there is none."""
        worker = next((item for item in self._workers if item.job is None), None)
        if worker is None:
            assert len(self._workers) < self.size, "more jobs than workers"
            worker = self._start()
            self._workers.append(worker)
        log_file = self.folder / str(job.number) / "output.log"
        try:
            worker.connection.send_bytes(pickle.dumps((job, str(log_file))))
        except OSError:  # it died while it was idle
            self._discard(worker)
            self.submit(job)
            return
        worker.job, worker.sent, worker.started = job, time.monotonic(), None

    def wait(self, timeout: float) -> list[Outcome]:
        """Outcomes of the jobs that ended; comes back after `timeout` seconds with none."""
        until = time.monotonic() + timeout
        while True:
            busy = {worker.connection: worker for worker in self._workers if worker.job is not None}
            if not busy:
                return []
            ready = wait(list(busy), timeout=max(0.0, min(_POLL, until - time.monotonic())))
            heard = [self._receive(busy[connection]) for connection in ready if isinstance(connection, Connection)]
            found = [outcome for outcome in heard if outcome is not None]
            found += [outcome for worker in list(busy.values()) if worker.job is not None and (outcome := self._judge(worker)) is not None]
            if found or time.monotonic() >= until:
                return found

    def close(self) -> None:
        """Let idle workers go, and stop those that run: their jobs are interrupted, as by Ctrl-C."""
        for worker in self._workers:
            if worker.job is not None:
                _signal(worker.process, signal.SIGTERM)
            worker.connection.close()
        until = time.monotonic() + _GRACE
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
                start_new_session=True,  # Ctrl-C is for the sweeper, which tells its workers
            )
        theirs.close()
        ours.send_bytes(self._setup)
        return _Worker(process, ours, slot)

    def _receive(self, worker: _Worker) -> Outcome | None:
        """What a worker says: that it begins, or how its job ended."""
        job = worker.job
        assert job is not None
        try:
            message = worker.connection.recv_bytes()
            if message == STARTED:
                worker.started = time.monotonic()
                return None
            outcome, returned = pickle.loads(message)  # from our own worker
        except Exception:  # closed, or broken off in the middle
            return self._bury(worker, "died", _cause_of_death(worker.process))
        if returned is not None:
            self.returned[job.number] = returned
        worker.job = None
        worker.jobs_done += 1
        if self.options.max_jobs is not None and worker.jobs_done >= self.options.max_jobs:
            self._discard(worker)
        assert isinstance(outcome, Outcome)
        return outcome

    def _judge(self, worker: _Worker) -> Outcome | None:
        """The outcome of a job whose worker is dead or has to be killed."""
        if worker.process.poll() is not None and not _has_word(worker.connection):
            return self._bury(worker, "died", _cause_of_death(worker.process))
        now = time.monotonic()
        if worker.started is None:
            late = now - worker.sent > _START
            return self._bury(worker, "died", f"its process did not begin within {_START:.0f} s") if late else None
        if self.timeout is not None and now - worker.started > self.timeout + _GRACE:
            return self._bury(worker, "timeout", f"took longer than hydra.sweeper.timeout={self.timeout:g} s")
        if self.options.memory_gb is not None and (used := _memory_gb(worker.process)) > self.options.memory_gb:
            return self._bury(worker, "memory", f"used {used:.1f} GB, hydra.launcher.memory_gb is {self.options.memory_gb:g}")
        return None

    def _bury(self, worker: _Worker, ending: Ending, reason: str) -> Outcome:
        job, worker.job = worker.job, None
        assert job is not None
        self._discard(worker)
        return Outcome(job.number, ending, reason=reason)

    def _discard(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.connection.close()
        _kill_tree(worker.process)


def _has_word(connection: Connection) -> bool:
    """Whether there is something to receive."""
    try:
        return connection.poll()
    except (OSError, EOFError):
        return False


def _cause_of_death(process: subprocess.Popen[bytes]) -> str:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(2)
    code = process.returncode
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = ", perhaps because the machine ran out of memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with code {code}" if code is not None else "its process broke off"


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
