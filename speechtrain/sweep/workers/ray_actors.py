"""Runs the jobs of a sweep on a Ray cluster: one warm actor for each trial at a time, with the resources that a trial asks for.

Which job is next is decided by the sweeper, which is told of as many workers as there are: an actor whose resources are not free yet is
none, so no trial waits for resources. Configs are composed here, for the nodes need not have the program's files. `ray_worker.py` is what
runs on a node, `ray_cluster.py` the connection. docs/decisions/0029 says why it is made like this.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn

from speechtrain import __version__
from speechtrain.config.schemas.sweeps import PoolOptions, RayOptions, bytes_of
from speechtrain.errors import ConfigError, Problem, RunError, UserError, counted, first_line
from speechtrain.sweep.space.compose import Composer
from speechtrain.sweep.study.folder import SharedFile, token_of
from speechtrain.sweep.trial.outcome import Outcome, SweepJob, outcome_of_error
from speechtrain.sweep.trial.runner import Program
from speechtrain.sweep.workers.executors import keep_trace
from speechtrain.sweep.workers.messages import Setup
from speechtrain.sweep.workers.ray_cluster import Cluster, asked_of, described, in_words, room_for, unmet
from speechtrain.sweep.workers.ray_worker import Facts, RayWorker, WorkerSetup

log = logging.getLogger(__name__)

_CHECK_SECONDS = 5.0
"""Time between looks whether there are nodes that have what a trial asks for, while workers wait for them."""
_START_SECONDS = 30.0
"""Time without any worker after which it is said that trials wait; until then workers may be starting."""
_LOST_SECONDS = 3.0
"""Time after which the process of a job is gone whose actor is: Ray's processes notice within a second that their node has died."""
_STOP_SECONDS = 10.0
"""Time that jobs have to end once they are interrupted, before they are killed."""
_CONTROL = "control"
"""Group of calls that an actor answers while it runs a job."""
_NODE_DIED = "node has died"
"""What Ray says of an actor whose node is gone."""
_MOST_STARTS = 3
"""Workers that end before they are there, one after another, before the sweep is given up."""
_PASSED_ON = ("MLFLOW_TRACKING_", "MLFLOW_EXPERIMENT_NAME")
"""What the names of variables begin with that jobs get where their node does not set them: where runs are kept."""


@dataclass
class _Actor:
    """An actor, which is there once it has told its facts; times are those of `time.monotonic`."""

    handle: Any
    answer: Any
    facts: Facts | None = None
    job: SweepJob | None = None

    @property
    def is_there(self) -> bool:
        return self.facts is not None


@dataclass
class _Loss:
    """A job whose actor has died, or cannot be reached: its outcome is told once nothing of it runs any more."""

    job: SweepJob
    node: str
    host: str
    reason: str
    is_cut_off: bool
    since: float = field(default_factory=time.monotonic)


