"""Where jobs run: in this process, in warm workers, or under any launcher of Hydra's."""

from __future__ import annotations

import importlib
import logging
import queue
import threading
from collections.abc import Callable
from typing import Protocol

from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf

from speechtrain.sweep.trial.outcome import Job, Outcome
from speechtrain.sweep.trial.runner import Program, Runner, outcome_of, outcome_of_error, run_to_outcome


class Executor(Protocol):
    """Runs up to `size` jobs at a time.

    Attributes:
        ends_jobs: whether `close` ends the jobs that run; if not, they go on and record their results themselves.
    """

    size: int
    ends_jobs: bool

    @property
    def busy(self) -> int:
        """Jobs that run."""

    def submit(self, job: Job) -> None:
        """Start a job; at most `size` at a time."""

    def wait(self, timeout: float) -> list[Outcome]:
        """Outcomes of the jobs that ended; comes back after `timeout` seconds with none."""

    def close(self) -> None:
        """Stop."""


class InProcess:
    """One job after another, in this process."""

    size = 1
    ends_jobs = True

    def __init__(self, program: Program) -> None:
        self._runner = Runner(program)
        self._ended: list[Outcome] = []

    @property
    def busy(self) -> int:
        """Jobs that run: none, they end within `submit`."""
        return 0

    def submit(self, job: Job) -> None:
        """Run it to its end."""
        outcome, _ = run_to_outcome(self._runner, job, claimed=True)
        self._ended.append(outcome)

    def wait(self, timeout: float) -> list[Outcome]:  # noqa: ARG002
        """What ended since."""
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        """Nothing to stop."""


class ThroughLauncher:
    """Jobs under a launcher that only knows batches: a thread waits for each, so that none waits for another.

    Args:
        make_launcher: a launcher of its own for each thread.
    """

    ends_jobs = False

    def __init__(self, make_launcher: Callable[[], Launcher], size: int) -> None:
        logging.getLogger("hydra_plugins").setLevel(logging.WARNING)  # launchers announce every job; the sweeper has its own lines
        self.size = size
        self._idle = [make_launcher() for _ in range(size)]
        _start_ray(self._idle[0])
        self._ended: queue.Queue[tuple[Launcher, Outcome]] = queue.Queue()
        self.busy = 0

    def submit(self, job: Job) -> None:
        """Start it in a thread."""
        launcher = self._idle.pop()
        self.busy += 1
        threading.Thread(target=self._run, args=(launcher, job), daemon=True).start()

    def _run(self, launcher: Launcher, job: Job) -> None:
        try:
            (returned,) = launcher.launch([job.with_env_overrides()], initial_job_idx=job.number)
            outcome = outcome_of(job.number, returned)
        except BaseException as error:  # launchers raise what they like; the sweep goes on
            outcome = outcome_of_error(job.number, error)
        self._ended.put((launcher, outcome))

    def wait(self, timeout: float) -> list[Outcome]:
        """Outcomes of the threads that are done."""
        if not self.busy:
            return []
        found: list[Outcome] = []
        try:
            while True:
                launcher, outcome = self._ended.get(timeout=timeout if not found else 0)
                self._idle.append(launcher)
                self.busy -= 1
                found.append(outcome)
        except queue.Empty:
            return found

    def close(self) -> None:
        """Jobs that run go on; they record their results themselves."""


def _start_ray(launcher: Launcher) -> None:
    """Ray is started by the main thread, once: two threads that find it missing would both start it."""
    options = getattr(launcher, "ray_cfg", None)
    if options is None:
        return
    ray = importlib.import_module("ray")
    if not ray.is_initialized():
        options.init.setdefault("object_store_memory", 78_643_200)  # as the launcher does
        settings = OmegaConf.to_container(options.init, resolve=True)
        assert isinstance(settings, dict)
        ray.init(**{str(key): value for key, value in settings.items()})
