"""A race between the best configurations of a study: each is trained with further seeds until one is significantly better than the rest.

What the race has come to, and what it needs next, follows from the values alone, without a storage; `finalists.py` has the trials.

The value by which a configuration became a finalist does not count: it is among the best in part because its seed was a lucky one. All
finalists get the same seeds, so that values are compared in pairs. The finalist of the best mean is compared with each of the others by
Student's t-test for paired values, which is exact for any number of pairs whose differences are normal (Student 1908, "The probable error
of a mean"); tests by ranks could say nothing with fewer than six pairs. Differences that are all the same get the p-value of the sign test.
Several rivals: by Holm (1979, "A simple sequentially rejective multiple test procedure"); that the leader is known by the same values
asks for no comparisons but those with it (Hsu 1984, "Constrained simultaneous confidence intervals for multiple comparisons with the
best"), and for tests of both sides. Several looks at the values: each gets its part of the significance, later ones more (Lan & DeMets
1983, "Discrete sequential boundaries for clinical trials", with the spending function t^2).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf

from speechtrain.config.schemas.sweeps import Finalists
from speechtrain.config.targets import Direction
from speechtrain.errors import ConfigError, Problem, counted
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
    seed = OmegaConf.select(cfg, key, default=None)
    if not isinstance(seed, int) or isinstance(seed, bool):
        message = f"{key} has to be a whole number in the config, received {seed!r}"
        raise ConfigError([Problem(f"{_KEY}.seed_key", message, f"give the key of the seed: {_KEY}.seed_key=KEY")])
    return RacePlan(options.n, options.max_seeds, options.significance, directions[0], key, seed + seeds_per_trial)


@dataclass
class Finalist:
    """One of the best configurations.

    Attributes:
        trial: number of the trial that found it.
        found: value of that trial.
        values: its values by further seeds, counted from 1.
        out: why it has left the race; empty while it has not.
        p: p-value of the comparison with the best; None: there was none.
    """

    trial: int
    found: float
    values: dict[int, float] = field(default_factory=dict)
    out: str = ""
    p: float | None = None

    @property
    def mean(self) -> float:
        """Return the mean over its further seeds; of the value that was found where it has none."""
        return statistics.fmean(self.values.values()) if self.values else self.found

    def half_width(self, significance: float) -> float | None:
        """Return by how much the interval of the mean goes to either side, by Student's distribution; None for fewer than two values."""
        count = len(self.values)
        if count < 2:
            return None
        from scipy.special import stdtrit

        return float(stdtrit(count - 1, 1 - significance / 2)) * statistics.stdev(self.values.values()) / math.sqrt(count)


@dataclass(frozen=True)
class Standing:
    """What a race has come to.

    Attributes:
        plan: how it is run.
        finalists: the finalists, those that are still in it first, each by mean.
        seeds: further seeds with which all that are still in it were trained.
        wanted: what is to be trained next, as (trial, seed counted from 1); empty once the race is decided.
        verdict: how it was decided, in words; empty while it is not.
    """

    plan: RacePlan
    finalists: list[Finalist]
    seeds: int
    wanted: list[tuple[int, int]]
    verdict: str

    @property
    def racing(self) -> list[Finalist]:
        """Return the finalists that have not left the race, the best first."""
        return [each for each in self.finalists if not each.out]

    @property
    def winner(self) -> Finalist | None:
        """Return the finalist of the best mean, once two seeds tell of it; None: there is none, and the search's own best stands."""
        racing = self.racing
        return racing[0] if racing and (self.seeds >= 2 or (self.verdict and racing[0].values)) else None

    def _told(self, finalist: Finalist) -> dict[str, Any]:
        means = {"mean": finalist.mean, "half_width": finalist.half_width(self.plan.significance)}
        return {**asdict(finalist), "values": list(finalist.values.values()), **means}

    def to_dict(self) -> dict[str, Any]:
        """Return what is shown of it as values that JSON can hold."""
        winner = self.winner
        return {
            "n": len(self.finalists),
            "seeds": self.seeds,
            "max_seeds": self.plan.max_seeds,
            "verdict": self.verdict,
            "winner": winner.trial if winner is not None else None,
            "finalists": [self._told(each) for each in self.finalists],
        }