class RayActors:
    """Runs up to `most` jobs at a time, each on an actor of its own, as far as the cluster has room for them.

    Args:
        program: what all jobs share.
        most: jobs that run at a time at most.
        folder: the sweep's folder.
        options: `hydra.launcher`.
        timeout: seconds a job may take.
        wants_returns: whether Hydra's whole JobReturn of each job is kept in `returned`.
        files: files that each worker has to see.

    Raises:
        UserError: there is no such cluster, or it has not what a trial asks for.
    """

    ends_jobs = True
    is_local = False

    def __init__(
        self,
        program: Program,
        most: int,
        folder: Path,
        options: RayOptions,
        *,
        timeout: float | None = None,
        wants_returns: bool = False,
        files: Sequence[SharedFile] = (),
    ) -> None:
        self.returned: dict[int, JobReturn] = {}
        self._most = most
        self._folder = folder.absolute()
        self._options = options
        self._files = files
        self._asked = asked_of(options)
        self._composer = Composer(program.hydra_context.config_loader, program.config)
        self._actors: list[_Actor] = []
        self._ended: list[Outcome] = []
        self._losses: list[_Loss] = []
        self._failed_starts = 0
        self._told: set[str] = set()
        self._checked = self._had_room = self._had_worker = time.monotonic()
        setup = Setup.of_this_process(program)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._worker_setup = WorkerSetup(
            setup,
            str(self._folder),
            token_of(self._folder),
            str(Path.cwd()),
            options.folder,
            "working_dir" in (options.runtime_env or {}),
            options.num_gpus > 0,
            {file.key: file.path for file in files},
            PoolOptions(
                n_workers=None,
                threads=options.threads or max(1, int(options.num_cpus)),
                gpus=None,
                memory_gb=memory / 1e9 if (memory := bytes_of(options.memory)) else None,
                max_jobs=options.max_jobs,
                fork=False,
            ),
            {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)},
            timeout,
            wants_returns,
        )
        self._cluster = Cluster(options)
        try:
            self._check_at_start()
        except BaseException:
            self._cluster.close()
            raise

    def _check_at_start(self) -> None:
        """Refuse what no node has, unless one may come, and say how many trials there is room for.

        Raises:
            ConfigError: no node has what a trial asks for.
        """
        import ray

        nodes = self._cluster.nodes()
        if (error := unmet(self._asked, nodes)) is not None:
            if not self._cluster.autoscales():
                raise error
            log.warning("no node has what a trial asks for (%s); the cluster autoscales, so trials wait for one", in_words(self._asked))
            return
        room = room_for(self._asked, nodes)
        at_a_time = "" if room >= self._most else f", so that {room} of {counted(self._most, 'trial')} run at a time"
        log.info("Ray %s: %s; a trial asks for %s%s", ray.__version__, described(nodes), in_words(self._asked), at_a_time)

    # --- what the sweeper asks for ----------------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Return how many actors are there."""
        return sum(actor.is_there for actor in self._actors)

    @property
    def busy(self) -> int:
        """Return the number of jobs that run."""
        return sum(actor.job is not None for actor in self._actors)

    def expect(self, jobs: int) -> None:
        """Ask for as many actors as there will be jobs at a time, and let those go that have none and will have none."""
        wanted = min(self._most, jobs)
        for actor in sorted((each for each in self._actors if each.job is None), key=lambda each: each.is_there):
            if len(self._actors) <= wanted:
                break
            self._end(actor)
        while len(self._actors) < wanted:
            self._actors.append(self._start())

    def submit(self, job: SweepJob) -> None:
        """Start a job on an actor that has none."""
        actor = next(each for each in self._actors if each.is_there and each.job is None)
        try:
            composed = self._composer.compose_job(job.overrides)
        except Exception as error:  # it is the job's
            outcome = outcome_of_error(job.number, error)
            keep_trace(self._folder / str(job.number), outcome)
            self._ended.append(outcome)
            return
        actor.job = job
        actor.answer = actor.handle.run.remote(job, composed)

    def wait(self, timeout: float) -> list[Outcome]:
        """Return the outcomes of the jobs that ended; an empty list as soon as a worker has come, or after `timeout` seconds.

        Raises:
            UserError: a node cannot run the jobs.
            RunError: the workers that are needed do not come.
        """
        import ray

        if self._ended:
            timeout = 0.0
        answers = {actor.answer: actor for actor in self._actors if actor.answer is not None}
        if answers:
            limit = min(timeout, 0.5) if self._losses else timeout
            ready, _ = ray.wait(list(answers), num_returns=1, timeout=limit)
            if ready:  # others may have come meanwhile
                ready, _ = ray.wait(list(answers), num_returns=len(answers), timeout=0)
            for answer in ready:
                self._receive(answers[answer], answer)
        elif self._losses:
            time.sleep(min(timeout, 0.5))
        self._ended += self._settled_losses()
        self._check_nodes()
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        """End all actors, and the jobs that run as by Ctrl-C; leave the cluster."""
        import ray

        if not ray.is_initialized():  # closed before
            return
        busy = [actor for actor in self._actors if actor.job is not None]
        with contextlib.suppress(Exception):  # of a cluster that is gone
            for actor in busy:
                actor.handle.stop.options(concurrency_group=_CONTROL).remote()
            if busy:
                ray.wait([actor.answer for actor in busy], num_returns=len(busy), timeout=_STOP_SECONDS)
        for actor in list(self._actors):
            self._end(actor)
        with contextlib.suppress(Exception):
            self._cluster.close()

    # --- actors -----------------------------------------------------------------------------------------------------------------------

    def _start(self) -> _Actor:
        """Ask the cluster for an actor, which starts as soon as there is room for it."""
        handle = self._actor_class.remote(self._worker_setup)
        return _Actor(handle, handle.facts.remote())

    @cached_property
    def _actor_class(self) -> Any:
        """Return Ray's class of the actors, with what each of them asks for."""
        import ray

        asked = dict(self._asked)
        settings: dict[str, Any] = {"num_cpus": asked.pop("CPU", 0), "num_gpus": asked.pop("GPU", 0)}
        if memory := asked.pop("memory", 0):
            settings["memory"] = int(memory)
        if asked:
            settings["resources"] = asked
        if self._cluster.runtime_env is not None:
            settings["runtime_env"] = self._cluster.runtime_env
        return ray.remote(concurrency_groups={_CONTROL: 1}, **settings)(RayWorker)

    def _end(self, actor: _Actor) -> None:
        import ray

        self._actors.remove(actor)
        with contextlib.suppress(Exception):  # of a cluster that is gone
            ray.kill(actor.handle)

    def _receive(self, actor: _Actor, answer: Any) -> None:
        """Take what an actor has answered: its facts at first, then how its job ended; or find that it is gone."""
        import ray

        actor.answer = None
        try:
            answered = ray.get(answer)
        except Exception as error:  # of whatever Ray raises
            self._handle_end(actor, error)
            return
        if isinstance(answered, Facts):
            self._failed_starts, self._had_room = 0, time.monotonic()
            actor.facts = answered
            self._check_facts(answered)
            return
        job, actor.job = actor.job, None
        assert job is not None
        outcome, returned = answered
        assert actor.facts is not None
        if not actor.facts.shares_folder:
            keep_trace(self._folder / str(job.number), outcome)
        if returned is not None:
            self.returned[job.number] = returned
        self._ended.append(outcome)

    def _handle_end(self, actor: _Actor, error: Exception) -> None:
        """Note that the job of an actor which is gone has ended with it, or that it could not start.

        Raises:
            UserError: it can start on no node like this.
            RunError: several could not start, one after another.
        """
        from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

        self._end(actor)
        job = actor.job
        if job is None and actor.facts is None:
            if _NODE_DIED in str(error):  # another one is asked for
                return
            self._failed_starts += 1
            if isinstance(error, RayTaskError) or _could_not_be_made(error):
                raise UserError(_why_it_did_not_start(error)) from error
            if self._failed_starts >= _MOST_STARTS:
                raise RunError(f"Ray: {self._failed_starts} workers ended before they were there: {_line(error)}") from error
        elif job is not None and isinstance(error, RayActorError):
            assert actor.facts is not None
            is_cut_off = isinstance(error, ActorUnavailableError) or _NODE_DIED in str(error)
            self._losses.append(_Loss(job, actor.facts.node, actor.facts.process.host, _line(error), is_cut_off))
        elif job is not None:  # what it has answered cannot be read here
            self._ended.append(outcome_of_error(job.number, error))

    def _settled_losses(self) -> list[Outcome]:
        """Return the outcomes of jobs whose actors died some time ago: by then nothing of them runs."""
        due = [loss for loss in self._losses if time.monotonic() - loss.since > _LOST_SECONDS]
        if not due:
            return []
        self._losses = [loss for loss in self._losses if loss not in due]
        with contextlib.suppress(Exception):
            alive = {node.id for node in self._cluster.nodes()}
            return [self._outcome_of(loss, is_node_alive=loss.node in alive) for loss in due]
        return [self._outcome_of(loss, is_node_alive=False) for loss in due]

    def _outcome_of(self, loss: _Loss, *, is_node_alive: bool) -> Outcome:
        if loss.is_cut_off or not is_node_alive:
            return Outcome(loss.job.number, "lost", reason=f"its node {loss.host} went away")
        return Outcome(loss.job.number, "died", reason=f"its worker on {loss.host} was ended: {loss.reason}")

    # --- nodes ------------------------------------------------------------------------------------------------------------------------

    def _check_facts(self, facts: Facts) -> None:
        """Refuse a node that cannot run the jobs, and say what is different there.

        Raises:
            UserError: it has another version of this package.
            ConfigError: it does not see a file that each worker has to see.
        """
        host = facts.process.host
        if facts.version != __version__:
            fix = "install the same version there, or give hydra.launcher.runtime_env"
            raise UserError(f"the node {host} has speechtrain {facts.version}, and this machine {__version__}\n    -> {fix}")
        problems = [
            Problem(file.key, f"the node {host} does not see {file.path}", file.fix) for file in self._files if file.key in facts.unseen
        ]
        if problems:
            raise ConfigError(problems)
        if not facts.shares_folder:
            self._tell(
                f"the node {host} does not see {self._folder}: its trials lie in {facts.folder} there, and begin anew if it goes away",
                host,
            )

    def _tell(self, message: str, key: str) -> None:
        """Log a warning, unless one with the same key was logged before."""
        if key not in self._told:
            self._told.add(key)
            log.warning("%s", message)

    def _check_nodes(self) -> None:
        """Look whether the workers that are missing can come, and say so if they have to wait.

        Raises:
            RunError: no node has what a trial asks for any more, and none has come in time.
        """
        now = time.monotonic()
        if self.size:
            self._had_worker = now
        if all(actor.is_there for actor in self._actors):
            self._had_room = now
            return
        if now - self._checked < _CHECK_SECONDS:
            return
        self._checked = now
        nodes = self._cluster.nodes()
        asked = in_words(self._asked)
        if unmet(self._asked, nodes) is None:
            if now - self._had_worker > _START_SECONDS:
                self._tell(f"no worker is there yet: what a trial asks for ({asked}) is in use, or workers are starting", "busy")
            self._had_room = now
        elif self._cluster.autoscales():
            self._tell(f"trials wait for a node that has what they ask for: {asked}", "scales")
        elif not self.size and now - self._had_room > self._options.patience:
            there = "\n".join(f"    {node}" for node in nodes)
            raise RunError(
                f"no node that has what a trial asks for ({asked}) has come for hydra.launcher.patience={self._options.patience:g} s; "
                f"the cluster has:\n{there}\n    -> start one, and give the same command again"
            )
        elif not self.size:
            self._tell(f"no node is left that has what a trial asks for: {asked}; waiting for one", "gone")


