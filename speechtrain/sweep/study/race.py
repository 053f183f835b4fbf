"""A race between the best configurations of a study: each is trained with further seeds until one is significantly better than the rest.

What the race has come to, and what it needs next, follows from the values alone, without a storage; `finalists.py` has the trials.

The value by which a configuration became a finalist does not count: it is among the best in part because its seed was a lucky one. All
finalists get the same seeds, so that values are compared in pairs. The finalist of the best mean is compared with each of the others by
Student's t-test for paired values, which is exact for any number of pairs whose differences are normal (Student 1908, "The probable error
of a mean"); tests by ranks could say nothing with fewer than six pairs. Differences that are all the same get the p-value of the sign test.
Several rivals: by Holm (1979, "A simple sequentially rejective multiple test procedure"), over the
comparisons with the leader alone, and for both sides, as it is known by the same values (Hsu 1984, "Constrained simultaneous confidence
intervals for multiple comparisons with the best"). Several looks at the values: each gets its own part of the significance, later ones
more: alpha t^2 in all at the part t of the looks, as in Kim & DeMets (1987, "Design and analysis of group sequential tests based on the
type I error spending rate function"), but without use of how the looks depend on each other.

So of equals one is said to be better than all others with at most the probability `significance`. That some equal leaves the race early is
likelier where there are many, as the leader is the luckiest of them: `benchmarks/race.py` says how much.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from speechtrain.errors import counted
from speechtrain.sweep.study.race_plan import FIRST_LOOK, RacePlan


@dataclass
class Finalist:
    """One of the best configurations.

    Attributes:
        trial: number of the trial that found it.
        value_in_search: value of that trial.
        values: its values by further seeds, counted from 1.
        out: why it has left the race; empty while it has not.
        p: p-value of the comparison with the best, made larger for the rivals and looks, so that it is compared with the significance;
            None: there was none.
    """

    trial: int
    value_in_search: float
    values: dict[int, float] = field(default_factory=dict)
    out: str = ""
    p: float | None = None

    @property
    def mean(self) -> float:
        """Return the mean over its further seeds; of the value in the search where it has none."""
        return statistics.fmean(self.values.values()) if self.values else self.value_in_search

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

    def _as_dict(self, finalist: Finalist) -> dict[str, Any]:
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
            "finalists": [self._as_dict(each) for each in self.finalists],
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
            if len(finalists) > 1 and racing and not racing[0].values:  # it has to show that it can be trained at all
                wanted = [each for each in wanted if each[0] == racing[0].trial][:1]
            else:
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
        return f"each finalist has the same value whatever {plan.seed_key} is, so that the race tells no more than the search did"
    by_p = sorted(((paired_p(best.values, rival.values), rival) for rival in rivals), key=lambda pair: pair[0])
    adjusted = 0.0
    for index, (p, rival) in enumerate(by_p):
        adjusted = max(adjusted, min(1.0, p * (len(by_p) - index) * plan.significance / plan.share_of_look(seeds)))
        rival.p = adjusted
        if adjusted <= plan.significance:
            rival.out = f"worse than trial {best.trial} after {counted(seeds, 'seed')} (p = {adjusted:.2g})"
    tied = [best.trial, *(rival.trial for rival in rivals if not rival.out)]
    if len(tied) == 1:
        return f"trial {best.trial} is significantly better than the others"
    if seeds < plan.max_seeds:
        return ""
    numbers = ", ".join(map(str, tied[:-1]))
    return f"a tie: trials {numbers} and {tied[-1]} are not told apart by {counted(seeds, 'seed')}"


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
    if deviation <= 1e-12 * max(abs(value) for value in (*one.values(), *other.values())):  # all the same, up to rounding
        return 1.0 if mean == 0.0 else 2.0 ** (1 - len(differences))
    from scipy.special import stdtr

    return 2.0 * float(stdtr(len(differences) - 1, -abs(mean) / (deviation / math.sqrt(len(differences)))))
