"""One job with a composed config, which is trained alone or as a trial of a sweep."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import configure_log
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from speechtrain.addresses import guard_outputs, keep
from speechtrain.app.arguments import arguments_of
from speechtrain.app.launch import follow_launch, lead
from speechtrain.app.resume import STORED, sign
from speechtrain.backends.callbacks import Callback
from speechtrain.config.components import drop_unaccepted_defaults
from speechtrain.config.compose import check_training, drop_typed_choices
from speechtrain.config.overrides import override_text, unresolved
from speechtrain.config.schemas.commands import ExportConfig
from speechtrain.console import console, errors
from speechtrain.errors import RunError, UserError
from speechtrain.files import launch_folder, write_text
from speechtrain.processes import fresh
from speechtrain.processes.launch_environment import launch_of, launch_of_trial
from speechtrain.sweep.trial.hydra_job import write_configs
from speechtrain.sweep.trial.outcome import VARIABLE
from speechtrain.tracking.run_folder import RUN_FILE, read_run_file
from speechtrain.train import train
from speechtrain.training.distributed import check_launch

if TYPE_CHECKING:
    from speechtrain.training.rerun import Rerun
    from speechtrain.training.result import Result

T = TypeVar("T")

log = logging.getLogger("speechtrain")


def run_job(cfg: DictConfig) -> Any:
    """Check the config, train, and return the value of the objective.

    Raises:
        UserError, RunError: in a sweep; a run alone prints them and ends the process with their exit code.
    """
    guard_outputs()  # for jobs that a launcher of Hydra's starts
    launch = launch_of_trial(os.environ) if HydraConfig.get().mode == RunMode.MULTIRUN else None
    if launch is None:
        return _run_job(cfg)
    overrides = [str(item) for item in HydraConfig.get().overrides.task]
    if launch.rank > 0:
        follow_launch(launch, overrides, cfg)
        return None
    with lead(launch, overrides) as leading:
        (devices,) = (int(item.partition("=")[2]) for item in leading if item.startswith("trainer.devices="))
        cfg.trainer.devices = devices
        check_launch(cfg, launch)
        return _run_job(cfg)


def _run_job(cfg: DictConfig) -> Any:
    hydra_cfg = HydraConfig.get()
    if hydra_cfg.output_subdir is not None:
        _mask_stored(Path(hydra_cfg.runtime.output_dir) / hydra_cfg.output_subdir)
        sign(Path(hydra_cfg.runtime.output_dir))
    overrides = unresolved(hydra_cfg.overrides.task)
    for path in drop_unaccepted_defaults(cfg, overrides):
        log.info("%s is left out: %s does not take it", path, cfg[path.split(".")[0]]["_target_"])
    drop_typed_choices(cfg, overrides)
    rerun = None
    if cfg.rerun is not None:
        from speechtrain.training.rerun import Rerun

        rerun = _or_exit(lambda: Rerun(cfg, overrides))
        typed, cfg = cfg, rerun.cfg
    if needs_own_process(cfg):
        return fresh.call(_run_with_hydra, Singleton.get_state(), cfg if rerun is None else typed)
    if os.environ.get(VARIABLE):
        from speechtrain.sweep.trial.context import TrialContext
        from speechtrain.sweep.trial.job import run_trial

        return run_trial(TrialContext.from_text(os.environ[VARIABLE]), cfg, overrides)
    return _or_exit(lambda: _train(cfg, overrides, rerun))


def _mask_stored(folder: Path) -> None:
    """Mask the secrets of the config that Hydra has stored in a folder; `resume=` finds them where they are kept."""
    for file in folder.glob("*.yaml"):
        with contextlib.suppress(OSError, yaml.YAMLError, OmegaConfBaseException):
            stored = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
            if keep(stored) != stored:
                write_text(file, OmegaConf.to_yaml(OmegaConf.create(keep(stored))))


def _run_with_hydra(state: Any, cfg: DictConfig) -> Any:
    """Run a job in a process that did not compose its config, with Hydra's state and logging as in the one that did."""
    Singleton.set_state(state)
    configure_log(HydraConfig.get().job_logging, HydraConfig.get().verbose)  # type: ignore[arg-type]
    return run_job(cfg)


