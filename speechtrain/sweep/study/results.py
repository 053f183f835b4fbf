"""Files of a finished sweep: the best trial as an experiment that can be run, and how an earlier best trial is found again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import DictConfig, OmegaConf

from speechtrain.addresses import keep
from speechtrain.errors import ConfigError, Problem

if TYPE_CHECKING:  # what a mistake on the command line does not wait for
    from optuna.trial import FrozenTrial

RESULTS = "optimization_results.yaml"
"""File in a sweep's folder with the best trial; the name is the official sweeper's."""

_LEFT_OUT = ("output_dir", "resume", "hydra", "sweep", "experiment")


def experiment_yaml(cfg: DictConfig) -> str:
    """Return a composed config as the body of an experiment file: the options of its groups, then every value."""
    choices = OmegaConf.to_container(cfg.hydra.runtime.choices)
    assert isinstance(choices, dict)
    groups = {
        str(group): option
        for group, option in choices.items()
        if option is not None and not str(group).startswith("hydra") and str(group) not in _LEFT_OUT
    }
    body = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(body, dict)
    values = keep({key: value for key, value in body.items() if key not in _LEFT_OUT})
    defaults = [{f"override /{group}": option} for group, option in groups.items()]
    return yaml.safe_dump({"defaults": defaults}, sort_keys=False) + "\n" + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def read_best(name: str) -> list[str]:
    """Return the overrides of the best trial of an earlier sweep.

    Args:
        name: the sweep's folder, or `last` for the newest one under `multirun/`.

    Raises:
        ConfigError: no results are stored there.
    """
    if name == "last":
        files = sorted(Path("multirun").glob(f"*/{RESULTS}"), key=lambda file: file.stat().st_mtime)
    else:
        files = [Path(name) / RESULTS]
    try:
        content = yaml.safe_load(files[-1].read_text(encoding="utf-8"))
        return [str(item) for item in content["best_overrides"]]
    except (OSError, IndexError, KeyError, TypeError, yaml.YAMLError):
        where = files[-1] if files else Path("multirun").absolute()
        fix = "give the folder of a sweep that has ended: hydra.sweeper.repeat_best_of=multirun/NAME"
        raise ConfigError([Problem("hydra.sweeper.repeat_best_of", f"no results of a sweep in {where}", fix)]) from None


def all_equal(trials: Sequence[FrozenTrial]) -> bool:
    """Return whether several trials are complete and all have the same values, so that none is the best and no parameter matters."""
    values = [tuple(trial.values) for trial in trials if trial.state.name == "COMPLETE"]
    return len(values) > 1 and len(set(values)) == 1


def short_text(params: Mapping[str, Any]) -> str:
    """Return parameters in one line, each by the last part of its name where no other ends in the same."""
    lasts = [name.partition(" ")[0].rpartition(".")[2] for name in params]
    parts = []
    for (name, value), last in zip(params.items(), lasts, strict=True):
        text = f"{value:.4g}" if isinstance(value, float) else "null" if value is None else str(value)
        parts.append(f"{last if lasts.count(last) == 1 else name}={text}")
    return " ".join(parts)
