"""Chooses what runs the jobs of a sweep: this process, a launcher of Hydra's, the pool of `pool.py`, or the actors of `ray_actors.py`.

An executor runs the jobs it is handed; which job is next is decided by the sweeper.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.types import TaskFunction
from omegaconf import DictConfig, OmegaConf

from speechtrain.addresses import masked
from speechtrain.config.schemas.sweeps import PoolOptions, RayOptions, SweeperOptions
from speechtrain.files import append
from speechtrain.processes.launch_environment import launch_of_trial
from speechtrain.sweep.study.folder import SharedFile
from speechtrain.sweep.trial.context import TrialContext
from speechtrain.sweep.trial.handle import TrialCancelledError, own_trial
from speechtrain.sweep.trial.outcome import VARIABLE, Outcome, SweepJob, UnpicklableError, outcome_of, outcome_of_error
from speechtrain.sweep.trial.runner import JobRunner, Program
from speechtrain.sweep.workers.messages import Setup, can_be_pickled
from speechtrain.sweep.workers.pool import Pool

_DEFAULT_POOL = PoolOptions(n_workers=None, threads=None, gpus=None, memory_gb=None, max_jobs=None, fork=True)
"""Options of the pool where no launcher is chosen; the values are those of `conf/hydra/launcher/pool.yaml`."""


class Executor(Protocol):
    """Runs up to `size` jobs at a time.

    Attributes:
        ends_jobs: whether `close` ends the jobs that run; if not, they go on and record their results themselves.
        is_local: whether jobs run in this process, and see what it has in memory.
    """

    ends_jobs: bool
    is_local: bool

    @property
    def size(self) -> int:
        """Return how many jobs may run at a time, which changes where workers come and go."""

    def expect(self, jobs: int) -> None:
        """Take note that up to so many jobs may have to run at a time from now on, those that run among them."""

    @property
    def busy(self) -> int:
        """Return the number of jobs that run."""

    def submit(self, job: SweepJob) -> None:
        """Start a job; there must be fewer than `size` running."""

    def wait(self, timeout: float) -> list[Outcome]:
        """Return the outcomes of the jobs that ended; after `timeout` seconds with none, an empty list."""

    def close(self) -> None:
        """Start nothing more, and end what runs if `ends_jobs`."""


class InProcess:
    """Runs one job after another in this process."""

    size = 1
    ends_jobs = True
    is_local = True

    def __init__(self, program: Program, folder: Path) -> None:
        self._runner = JobRunner(program)
        self._folder = folder
        self._ended: list[Outcome] = []

    @property
    def busy(self) -> int:
        """Return 0: a job ends within `submit`."""
        return 0

    def expect(self, jobs: int) -> None:
        """Do nothing: this process is there."""

    def submit(self, job: SweepJob) -> None:
        """Run a job to its end."""
        outcome, _ = self._runner.run(job)
        keep_trace(self._folder / str(job.number), outcome)
        self._ended.append(outcome)

    def wait(self, timeout: float) -> list[Outcome]:  # noqa: ARG002
        """Return the outcomes of the jobs submitted since the last call."""
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        """Do nothing: no job runs between calls."""


class ThroughLauncher:
    """Runs each job as a batch of one under a launcher of Hydra's, in a thread, so that none waits for another.

    Args:
        make_launcher: makes a launcher, one for each thread.
        size: jobs that may run at a time.
        folder: the sweep's folder.
    """

    ends_jobs = False
    is_local = False

    def __init__(self, make_launcher: Callable[[], Launcher], size: int, folder: Path) -> None:
        logging.getLogger("hydra_plugins").setLevel(logging.WARNING)  # launchers announce every job; the sweeper has its own lines
        self.size = size
        self._folder = folder
        self._idle = [make_launcher() for _ in range(size)]
        _start_ray(self._idle[0])
        self._ended: queue.Queue[tuple[Launcher, Outcome]] = queue.Queue()
        self.busy = 0

    def expect(self, jobs: int) -> None:
        """Do nothing: the launcher starts what it needs for each job."""

    def submit(self, job: SweepJob) -> None:
        """Start a job in a thread of its own."""
        launcher = self._idle.pop()
        self.busy += 1
        threading.Thread(target=self._run, args=(launcher, job), daemon=True).start()

    def _run(self, launcher: Launcher, job: SweepJob) -> None:
        try:
            (returned,) = launcher.launch([job.with_env_overrides()], initial_job_idx=job.number)
            outcome = outcome_of(job.number, returned)  # its trace is where `LoggedTask` wrote it: pickled errors have none
        except BaseException as error:  # launchers raise what they like; the sweep goes on
            outcome = outcome_of_error(job.number, error)
            keep_trace(self._folder / str(job.number), outcome)
        self._ended.put((launcher, outcome))

    def wait(self, timeout: float) -> list[Outcome]:
        """Return the outcomes of the threads that are done."""
        if not self.busy:
            return []
        outcomes: list[Outcome] = []
        try:
            while True:
                launcher, outcome = self._ended.get(timeout=timeout if not outcomes else 0)
                self._idle.append(launcher)
                self.busy -= 1
                outcomes.append(outcome)
        except queue.Empty:
            return outcomes

    def close(self) -> None:
        """Leave the jobs that run alone; they record their results themselves."""


class LoggedTask:
    """A program that owns its trial, and keeps the stack trace of an unexpected error, in whatever process a launcher runs it.

    The trial is kept alive, limited in time and recorded, also if the sweeper is gone by then; the trace is appended to `output.log`. What
    the job returns or raises can be pickled: joblib's processes break off all jobs where one of them ends with something that cannot.

    Args:
        task_function: the program.
    """

    def __init__(self, task_function: TaskFunction) -> None:
        self._task_function = task_function
        functools.update_wrapper(self, task_function)

    def __call__(self, cfg: DictConfig) -> Any:
        """Run the program, and return its result, or the text of one that cannot be pickled.

        Raises:
            TrialCancelledError: its trial is not running any more.
            Exception: what the program raised, or an `UnpicklableError` in its place.
        """
        launch = launch_of_trial(os.environ)
        text = os.environ.get(VARIABLE) if launch is None or launch.rank == 0 else None  # the first of a job's processes has the trial
        try:
            with own_trial(TrialContext.from_text(text)) if text else contextlib.nullcontext() as trial:
                result = self._task_function(cfg)
                if trial is not None:
                    trial.end(Outcome(trial.context.number, "done", value=result))
        except TrialCancelledError:
            raise
        except Exception as error:
            hydra = HydraConfig.get()
            outcome = outcome_of_error(hydra.job.num, error)
            keep_trace(Path(hydra.runtime.output_dir), outcome)
            if not can_be_pickled(error):
                raise UnpicklableError(replace(outcome, trace="")) from None
            raise
        return result if can_be_pickled(result) else repr(result)


def keep_trace(folder: Path, outcome: Outcome) -> None:
    """Append the stack trace of a job that failed to the `output.log` in its folder, where a worker of the pool prints it."""
    if outcome.trace:
        with contextlib.suppress(OSError):  # the reason is in the study
            folder.mkdir(parents=True, exist_ok=True)  # a job that could not be composed has none
            append(folder / "output.log", masked(outcome.trace).encode())


def _start_ray(launcher: Launcher) -> None:
    """Start Ray in the main thread, once: two threads that find it missing would both start it."""
    options = getattr(launcher, "ray_cfg", None)
    if options is None:
        return
    ray = importlib.import_module("ray")
    if not ray.is_initialized():
        options.init.setdefault("object_store_memory", 78_643_200)  # as the launcher does
        settings = OmegaConf.to_container(options.init, resolve=True)
        assert isinstance(settings, dict)
        ray.init(**{str(key): value for key, value in settings.items()})


def make_executor(options: SweeperOptions, program: Program, folder: Path, files: Sequence[SharedFile] = ()) -> Executor:
    """Return what runs the jobs of a sweep: without a launcher of choice, this process for one at a time and the pool for more.

    Args:
        options: `hydra.sweeper`.
        program: what all jobs share.
        folder: folder of the sweep.
        files: files that jobs on other machines have to see.

    Raises:
        UserError: the launcher says that it cannot be used.
    """

    def make_launcher() -> Launcher:
        launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=program.hydra_context, task_function=LoggedTask(program.task_function), config=program.config
        )
        return launcher

    launcher = make_launcher()
    pool: PoolOptions | None = getattr(launcher, "pool_options", None)
    if program.config.hydra.runtime.choices["hydra/launcher"] == "basic":  # Hydra's default
        if options.n_jobs == 1:
            return InProcess(program, folder)
        pool = _DEFAULT_POOL
    if pool is not None:
        return Pool(Setup.of_this_process(program), options.n_jobs, folder, pool, timeout=options.timeout)
    ray: RayOptions | None = getattr(launcher, "ray_options", None)
    if ray is not None:
        from speechtrain.sweep.workers.ray_actors import RayActors

        return RayActors(program, options.n_jobs, folder, ray, timeout=options.timeout, files=files)
    if hasattr(launcher, "check"):
        launcher.check()
    return ThroughLauncher(make_launcher, options.n_jobs, folder)