def _train(cfg: DictConfig, overrides: list[str], rerun: Rerun | None) -> float | None:
    check_training(cfg)
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        check_launch(cfg, launch_of(os.environ))
    callbacks = [_StoreOverrides(cfg)] if cfg.resume is not None and HydraConfig.get().output_subdir is None else []
    if rerun is None:
        result = train(cfg, overrides=overrides, callbacks=callbacks)
        _export(cfg, result)
        return result.objective
    rerun.print_differences()
    result = train(cfg, overrides=overrides, tags=rerun.tags, callbacks=callbacks)
    rerun.print_outcome(result)
    return result.objective


class _StoreOverrides(Callback):
    """Stores the overrides of a run that is resumed once it trains: one that was refused can then be resumed as it was."""

    def __init__(self, cfg: DictConfig) -> None:
        self._cfg = cfg

    def on_train_start(self, total_epochs: int, first_epoch: int) -> None:  # noqa: ARG002
        """Write what Hydra would have written before the config was checked."""
        hydra = HydraConfig.get()
        write_configs(hydra, self._cfg, Path(hydra.runtime.output_dir) / STORED)
        sign(Path(hydra.runtime.output_dir))


def _export(cfg: DictConfig, result: Result) -> None:
    """Export what `export.on_train_end` names; the run is finished and kept, whatever fails here."""
    kinds = list(cfg.export.on_train_end)
    if not kinds or result.checkpoint is None:
        return
    from speechtrain.inference.export import write_exports

    words = [f"from={override_text(str(result.checkpoint))}", f"format=[{','.join(kinds)}]", f"trust={str(cfg.trust).lower()}"]
    console.print()
    if write_exports(*arguments_of(ExportConfig, words)):
        raise RunError("the run is finished and kept; what could not be exported is named above")


def _or_exit(call: Callable[[], T]) -> T:
    """Return what a call returns; outside of a sweep, print a user's mistake or a failed run, and end the process with its exit code."""
    try:
        return call()
    except (UserError, RunError) as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN or os.environ.get("SPEECHTRAIN_TRACES"):
            raise
        _remove_unused(Path(HydraConfig.get().runtime.output_dir))
        errors.print(str(error), style="red", markup=False)
        sys.exit(error.exit_code)


def _remove_unused(folder: Path) -> None:
    """Remove what this process wrote for a run that was refused before any tracker knew of it, and the folders that are empty then."""
    run = read_run_file(folder)
    if HydraConfig.get().output_subdir is None or any(run.get("run_ids", {}).values()):  # resumed, or tracked
        return
    begun_here = run.get("started", 0) >= psutil.Process().create_time() * 1e9  # elsewhere config.yaml may be the user's own
    written = {STORED, f"{log.name}.log", *(("config.yaml", RUN_FILE) if begun_here else ())}
    with contextlib.suppress(OSError):
        others = {path.name for path in folder.iterdir()} - written
        if others and RUN_FILE not in others:  # a folder of the user's own, in which no run was begun
            shutil.rmtree(folder / STORED)
        if others:
            return
        shutil.rmtree(folder)
        for parent in folder.parents:
            if not parent.is_relative_to(launch_folder() / "outputs"):
                break
            if [path.name for path in parent.iterdir()] == [".gitignore"]:
                (parent / ".gitignore").unlink()
            parent.rmdir()


def needs_own_process(cfg: DictConfig) -> bool:
    """Return whether this process has imported Keras with another engine than the config asks for; Keras keeps its first one."""
    keras = sys.modules.get("keras")
    return keras is not None and cfg.backend.get("name") == "keras" and keras.config.backend() != cfg.backend.get("engine")
