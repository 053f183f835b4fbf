"""Parameters that a program adds to its trials itself: `hydra.sweeper.custom_search_space`, a key of the official Optuna plugin."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from speechtrain.errors import ConfigError, Problem
from speechtrain.sweep.space.compose import parsed
from speechtrain.sweep.space.space import Space

if TYPE_CHECKING:  # Optuna is imported once nothing is wrong with a space
    from optuna import Trial


def extension(function: Callable[[DictConfig, Trial], object], cfg: DictConfig, space: Space) -> Callable[[Trial], None]:
    """Return a function that adds a program's own parameters to a trial, which has the values of the space by then.

    Args:
        function: the program's; it calls `trial.suggest_float` and its like, by the names that overrides have (`+w` for a new key).
        cfg: the config that all jobs share.
        space: what is searched besides.

    Raises:
        ConfigError: when called: the function suggests a value for a key that the command line sets.
    """
    fixed = {str(override.get_key_element()): override.get_value_element_as_str() for override in map(parsed, space.fixed)}

    def extend(trial: Trial) -> None:
        for name, value in fixed.items():
            trial.set_user_attr(name, value)  # where such a function finds what is fixed
        function(cfg, trial)
        if overlap := sorted(trial.params.keys() & fixed.keys()):
            message = f"suggests {', '.join(overlap)}, which the command sets"
            raise ConfigError([Problem("hydra.sweeper.custom_search_space", message, "leave out one of both")])

    return extend
