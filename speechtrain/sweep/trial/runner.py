"""One job in this process: composed, run as Hydra runs it, and its end put into plain words."""

from __future__ import annotations

import logging
import os
import re
import traceback
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, configure_log, env_override, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from speechtrain.errors import RunError, UserError
from speechtrain.sweep.space.compose import Composer
from speechtrain.sweep.trial.outcome import Job, Outcome


@dataclass
class Program:
    """What every job of a sweep shares; can be pickled with cloudpickle."""

    hydra_context: HydraContext
    config: DictConfig
    task_function: TaskFunction


class Runner:
    """Runs jobs in this process, one after the other, as `hydra.core.utils.run_job` does."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._composer = Composer(program.hydra_context.config_loader, program.config)

    def run(self, job: Job) -> JobReturn:
        """Compose a job and run it.

        Hydra's own function copies a config eight times and writes three files with a slow writer; what is done here leaves the same
        files, the same `HydraConfig` and the same return value.
        """
        setup_globals()
        hydra_config = HydraConfig.instance()
        before, old_cwd = hydra_config.cfg, Path.cwd()
        cfg = self._composer.compose(job.overrides)
        try:
            return self._call(cfg, self._settle(cfg, job), job)
        finally:
            hydra_config.cfg = before
            if cfg.hydra.job.chdir:
                os.chdir(old_cwd)

    def _settle(self, cfg: DictConfig, job: Job) -> Path:
        """Number, folder and environment of a job, in its config; returns the folder."""
        with read_write(cfg.hydra), open_dict(cfg.hydra):
            cfg.hydra.job.id = cfg.hydra.job.num = job.number
            for name, value in job.env.items():
                cfg.hydra.job.env_set[name] = value
        hydra_config = HydraConfig.instance()
        hydra_config.set_config(cfg)  # the folder may be told by `hydra:job.num` and the like
        folder = Path(str(cfg.hydra.sweep.dir)) / str(cfg.hydra.sweep.subdir)
        holders: list[Any] = [cfg.hydra, hydra_config.get()]
        for holder in holders:
            with read_write(holder), open_dict(holder):
                holder.runtime.output_dir = str(folder.absolute())
        return folder

    def _call(self, cfg: DictConfig, folder: Path, job: Job) -> JobReturn:
        """Write the job's config down, and call the task function."""
        returned = JobReturn()
        task = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
        returned.cfg, returned.hydra_cfg = task, HydraConfig.instance().cfg  # type: ignore[assignment]
        returned.overrides = list(cfg.hydra.overrides.task)
        folder.mkdir(parents=True, exist_ok=True)
        if cfg.hydra.output_subdir is not None:
            _write_configs(cfg, task, folder / cfg.hydra.output_subdir)
        if cfg.hydra.job.chdir:
            os.chdir(folder)
        returned.working_dir = str(Path.cwd())
        configure_log(cfg.hydra.job_logging, cfg.hydra.verbose)
        callbacks = self.program.hydra_context.callbacks
        env = {str(name): str(value) for name, value in cfg.hydra.job.env_set.items()}
        with env_override({**env, **job.env}):
            callbacks.on_job_start(config=cfg, task_function=self.program.task_function)
            try:
                returned.return_value = self.program.task_function(task)
                returned.status = JobStatus.COMPLETED
            except Exception as error:  # the outcome of the job
                returned.return_value = error
                returned.status = JobStatus.FAILED
        returned.task_name = JobRuntime.instance().get("name")
        for handler in logging.getLogger().handlers:
            handler.flush()
        callbacks.on_job_end(config=cfg, job_return=returned)
        return returned


class _Dumper(yaml.CSafeDumper if hasattr(yaml, "CSafeDumper") else yaml.SafeDumper):  # type: ignore[misc]
    """Writes YAML that OmegaConf reads back as it was: texts that look like numbers stay texts."""


def _text(dumper: Any, value: str) -> Any:
    style = "'" if _NUMBER.fullmatch(value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_NUMBER = re.compile(r"[-+]?[\d_.]*\d[\d_.]*(?:[eE][-+]?\d+)?|[-+]?\.?(?:inf|nan)", re.IGNORECASE)
_Dumper.add_representer(str, _text)


def _write_configs(cfg: DictConfig, task: DictConfig, folder: Path) -> None:
    """`config.yaml`, `hydra.yaml`, `overrides.yaml`, as Hydra leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "config.yaml": OmegaConf.to_container(task, enum_to_str=True),
        "hydra.yaml": {"hydra": OmegaConf.to_container(cfg.hydra, enum_to_str=True)},
        "overrides.yaml": OmegaConf.to_container(cfg.hydra.overrides.task),
    }
    for name, content in contents.items():
        text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False)
        (folder / name).write_text(text, encoding="utf-8")


def run_to_outcome(runner: Runner, job: Job, *, claimed: bool = False) -> tuple[Outcome, JobReturn | None]:
    """Run a job and record its end in its study; whatever it raises, except an interruption, is its outcome.

    Args:
        runner: of the program.
        job: to run.
        claimed: whether this very process has just taken the trial.

    Raises:
        KeyboardInterrupt: after that was recorded.
    """
    from speechtrain.sweep.trial.context import attach, time_limit

    trial = attach(job)
    if trial is not None and not claimed and not trial.claim():
        return Outcome(job.number, "failed", reason="was given up before it began"), None
    returned = None
    try:
        with trial.beating() if trial is not None else nullcontext(), time_limit(trial.context.timeout if trial is not None else None):
            returned = runner.run(job)
        outcome = outcome_of(job.number, returned)
    except KeyboardInterrupt:
        if trial is not None:
            trial.settle(Outcome(job.number, "interrupted", reason="interrupted"))
        raise
    except BaseException as error:  # also SystemExit: the sweep goes on
        outcome = outcome_of_error(job.number, error)
    if trial is not None:
        trial.settle(outcome)
        outcome = replace(outcome, recorded=True)
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
