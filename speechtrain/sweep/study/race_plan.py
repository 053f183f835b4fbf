"""How a race between the best configurations of a study is run, and what no race can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from speechtrain.config.schemas.sweeps import Finalists
from speechtrain.config.targets import Direction
from speechtrain.errors import ConfigError, Problem
from speechtrain.sweep.space.space import Space

FINALIST = "speechtrain:finalist"
"""System attribute of a trial that trains a finalist once more: the number of the finalist's own trial, and the seed and its key."""

RACE = "speechtrain:race"
"""User attribute of a study: what its race has come to, for those who show it."""

FIRST_LOOK = 3
"""Seeds after which finalists are compared for the first time: two pairs could tell nothing apart."""
_KEY = "hydra.sweeper.finalists"


@dataclass(frozen=True)
class RacePlan:
    """How a race is run.

    Attributes:
        n: number of finalists.
        max_seeds: seeds that each is trained with at most, besides those of the search.
        significance: probability that one of several equally good finalists is said to be better than all others, at most.
        direction: direction of the objective.
        seed_key: key of the seed in the config.
        first_seed: the first of the further seeds.
    """

    n: int
    max_seeds: int
    significance: float
    direction: Direction
    seed_key: str
    first_seed: int

    def share_of_look(self, seeds: int) -> float:
        """Return the part of the significance that the comparison after so many seeds may use; the parts of all add up to it."""
        looks = self.max_seeds - min(FIRST_LOOK, self.max_seeds) + 1
        look = seeds - min(FIRST_LOOK, self.max_seeds) + 1
        return self.significance * (2 * look - 1) / looks**2


def plan_race(
    options: Finalists, *, seeds_per_trial: int, directions: Sequence[Direction], space: Space, cfg: DictConfig
) -> RacePlan | None:
    """Return how the race of `hydra.sweeper.finalists` is run; None where there is none.

    Args:
        options: `hydra.sweeper.finalists`.
        seeds_per_trial: seeds of each trial of the search.
        directions: direction of each objective.
        space: what is searched.
        cfg: the config with the values that all jobs share.

    Raises:
        ConfigError: there are several objectives, or no seed that the race could choose.
    """
    if options.n is None:
        return None
    if len(directions) > 1:
        message = f"a race has one winner, and there are {len(directions)} objectives"
        raise ConfigError([Problem(f"{_KEY}.n", message, "leave it out, or give one objective")])
    key = options.seed_key
    if any(parameter.path == key for parameter in space.all_parameters()):
        raise ConfigError([Problem(f"{_KEY}.seed_key", f"{key} is swept, and the race chooses it", f"take {key} out of the sweep")])
    seed = OmegaConf.select(cfg, key, default=None) if key else None
    if seed is None or key.startswith("hydra."):
        message = f"there is no key {key!r} with a value in the config of a job"
        raise ConfigError([Problem(f"{_KEY}.seed_key", message, f"give the key of the seed: {_KEY}.seed_key=KEY")])
    if not isinstance(seed, int) or isinstance(seed, bool):
        message = f"{key} has to be a whole number in the config, received {seed!r}"
        raise ConfigError([Problem(f"{_KEY}.seed_key", message, f"give the key of the seed: {_KEY}.seed_key=KEY")])
    return RacePlan(options.n, options.max_seeds, options.significance, directions[0], key, seed + seeds_per_trial)
