"""One job in this process: composed, run as Hydra runs it, and its end put into plain words."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from speechtrain.errors import RunError, UserError
from speechtrain.sweep.outcome import Job, Outcome


@dataclass
class Program:
    """What every job of a sweep shares; can be pickled with cloudpickle."""

    hydra_context: HydraContext
    config: DictConfig
    task_function: TaskFunction


def run(program: Program, job: Job) -> JobReturn:
    """Compose and run a job in this process."""
    setup_globals()
    cfg = program.hydra_context.config_loader.load_sweep_config(program.config, list(job.overrides))
    with open_dict(cfg):
        cfg.hydra.job.id = job.number
        cfg.hydra.job.num = job.number
        cfg.hydra.job.env_set = {**OmegaConf.to_container(cfg.hydra.job.env_set), **job.env}
    return run_job(
        hydra_context=program.hydra_context,
        task_function=program.task_function,
        config=cfg,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )


def run_to_outcome(program: Program, job: Job) -> tuple[Outcome, JobReturn | None]:
    """Run a job and record its end in its study; whatever it raises, except an interruption, is its outcome.

    Raises:
        KeyboardInterrupt: after that was recorded.
    """
    from speechtrain.sweep.trial import attach

    trial = attach(job)
    if trial is not None and not trial.claim():
        return Outcome(job.number, "failed", reason="was given up before it began"), None
    returned = None
    try:
        returned = run(program, job)
        outcome = outcome_of(job.number, returned)
    except KeyboardInterrupt:
        if trial is not None:
            trial.settle(Outcome(job.number, "interrupted", reason="interrupted"))
        raise
    except BaseException as error:  # also SystemExit: the sweep goes on
        outcome = outcome_of_error(job.number, error)
    if trial is not None:
        trial.settle(outcome)
    return outcome, returned


def outcome_of(number: int, returned: JobReturn) -> Outcome:
    """What Hydra returned, in plain words."""
    if returned.status is JobStatus.COMPLETED:
        return Outcome(number, "done", value=returned._return_value)
    return outcome_of_error(number, returned._return_value)


def outcome_of_error(number: int, error: Any) -> Outcome:
    """An exception, in plain words."""
    if not isinstance(error, BaseException):
        return Outcome(number, "failed", reason=f"ended without a result: {error!r}")
    try:
        text = str(error).strip() or "no message"
    except Exception:  # an exception may be unable to say what it is
        text = "no message"
    expected = isinstance(error, (UserError, RunError))
    trace = "" if expected else "".join(traceback.format_exception(error))
    return Outcome(number, "failed", reason=f"{type(error).__name__}: {text}", trace=trace, final=isinstance(error, UserError))
