"""Results of a study: the best trial as an experiment file, and short descriptions of trials."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import DictConfig, OmegaConf

from speechtrain.errors import ConfigError, Problem

if TYPE_CHECKING:
    pass


RESULTS = "optimization_results.yaml"
"""In a sweep's folder, under the name that the official sweeper uses."""


_NOT_KEPT = ("output_dir", "resume", "hydra", "sweep", "experiment")


def experiment_yaml(cfg: DictConfig) -> str:
    """A composed config as the body of an experiment file: the options of its groups, then every value."""
    choices = OmegaConf.to_container(cfg.hydra.runtime.choices)
    assert isinstance(choices, dict)
    groups = {
        str(group): option
        for group, option in choices.items()
        if option is not None and not str(group).startswith("hydra") and str(group) not in _NOT_KEPT
    }
    body = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(body, dict)
    values = {key: value for key, value in body.items() if key not in _NOT_KEPT}
    defaults = [{f"override /{group}": option} for group, option in groups.items()]
    return yaml.safe_dump({"defaults": defaults}, sort_keys=False) + "\n" + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def read_best(name: str) -> list[str]:
    """The overrides of the best trial of a sweep's folder, or of the last sweep.

    Raises:
        ConfigError: there is none.
    """
    path = Path(name)
    found = sorted(Path("multirun").glob(f"*/{RESULTS}"), key=lambda file: file.stat().st_mtime) if name == "last" else [path / RESULTS]
    try:
        content = yaml.safe_load(found[-1].read_text(encoding="utf-8"))
        return [str(item) for item in content["best_overrides"]]
    except (OSError, IndexError, KeyError, TypeError, yaml.YAMLError):
        where = found[-1] if found else Path("multirun").absolute()
        fix = "give the folder of a sweep that has ended: hydra.sweeper.repeat_best_of=multirun/NAME"
        raise ConfigError([Problem("hydra.sweeper.repeat_best_of", f"no results of a sweep in {where}", fix)]) from None


def short(params: Mapping[str, Any]) -> str:
    """Parameters in a line, by the last part of their names where that is clear."""
    lasts = [name.partition(" ")[0].rpartition(".")[2] for name in params]
    parts = []
    for (name, value), last in zip(params.items(), lasts, strict=True):
        shown = f"{value:.4g}" if isinstance(value, float) else "null" if value is None else str(value)
        parts.append(f"{last if lasts.count(last) == 1 else name}={shown}")
    return " ".join(parts)
