"""Called by the plugins of `hydra_plugins`: reads their options and starts a sweep, or a batch of jobs for another sweeper."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException, ValidationError

from speechtrain.config.node_checks import find_node_problems
from speechtrain.config.schemas.node import Target
from speechtrain.config.schemas.sweeps import REPLACED, PoolOptions, RayOptions, SshOptions, SweeperOptions
from speechtrain.errors import ConfigError, Problem, RunError, UserError, did_you_mean, first_line
from speechtrain.sweep.sweeper import Sweep
from speechtrain.sweep.trial.outcome import Outcome, SweepJob
from speechtrain.sweep.trial.runner import Program

if TYPE_CHECKING:
    from speechtrain.sweep.workers.pool import Pool
    from speechtrain.sweep.workers.ray_actors import RayActors

log = logging.getLogger(__name__)

T = TypeVar("T", SweeperOptions, PoolOptions, RayOptions, SshOptions)

_OFFICIAL = "hydra-optuna-sweeper"
_LAUNCHERS: dict[str, type[Target]] = {"PoolLauncher": PoolOptions, "RayLauncher": RayOptions}
"""The schemas of the launchers that other programs have, by class."""


def start_sweep(arguments: Sequence[str], hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> float | None:
    """Run the sweep that `hydra.sweeper` describes and return the best objective."""
    _mention_official()
    try:
        _give_types(config)
        options = _read_options(config.hydra.sweeper, SweeperOptions)
        return Sweep(options, Program(hydra_context, config, task_function)).run(arguments)
    except (UserError, RunError) as error:
        if config.hydra.sweeper.check is not None:
            raise
        raise CompactHydraException(str(error)) from error  # another program, in which Hydra prints this without a stack trace


def pool_options(config: DictConfig) -> PoolOptions:
    """Return the options of the pool in `hydra.launcher`."""
    return _read_options(config.hydra.launcher, PoolOptions)


def ray_options(config: DictConfig) -> RayOptions:
    """Return the options of Ray in `hydra.launcher`."""
    return _read_options(config.hydra.launcher, RayOptions)


def launch_in_pool(
    job_overrides: Sequence[Sequence[str]], first: int, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
) -> list[JobReturn]:
    """Run a batch of jobs in a pool that lives as long as the batch; a worker whose job has ended gets the next one.

    Args:
        job_overrides: the command line of each job.
        first: number of the first job.
        hydra_context: Hydra's context of the sweep.
        task_function: the program.
        config: config of the sweep.
    """
    from speechtrain.sweep.workers.messages import Setup
    from speechtrain.sweep.workers.pool import Pool

    options = pool_options(config)
    size = min(options.n_workers or os.cpu_count() or 1, len(job_overrides))
    setup = Setup.of_this_process(Program(hydra_context, config, task_function))
    return _launch(Pool(setup, size, Path(str(config.hydra.sweep.dir)), options, wants_returns=True), job_overrides, first)


def launch_on_ray(
    job_overrides: Sequence[Sequence[str]], first: int, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
) -> list[JobReturn]:
    """Run a batch of jobs on a Ray cluster, with actors that live as long as the batch; arguments as of `launch_in_pool`.

    Raises:
        CompactHydraException: the cluster cannot be used as it is described; Hydra prints this without a stack trace.
    """
    from speechtrain.sweep.workers.ray_actors import RayActors

    try:
        _give_types(config)
        if problems := list(find_node_problems(config.hydra.launcher, "hydra.launcher")):
            raise ConfigError(problems)
        options = ray_options(config)
        size = min(options.n_workers or len(job_overrides), len(job_overrides))
        folder = Path(str(config.hydra.sweep.dir))
        actors = RayActors(Program(hydra_context, config, task_function), size, folder, options, wants_returns=True)
        return _launch(actors, job_overrides, first)
    except (UserError, RunError) as error:
        raise CompactHydraException(str(error)) from error


def _launch(pool: Pool | RayActors, job_overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
    """Run a batch of jobs, and close what ran them."""
    jobs = [SweepJob(first + index, list(overrides), {}) for index, overrides in enumerate(job_overrides)]
    waiting = list(jobs)
    ended: dict[int, JobReturn] = {}
    try:
        while len(ended) < len(jobs):
            pool.expect(len(jobs) - len(ended))
            while waiting and pool.busy < pool.size:
                pool.submit(waiting.pop(0))
            for outcome in pool.wait(1.0):
                returned = pool.returned.pop(outcome.number, None)
                ended[outcome.number] = returned or _returned(jobs[outcome.number - first], outcome)
    finally:
        pool.close()
    return [ended[job.number] for job in jobs]


def _returned(job: SweepJob, outcome: Outcome) -> JobReturn:
    """Return what Hydra expects of a job that could not send its own return value."""
    done = outcome.ending == "done"
    returned = JobReturn(overrides=job.overrides, status=JobStatus.COMPLETED if done else JobStatus.FAILED)
    returned.return_value = outcome.value if done else RunError(outcome.reason)
    return returned


def check_remote(config: DictConfig) -> None:
    """Check that the machine of `hydra.launcher` can be reached.

    Raises:
        UserError: it cannot.
    """
    from speechtrain.sweep.workers.ssh import Remote

    Remote(_read_options(config.hydra.launcher, SshOptions)).call("true")


def launch_remote(job_overrides: Sequence[Sequence[str]], first: int, config: DictConfig) -> list[JobReturn]:
    """Run jobs on the machine of `hydra.launcher`, one after another; the sweeper asks for several at a time from threads of its own."""
    from speechtrain.sweep.workers.ssh import RemoteRuns

    runs = RemoteRuns(_read_options(config.hydra.launcher, SshOptions), config)
    return [runs.run(overrides, first + index) for index, overrides in enumerate(job_overrides)]


def _read_options(node: DictConfig, schema: type[T]) -> T:
    """Return the values of a node as an object of its schema, with interpolations resolved."""
    options = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), node))
    assert isinstance(options, schema)
    return options


def _give_types(config: DictConfig) -> None:
    """Give the options of sweeper and launcher the types of their schemas; those of other programs are composed without.

    Raises:
        ConfigError: there is no such key, or it takes no such value.
    """
    launcher = str(config.hydra.launcher.get("_target_")).rpartition(".")[2]
    schemas: dict[str, type[Target]] = {"sweeper": SweeperOptions, "launcher": _LAUNCHERS.get(launcher, Target)}
    for key, schema in schemas.items():
        if schema is Target or OmegaConf.get_type(config.hydra[key]) is schema:
            continue
        if key == "sweeper" and not str(config.hydra[key].get("_target_")).endswith(".OptunaSweeper"):
            continue  # another sweeper, which uses our launcher
        try:
            typed = OmegaConf.merge(OmegaConf.structured(schema), config.hydra[key])
        except OmegaConfBaseException as error:
            raise ConfigError([_untyped(f"hydra.{key}", schema, config.hydra[key], error)]) from None
        with read_write(config), open_dict(config):
            config.hydra[key] = typed


def _untyped(node: str, schema: type[Target], given: DictConfig, error: OmegaConfBaseException) -> Problem:
    """Return what is wrong with a node that its schema does not take."""
    from speechtrain.config.explain import expected_type

    names: list[str] = [field.name for field in dataclasses.fields(schema)]
    typed = OmegaConf.structured(schema)
    for name in names:  # the error does not say which key it was that has no keys of its own
        has_keys = dataclasses.is_dataclass(OmegaConf.get_type(typed, name))
        if has_keys and given.get(name) is not None and not OmegaConf.is_dict(given[name]):
            keys = ", ".join(str(each) for each in typed[name])
            return Problem(f"{node}.{name}", f"has keys of its own, received {given[name]!r}", f"there is: {keys}")
    key = str(error.full_key or error.key)
    first, _, rest = key.partition(".")
    if rest and first in names and isinstance(typed._get_node(first), DictConfig):
        names, first = [str(each) for each in typed[first]], rest
    if first.partition("[")[0] not in names:
        return Problem(f"{node}.{key}", "there is no such key", REPLACED.get(key) or did_you_mean(first, names))
    expected = expected_type(error) if isinstance(error, ValidationError) else None
    if expected is None:
        return Problem(f"{node}.{key}", first_line(error), "")
    return Problem(f"{node}.{key}", f"must be {expected}, received {OmegaConf.select(given, key)!r}", "")


def _mention_official() -> None:
    try:
        official = version(_OFFICIAL)
    except PackageNotFoundError:
        return
    log.warning(
        "%s %s is installed as well; hydra/sweeper=optuna means speechtrain's own sweeper here, which reads the same keys. The other one "
        "needs other versions of Hydra and Optuna: pip uninstall %s avoids confusion",
        _OFFICIAL,
        official,
        _OFFICIAL,
    )