def standing_of(entrants: Sequence[tuple[int, float]], runs: Mapping[tuple[int, int], float | str], plan: RacePlan) -> Standing:
    """Return what a race has come to.

    Args:
        entrants: (number of the trial, value) of each finalist, the best first.
        runs: for (number of the trial, seed counted from 1) the value, or why there will be none; what is not there is to be trained.
        plan: how it is run.
    """
    finalists = [Finalist(trial, value) for trial, value in entrants]
    seeds, verdict = 0, ""
    wanted: list[tuple[int, int]] = []
    while not verdict and not wanted:
        target = max(seeds + 1, min(FIRST_LOOK, plan.max_seeds))
        wanted = _take(finalists, runs, range(seeds + 1, target + 1))
        racing = _by_mean(finalists, plan)
        if not wanted and len(racing) > 1:
            seeds = target
            verdict = _compare(racing, seeds, plan)
        elif len(racing) < 2:
            verdict, wanted = _of_few(finalists, racing), []
        if verdict and racing:
            seeds = len(racing[0].values)
    if wanted:
        seeds = min(_unbroken(each.values) for each in racing)
        for each in racing:  # means are compared over the same seeds
            each.values = {seed: value for seed, value in each.values.items() if seed <= seeds}
    return Standing(plan, [*_by_mean(finalists, plan), *_by_mean(finalists, plan, out=True)], seeds, wanted, verdict)


def _take(finalists: Sequence[Finalist], runs: Mapping[tuple[int, int], float | str], seeds: range) -> list[tuple[int, int]]:
    """Give the finalists that are in the race their values of some seeds, and return those that are missing, the first seeds first."""
    missing = []
    for seed in seeds:
        for each in finalists:
            value = runs.get((each.trial, seed))
            if value is None:
                missing.append((each.trial, seed))
            elif isinstance(value, str):
                each.out = each.out or value
            elif not each.out:
                each.values[seed] = value
    left = {each.trial for each in finalists if each.out}
    return [(trial, seed) for trial, seed in missing if trial not in left]


def _compare(racing: Sequence[Finalist], seeds: int, plan: RacePlan) -> str:
    """Have those leave the race that are significantly worse than the first, and return how it is decided; empty: it is not yet."""
    best, *rivals = racing
    if all(len(set(each.values.values())) == 1 for each in racing):
        return f"{plan.seed_key} changes no value, so that the race tells no more than the search did"
    for rival in rivals:
        rival.p = paired_p(best.values, rival.values)
    by_p = sorted(rivals, key=lambda each: each.p or 0.0)
    for index, rival in enumerate(by_p):
        assert rival.p is not None
        if rival.p > plan.share_of_look(seeds) / (len(by_p) - index):
            break
        rival.out = f"worse than trial {best.trial} after {counted(seeds, 'seed')} (p = {rival.p:.2g})"
    tied = [best.trial, *(rival.trial for rival in rivals if not rival.out)]
    if len(tied) == 1:
        return f"trial {best.trial} is significantly better than the others"
    if seeds < plan.max_seeds:
        return ""
    numbers = ", ".join(map(str, tied[:-1]))
    return f"a tie: trials {numbers} and {tied[-1]} differ by less than their seeds do"


def _of_few(finalists: Sequence[Finalist], racing: Sequence[Finalist]) -> str:
    if len(finalists) < 2:
        return "fewer than two configurations have a result, so that there is nothing to compare"
    if not racing:
        return "none of the finalists could be trained with other seeds"
    return f"trial {racing[0].trial} is the only one left with a result of other seeds"


def _by_mean(finalists: Sequence[Finalist], plan: RacePlan, *, out: bool = False) -> list[Finalist]:
    sign = 1.0 if plan.direction == "minimize" else -1.0
    return sorted((each for each in finalists if bool(each.out) is out), key=lambda each: sign * each.mean)


def _unbroken(values: Mapping[int, float]) -> int:
    """Return how many of the first seeds have a value."""
    return next(seed for seed in range(1, len(values) + 2) if seed not in values) - 1


def paired_p(one: Mapping[int, float], other: Mapping[int, float]) -> float:
    """Return the two-sided p-value that two means differ, by the values of the seeds that both have (at least two)."""
    differences = [one[seed] - other[seed] for seed in one if seed in other]
    mean, deviation = statistics.fmean(differences), statistics.stdev(differences)
    if deviation <= 1e-12 * abs(mean):  # all the same, up to rounding
        return 1.0 if mean == 0.0 else 2.0 ** (1 - len(differences))
    from scipy.special import stdtr

    return 2.0 * float(stdtr(len(differences) - 1, -abs(mean) / (deviation / math.sqrt(len(differences)))))