def _line(error: Exception) -> str:
    """Return the telling line of what Ray says of an actor that has ended."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("The actor is dead because", "The actor died because", "ModuleNotFoundError"))]
    return (telling or lines or [type(error).__name__])[-1].partition(" Worker exit type")[0][:300]


def _could_not_be_made(error: Exception) -> bool:
    """Return whether an actor failed in its constructor, or the environment that it asks for cannot be made."""
    from ray.exceptions import ActorUnschedulableError, RayActorError, RuntimeEnvSetupError

    failed = isinstance(error, RayActorError) and error.actor_init_failed
    return failed or isinstance(error, (ActorUnschedulableError, RuntimeEnvSetupError)) or "RuntimeEnvSetupError" in str(error)


def _why_it_did_not_start(error: Exception) -> str:
    """Return a message for a worker that can start on no node like this one."""
    text = str(error)
    if "ModuleNotFoundError" in text or "ImportError" in text:
        lines = [line.strip() for line in text.splitlines() if "ModuleNotFoundError" in line or "ImportError" in line]
        fix = "install this package on the nodes, or let Ray bring it: hydra.launcher.runtime_env='{py_modules: [...]}' or '{pip: [...]}'"
        return f"a node of the Ray cluster cannot start a worker: {lines[-1]}\n    -> {fix}"
    if "runtime_env" in text or "RuntimeEnv" in text:
        return f"a worker's environment cannot be made: {first_line(error)[:400]}\n    -> look at hydra.launcher.runtime_env"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"a node of the Ray cluster cannot start a worker: {lines[-1][:400]}\n    -> look into /tmp/ray/session_latest/logs on the nodes"
