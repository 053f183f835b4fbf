"""Between Hydra's plugins and the sweep: options as plain values, and one batch under the pool."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from speechtrain.errors import RunError
from speechtrain.sweep.plan import Options
from speechtrain.sweep.sweeper import Sweep
from speechtrain.sweep.trial.outcome import Job
from speechtrain.sweep.trial.runner import Program
from speechtrain.sweep.workers.pool import Pool, PoolOptions

log = logging.getLogger(__name__)

_OFFICIAL = "hydra-optuna-sweeper"


def start(
    options: Mapping[str, Any], arguments: Sequence[str], hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
) -> float | None:
    """Run a sweep; returns the best objective."""
    _mention_official()
    sweep = Sweep(Options(**_plain(options)), hydra_context, task_function, config)
    return sweep.run(sweep.prepare(arguments))


def pool_options(options: Mapping[str, Any]) -> PoolOptions:
    """The pool's keys without the number of workers, which a sweeper decides."""
    return PoolOptions(**{key: value for key, value in _plain(options).items() if key != "n_workers"})


def launch_batch(
    options: Mapping[str, Any],
    job_overrides: Sequence[Sequence[str]],
    first: int,
    hydra_context: HydraContext,
    task_function: TaskFunction,
    config: DictConfig,
) -> list[JobReturn]:
    """Run jobs under a pool of its own, refilled as they end."""
    size = int(options.get("n_workers") or os.cpu_count() or 1)
    program = Program(hydra_context, config, task_function)
    pool = Pool(program, min(size, len(job_overrides)), Path(str(config.hydra.sweep.dir)), pool_options(options), wants_returns=True)
    jobs = [Job(first + index, list(overrides), {}) for index, overrides in enumerate(job_overrides)]
    left = list(jobs)
    ended: dict[int, JobReturn] = {}
    try:
        while len(ended) < len(jobs):
            while left and pool.busy < pool.size:
                pool.submit(left.pop(0))
            for outcome in pool.wait(1.0):
                returned = pool.returned.pop(outcome.number, None)
                if returned is None:
                    returned = JobReturn(overrides=jobs[outcome.number - first].overrides)
                    returned.status = JobStatus.COMPLETED if outcome.ending == "done" else JobStatus.FAILED
                    returned.return_value = outcome.value if outcome.ending == "done" else RunError(outcome.reason)
                ended[outcome.number] = returned
    finally:
        pool.close()
    return [ended[job.number] for job in jobs]


def check_remote(options: Mapping[str, Any]) -> None:
    """Whether the machine can be reached.

    Raises:
        UserError: it cannot.
    """
    from speechtrain.sweep.workers.ssh import Remote, RemoteOptions

    Remote(RemoteOptions(**_plain(options))).call("true")


def launch_remote(options: Mapping[str, Any], job_overrides: Sequence[Sequence[str]], first: int, config: DictConfig) -> list[JobReturn]:
    """Run jobs on another machine."""
    from speechtrain.sweep.workers.ssh import launch

    return launch(_plain(options), job_overrides, first, config)


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        str(key): OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value for key, value in options.items()
    }


def _mention_official() -> None:
    try:
        found = version(_OFFICIAL)
    except PackageNotFoundError:
        return
    log.warning(
        "%s %s is installed as well; hydra/sweeper=optuna means speechtrain's own sweeper here, which reads the same keys. The other one "
        "needs other versions of Hydra and Optuna: pip uninstall %s avoids confusion",
        _OFFICIAL,
        found,
        _OFFICIAL,
    )
