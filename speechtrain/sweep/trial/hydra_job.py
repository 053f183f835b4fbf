"""Runs one job in this process: a faster version of `hydra.core.utils.run_job`, which knows nothing of trials.

`tests/unit/sweep/test_hydra_job.py` compares both, and names Hydra when the original changes.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import version
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, env_override, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from speechtrain.addresses import keep
from speechtrain.config.internals import copy_config, view_of
from speechtrain.config.overrides import unresolved
from speechtrain.files import write_text
from speechtrain.sweep.space.compose import ComposedJob
from speechtrain.sweep.trial.job_logging import JobLogging


def run_hydra_job(
    job: ComposedJob,
    task_function: TaskFunction,
    hydra_context: HydraContext,
    *,
    number: int,
    env: Mapping[str, str],
    files: ConfigFiles | None = None,
    logs: JobLogging | None = None,
) -> JobReturn:
    """Run a job as `hydra.core.utils.run_job` does: the same files, the same `HydraConfig` and the same return value.

    Hydra's own function copies the config eight times and writes three files with a slow writer, where most of a job's config is that of
    the job before.

    Args:
        job: composed config with Hydra's part, which is changed.
        task_function: the program.
        hydra_context: holds Hydra's callbacks.
        number: number of the job in the sweep.
        env: environment variables to set besides those of `hydra.job.env_set`.
        files: writes the files of all jobs of a program.
        logs: sets up the logging of all jobs of a program.

    Raises:
        BaseException: what the program raises if it is not an Exception; an Exception is in what is returned.
    """
    setup_globals()
    hydra_config = HydraConfig.instance()
    config_before, cwd_before = hydra_config.cfg, Path.cwd()
    try:
        folder = _prepare(job.cfg, number, env)
        return _call(job, folder, task_function, hydra_context, files or ConfigFiles(), logs or JobLogging())
    finally:
        hydra_config.cfg = config_before
        if _changes_folder(job.cfg):
            os.chdir(cwd_before)


def _changes_folder(cfg: DictConfig) -> bool:
    """Return whether a job runs in its output folder: where the config does not say, a program without `version_base` does, as in Hydra."""
    chdir = cfg.hydra.job.chdir
    return not version.base_at_least("1.2") if chdir is None else bool(chdir)


def _prepare(cfg: DictConfig, number: int, env: Mapping[str, str]) -> Path:
    """Put number, environment and output folder of a job into its config, and return the folder."""
    hydra = cfg.hydra
    with read_write(hydra), open_dict(hydra):
        job = hydra.job
        job.id = job.num = number
        if env:
            env_set = job.env_set
            for name, value in env.items():
                env_set[name] = value
        HydraConfig.instance().cfg = view_of(cfg, ["hydra"])  # type: ignore[assignment] # as set_config does, but without copies
        sweep = hydra.sweep
        folder = Path(str(sweep.dir)) / str(sweep.subdir)  # it may be written with `hydra:job.num` and the like
        hydra.runtime.output_dir = str(folder.absolute())
    OmegaConf.set_readonly(hydra, True)
    return folder


def _call(
    job: ComposedJob, folder: Path, task_function: TaskFunction, hydra_context: HydraContext, files: ConfigFiles, logs: JobLogging
) -> JobReturn:
    """Write the files of a job and call the program."""
    returned = JobReturn()
    cfg = job.cfg
    task = copy_config(cfg, [str(key) for key in cfg if key != "hydra"])
    returned.cfg, returned.hydra_cfg = task, HydraConfig.instance().cfg  # type: ignore[assignment]
    returned.overrides = unresolved(cfg.hydra.overrides.task)
    folder.mkdir(parents=True, exist_ok=True)
    if cfg.hydra.output_subdir is not None:
        files.write(job, folder / cfg.hydra.output_subdir)
    if _changes_folder(cfg):
        os.chdir(folder)
    returned.working_dir = str(Path.cwd())
    logs.configure(cfg.hydra, job.shape)
    with env_override({str(name): str(value) for name, value in cfg.hydra.job.env_set.items()}):
        hydra_context.callbacks.on_job_start(config=cfg, task_function=task_function)
        try:
            returned.return_value = task_function(task)
            returned.status = JobStatus.COMPLETED
        except Exception as error:  # it is what the job returns
            returned.return_value = error
            returned.status = JobStatus.FAILED
    returned.task_name = JobRuntime.instance().get("name")
    for handler in logging.getLogger().handlers:
        handler.flush()
    hydra_context.callbacks.on_job_end(config=cfg, job_return=returned)
    return returned


class _Dumper(yaml.CSafeDumper if hasattr(yaml, "CSafeDumper") else yaml.SafeDumper):  # type: ignore[misc]
    """Writes YAML that OmegaConf reads back unchanged: texts that look like numbers stay texts."""


def _represent_text(dumper: Any, value: str) -> Any:
    style = "'" if _NUMBER.fullmatch(value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_NUMBER = re.compile(r"[-+]?[\d_.]*\d[\d_.]*(?:[eE][-+]?\d+)?|[-+]?\.?(?:inf|nan)", re.IGNORECASE)
_Dumper.add_representer(str, _represent_text)


class ConfigFiles:
    """Writes `config.yaml`, `hydra.yaml` and `overrides.yaml` of jobs, and makes the text of what they have in common only once."""

    def __init__(self) -> None:
        self._texts: dict[tuple[str, ...], str] = {}

    def write(self, job: ComposedJob, folder: Path) -> None:
        """Write the files of a job with the contents that Hydra gives them, each whole or not at all.

        Raises:
            DiskError: they cannot be written.
        """
        task = view_of(job.cfg, [str(key) for key in job.cfg if key != "hydra"])
        write_text(folder / "config.yaml", self._text((), job.shape, task, job.changed) or _dump({}))
        hydra = job.cfg.hydra
        write_text(folder / "hydra.yaml", "hydra:\n" + self._text(("hydra",), job.shape, hydra, _OF_ONE_JOB))
        write_text(folder / "overrides.yaml", _dump(unresolved(hydra.overrides.task)))

    def _text(self, parents: tuple[str, ...], shape: tuple[str, ...], cfg: DictConfig, changed: Collection[str]) -> str:
        """Return the text of a config, below the lines with the keys that it stands under, if there are any.

        Args:
            parents: these keys.
            shape: what jobs have in common whose values are the same, but for `changed`.
            cfg: the config.
            changed: the keys at its top whose values are this job's.
        """
        text = ""
        for is_changed, keys in groupby(map(str, cfg), key=lambda key: key in changed):
            section = list(keys)
            if is_changed and parents == ("hydra",):
                for key in section:
                    text += f"  {key}:\n" + self._text((*parents, key), shape, cfg[key], _OF_ONE_JOB[key])
                continue
            name = (*parents, "", *shape, "", *section)
            part = None if is_changed else self._texts.get(name)
            if part is None:
                values: Any = OmegaConf.to_container(view_of(cfg, section), enum_to_str=True)
                for parent in reversed(parents):
                    values = {parent: values}
                part = _dump(values).split("\n", len(parents))[-1]
                if not is_changed:
                    self._texts[name] = part
            text += part
        return text


_OF_ONE_JOB = {"job": ("override_dirname", "id", "num", "env_set"), "overrides": ("task",), "runtime": ("output_dir",)}
"""Keys of Hydra's part of a config below which jobs of one shape differ, and in which keys."""


def _dump(values: Any) -> str:
    """Return values as YAML, without the secrets in them."""
    return str(yaml.dump(keep(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False))


def write_configs(hydra: DictConfig | HydraConf, task: DictConfig, folder: Path) -> None:
    """Write `config.yaml`, `hydra.yaml` and `overrides.yaml` with the contents that Hydra gives them, each whole or not at all.

    Raises:
        DiskError: they cannot be written.
    """
    write_text(folder / "config.yaml", _dump(OmegaConf.to_container(task, enum_to_str=True)))
    write_text(folder / "hydra.yaml", _dump({"hydra": OmegaConf.to_container(cast("DictConfig", hydra), enum_to_str=True)}))
    write_text(folder / "overrides.yaml", _dump(unresolved(hydra.overrides.task)))
