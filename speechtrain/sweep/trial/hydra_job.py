"""Runs one job in this process: a faster version of `hydra.core.utils.run_job`, which knows nothing of trials.

`tests/unit/sweep/test_hydra_job.py` compares both, and names Hydra when the original changes.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import version
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, configure_log, env_override, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from speechtrain.addresses import keep
from speechtrain.config.overrides import unresolved
from speechtrain.files import write_text


def run_hydra_job(
    cfg: DictConfig, task_function: TaskFunction, hydra_context: HydraContext, *, number: int, env: Mapping[str, str]
) -> JobReturn:
    """Run a job as `hydra.core.utils.run_job` does: the same files, the same `HydraConfig` and the same return value.

    Hydra's own function copies the config eight times and writes three files with a slow writer: 12 to 15 ms more CPU time for each job,
    where a whole trial of a trivial program costs 20.

    Args:
        cfg: composed config with Hydra's part, which is changed.
        task_function: the program.
        hydra_context: holds Hydra's callbacks.
        number: number of the job in the sweep.
        env: environment variables to set besides those of `hydra.job.env_set`.

    Raises:
        BaseException: what the program raises if it is not an Exception; an Exception is in what is returned.
    """
    setup_globals()
    hydra_config = HydraConfig.instance()
    config_before, cwd_before = hydra_config.cfg, Path.cwd()
    try:
        return _call(cfg, _prepare(cfg, number, env), task_function, hydra_context)
    finally:
        hydra_config.cfg = config_before
        if _changes_folder(cfg):
            os.chdir(cwd_before)


def _changes_folder(cfg: DictConfig) -> bool:
    """Return whether a job runs in its output folder: where the config does not say, a program without `version_base` does, as in Hydra."""
    chdir = cfg.hydra.job.chdir
    return not version.base_at_least("1.2") if chdir is None else bool(chdir)


def _prepare(cfg: DictConfig, number: int, env: Mapping[str, str]) -> Path:
    """Put number, environment and output folder of a job into its config, and return the folder."""
    with read_write(cfg.hydra), open_dict(cfg.hydra):
        cfg.hydra.job.id = cfg.hydra.job.num = number
        for name, value in env.items():
            cfg.hydra.job.env_set[name] = value
    hydra_config = HydraConfig.instance()
    hydra_config.set_config(cfg)  # the folder may be written with `hydra:job.num` and the like
    folder = Path(str(cfg.hydra.sweep.dir)) / str(cfg.hydra.sweep.subdir)
    nodes: list[Any] = [cfg.hydra, hydra_config.get()]
    for node in nodes:
        with read_write(node), open_dict(node):
            node.runtime.output_dir = str(folder.absolute())
    return folder


def _call(cfg: DictConfig, folder: Path, task_function: TaskFunction, hydra_context: HydraContext) -> JobReturn:
    """Write the files of a job and call the program."""
    returned = JobReturn()
    task = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    returned.cfg, returned.hydra_cfg = task, HydraConfig.instance().cfg  # type: ignore[assignment]
    returned.overrides = unresolved(cfg.hydra.overrides.task)
    folder.mkdir(parents=True, exist_ok=True)
    if cfg.hydra.output_subdir is not None:
        write_configs(cfg.hydra, task, folder / cfg.hydra.output_subdir)
    if _changes_folder(cfg):
        os.chdir(folder)
    returned.working_dir = str(Path.cwd())
    configure_log(cfg.hydra.job_logging, cfg.hydra.verbose)
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


def write_configs(hydra: DictConfig | HydraConf, task: DictConfig, folder: Path) -> None:
    """Write `config.yaml`, `hydra.yaml` and `overrides.yaml` with the contents that Hydra gives them, each whole or not at all.

    Raises:
        DiskError: they cannot be written.
    """
    contents = {
        "config.yaml": OmegaConf.to_container(task, enum_to_str=True),
        "hydra.yaml": {"hydra": OmegaConf.to_container(cast("DictConfig", hydra), enum_to_str=True)},
        "overrides.yaml": unresolved(hydra.overrides.task),
    }
    for name, content in contents.items():
        text = yaml.dump(keep(content), Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False)
        write_text(folder / name, text)
