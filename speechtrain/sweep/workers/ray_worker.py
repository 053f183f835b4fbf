"""A worker of a Ray cluster: an actor that holds the resources of one trial, with a warm process beside it which runs the jobs.

The process is that of a pool of one (`pool.py`), so that a crash, a hang or a full memory costs one trial and not the actor, and a job may
use signals, which Ray keeps for itself. It is killed with its actor. Ray is not imported here; `ray_actors.py` makes the actors.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hydra.core.utils import JobReturn
from omegaconf import open_dict, read_write

from speechtrain import __version__
from speechtrain.config.schemas.sweeps import PoolOptions
from speechtrain.processes.identity import Process
from speechtrain.sweep.space.compose import ComposedJob
from speechtrain.sweep.study.folder import MARK_FILE
from speechtrain.sweep.trial.outcome import Outcome, SweepJob
from speechtrain.sweep.workers.messages import Setup
from speechtrain.sweep.workers.pool import Pool

_LOOKS_SECONDS = 0.25
"""Time between looks whether the job is to be ended."""


@dataclass(frozen=True)
class WorkerSetup:
    """What an actor is told of its sweep before the first trial.

    Attributes:
        setup: what a process needs before its first job.
        folder: the sweep's folder where the sweeper runs, absolute.
        token: the word that is kept in it.
        cwd: the folder in which the command was given.
        elsewhere: folder for the trials where the sweep's folder is not seen, below the home folder unless it is absolute.
        has_working_dir: whether Ray has made a working folder for the actor.
        has_gpus: whether Ray has given it a GPU, or a part of one.
        files: files that every worker has to see, by key.
        options: limits and threads of the process.
        variables: environment variables of jobs that the node does not set itself.
        timeout: seconds a job may take.
        wants_returns: whether Hydra's whole return value of each job is wanted.
    """

    setup: Setup
    folder: str
    token: str
    cwd: str
    elsewhere: str
    has_working_dir: bool
    has_gpus: bool
    files: Mapping[str, str]
    options: PoolOptions
    variables: Mapping[str, str]
    timeout: float | None
    wants_returns: bool


@dataclass(frozen=True)
class Facts:
    """What an actor tells of where it is.

    Attributes:
        process: the actor's process.
        node: Ray's id of the node; empty outside of Ray.
        version: version of this package there.
        shares_folder: whether it sees the sweep's folder.
        folder: the folder in which the trials lie there.
        unseen: keys of the files that it does not see.
    """

    process: Process
    node: str
    version: str
    shares_folder: bool
    folder: str
    unseen: Sequence[str]


class RayWorker:
    """Runs jobs one after another in a process of its own.

    Args:
        given: what it is to run, and how.
    """

    def __init__(self, given: WorkerSetup) -> None:
        self._is_to_stop = threading.Event()
        folder = Path(given.folder)
        self._shares_folder = _read(folder / MARK_FILE) == given.token
        elsewhere = Path.home() / given.elsewhere / f"{folder.name}-{given.token[:8]}"
        self._folder = folder if self._shares_folder else elsewhere
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._shares_folder and Path(given.cwd).is_dir():
            os.chdir(given.cwd)
        elif not self._shares_folder and not given.has_working_dir:
            os.chdir(self._folder)
        self._unseen = [key for key, file in given.files.items() if not Path(file).exists()]
        for name, value in given.variables.items():
            os.environ.setdefault(name, value)
        if not given.has_gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        self._memory_gb = given.options.memory_gb
        path = _search_path(sys.path, given.setup.path)
        sys.path += [entry for entry in path if entry not in sys.path]  # what jobs return is read here
        self._pool = Pool(
            replace(given.setup, path=path),
            1,
            self._folder,
            given.options,
            timeout=given.timeout,
            wants_returns=given.wants_returns,
            jobs_outlive=False,
        )

    def facts(self) -> Facts:
        """Return where the worker is."""
        return Facts(Process.current(), _node_id(), __version__, self._shares_folder, str(self._folder), self._unseen)

    def run(self, job: SweepJob, composed: ComposedJob) -> tuple[Outcome, JobReturn | None]:
        """Run a job to its end, and return how it ended, with Hydra's own return value where it is wanted.

        Args:
            job: the job.
            composed: its config, in which the folders become those of this node.
        """
        hydra = composed.cfg.hydra
        with read_write(hydra), open_dict(hydra):
            hydra.sweep.dir = str(self._folder)
            hydra.runtime.cwd = str(Path.cwd())
        self._pool.submit(job, composed)
        while not (outcomes := self._pool.wait(_LOOKS_SECONDS)):
            if self._is_to_stop.is_set():
                self._pool.close()
                return Outcome(job.number, "interrupted", reason="interrupted"), None
        outcome = outcomes[0]
        if outcome.ending == "memory":
            outcome = replace(outcome, reason=f"used more than hydra.launcher.memory, {self._memory_gb:g} GB")
        return outcome, self._pool.returned.pop(job.number, None)

    def stop(self) -> None:
        """Have the job that runs interrupted, as by Ctrl-C; called while `run` is under way."""
        self._is_to_stop.set()


def _node_id() -> str:
    ray = sys.modules.get("ray")
    return str(ray.get_runtime_context().get_node_id()) if ray is not None and ray.is_initialized() else ""


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return None


def _search_path(own: Sequence[str], theirs: Sequence[str]) -> list[str]:
    """Return where jobs look for modules: in folders that only the node has, as runtime environments, then in those of the sweeper.

    Args:
        own: where the actor looks; folders inside of Ray, which has older packages there for itself, are left out.
        theirs: where the sweeper looks; what this node does not see is left out.
    """
    ray = sys.modules.get("ray")
    inside = Path(str(ray.__file__)).parent if ray is not None else None
    extra = [entry for entry in own if entry not in theirs and not (inside is not None and Path(entry).is_relative_to(inside))]
    return list(dict.fromkeys([*extra, *(entry for entry in theirs if Path(entry).exists())]))
