"""What a sweep cannot do, or does in vain, whatever is in its space: told before the first trial. `plan.py` asks.

Optuna is imported only where nothing else is wrong.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from speechtrain.config.schemas.sweeps import SweeperOptions
from speechtrain.config.targets import Direction
from speechtrain.errors import ConfigError, Problem, counted
from speechtrain.sweep.space.precheck import SweptOption

log = logging.getLogger(__name__)


def refuse_own_sweeps(options: Sequence[SweptOption], base: DictConfig) -> None:
    """Refuse options of a swept group that say themselves what is swept or where: one sweep has one of each.

    Raises:
        ConfigError: with every option that does.
    """
    problems = []
    for option in options:
        nodes = [f"hydra.{node}" for node in ("sweeper", "launcher") if _plain(option.cfg.hydra[node]) != _plain(base.hydra[node])]
        if nodes:
            message = f"'{option.name}' sets keys of {' and '.join(nodes)}, which hold for a whole sweep"
            problems.append(Problem(option.group, message, f"give {option.group}={option.name} alone, or take them out of it"))
    if problems:
        raise ConfigError(problems)


def refuse_comparing_stop(options: SweeperOptions, directions: Sequence[Direction]) -> None:
    """Refuse conditions of `stop_when` that compare values where there are several objectives.

    Raises:
        ConfigError: with each of them.
    """
    given = [key for key in ("goal", "no_improvement") if getattr(options.stop_when, key) is not None]
    if len(directions) > 1 and given:
        message = f"needs one objective, and there are {len(directions)}"
        raise ConfigError(Problem(f"hydra.sweeper.stop_when.{key}", message, "give a budget in hours") for key in given)


def refuse_pauses(pruner: Mapping[str, Any] | None) -> None:
    """Refuse a rule that pauses trials where there are several objectives, none of which says alone which trials are the best.

    Raises:
        ConfigError: it is one.
    """
    from speechtrain.sweep.study.promotion import PromotionRule
    from speechtrain.sweep.study.samplers import make_pruner

    if pruner is not None and isinstance(make_pruner(pruner), PromotionRule):
        message = f"{str(pruner['_target_']).rpartition('.')[2]} compares trials by one objective, and hydra.sweeper.objectives has several"
        raise ConfigError([Problem("hydra.sweeper.pruner", message, "choose hydra.sweeper.pruner=none, or one objective")])


def warn_of_idle_pruner(pruner: Mapping[str, Any], reports: Mapping[int, int], direction: Direction, n_trials: int) -> None:
    """Say so if even the longest trials have too few epochs for the pruner to stop one."""
    from speechtrain.sweep.study.samplers import can_prune

    steps = [range(every - 1, epochs, every) for every, epochs in reports.items()]
    if not steps or any(can_prune(pruner, each, direction=direction, n_trials=n_trials) for each in steps):
        return
    settings = ", ".join(f"{key}={value}" for key, value in pruner.items() if key != "_target_")
    longest = max(reports.values())
    what = f"{str(pruner['_target_']).rpartition('.')[2]} ({settings}) waits longer than {counted(longest, 'epoch')}"
    log.warning("no trial can be pruned: %s; change hydra.sweeper.pruner.KEY, or choose hydra.sweeper.pruner=none", what)


def _plain(node: DictConfig) -> Any:
    return OmegaConf.to_container(node, resolve=False)
