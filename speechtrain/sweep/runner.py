"""One job in this process: composed, run as Hydra runs it, and its end put into plain words."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from speechtrain.errors import RunError, UserError
from speechtrain.sweep.text import override_text

Ending = Literal["done", "failed", "died", "timeout", "memory", "interrupted"]
ENV_KEY = "hydra.job.env_set"


@dataclass
class Program:
    """What every job of a sweep shares; can be pickled with cloudpickle."""

    hydra_context: HydraContext
    config: DictConfig
    task_function: TaskFunction


@dataclass(frozen=True)
class Job:
    """One run of the program.

    Attributes:
        number: of the job, also the name of its folder; a trial's number in a sweep.
        overrides: its command line.
        env: environment variables set while it runs.
    """

    number: int
    overrides: Sequence[str]
    env: dict[str, str]

    def with_env_overrides(self) -> list[str]:
        """The command line for a launcher of Hydra's, which knows no other way to pass variables on."""
        return [*self.overrides, *(f"++{ENV_KEY}.{name}={override_text(value)}" for name, value in self.env.items())]


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        value: what it returned.
        reason: why it failed, in a line; empty if it did not.
        trace: the stack trace, for the log.
    """

    number: int
    ending: Ending
    value: Any = None
    reason: str = ""
    trace: str = ""
    final: bool = False


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
    """Run a job; whatever it raises, except an interruption, is its outcome."""
    try:
        returned = run(program, job)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also SystemExit: the sweep goes on
        return outcome_of_error(job.number, error), None
    return outcome_of(job.number, returned), returned


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
