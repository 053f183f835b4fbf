"""What one job does with its composed config: trained alone, or as a trial of a sweep."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from speechtrain.config.checks import without_foreign_defaults
from speechtrain.config.compose import check
from speechtrain.console import errors
from speechtrain.elsewhere import needs_own_process, run_elsewhere
from speechtrain.errors import RunError, UserError
from speechtrain.sweep.outcome import VARIABLE
from speechtrain.train import train

log = logging.getLogger("speechtrain")


def run_job(cfg: DictConfig) -> Any:
    """Check and train; the objective's value.

    Raises:
        UserError, RunError: in a sweep; a run alone prints them and ends the process with their exit code.
    """
    hydra_cfg = HydraConfig.get()
    overrides = list(hydra_cfg.overrides.task)
    for path in without_foreign_defaults(cfg, overrides):
        log.info("%s is left out: %s does not take it", path, cfg[path.split(".")[0]]["_target_"])
    if needs_own_process(cfg):
        return run_elsewhere(run_job, cfg)
    if os.environ.get(VARIABLE):
        from speechtrain.sweep.job import run_trial
        from speechtrain.sweep.trial import TrialContext

        return run_trial(TrialContext.from_text(os.environ[VARIABLE]), cfg, overrides)
    try:
        check(cfg)
        return train(cfg, overrides=overrides).objective
    except (UserError, RunError) as error:
        if hydra_cfg.mode == RunMode.MULTIRUN or os.environ.get("SPEECHTRAIN_TRACES"):
            raise
        errors.print(str(error), style="red", markup=False)
        sys.exit(error.exit_code)
