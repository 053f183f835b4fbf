"""How often a race of finalists is right: made-up values, normal differences between seeds.

    python benchmarks/race.py [--races 2000]

Prints, for equal configs, how often one is said to be the best, and how often one leaves the race as a worse one. For a config that is
better than the others by some of the standard deviations of a difference between two configs with the same seed: how often it wins, how
often it is told apart from all, how often it leaves the race, and the trainings that this took. The last column is what the best value of
the search alone, of one seed, would have named.
"""

from __future__ import annotations

import argparse
import random

from speechtrain.sweep.study.race import Standing, standing_of
from speechtrain.sweep.study.race_plan import RacePlan


def race(better: float, plan: RacePlan, rng: random.Random) -> tuple[Standing, int]:
    """Run one race in which finalist 0 is better by `better`; return what it came to, and the number of trainings."""
    runs: dict[tuple[int, int], float | str] = {}
    entrants = [(number, 0.0) for number in range(plan.n)]
    while (standing := standing_of(entrants, runs, plan)).wanted:
        for trial, seed in standing.wanted:  # of two with variance 1/2 the difference has variance 1
            runs[trial, seed] = rng.gauss(0, 0.5**0.5) - (better if trial == 0 else 0.0)
    return standing, len(runs)


def _first_of_one_seed(n: int, better: float, rng: random.Random) -> bool:
    values = [rng.gauss(0, 0.5**0.5) - (better if number == 0 else 0.0) for number in range(n)]
    return values[0] == min(values)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--races", type=int, default=2000)
    races = parser.parse_args().races
    columns = ("finalists", "seeds", "better by", "names it", "tells it apart", "drops a best one", "trainings", "one seed names it")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for n, seeds in ((2, 5), (5, 5), (5, 10)):
        plan = RacePlan(n=n, max_seeds=seeds, significance=0.05, direction="minimize", seed_key="seed", first_seed=1)
        for better in (0.0, 1.0, 2.0, 4.0):
            rng = random.Random(0)
            ended = [race(better, plan, rng) for _ in range(races)]
            named = sum(standing.winner is not None and standing.winner.trial == 0 for standing, _ in ended) / races
            apart = sum("significantly better" in standing.verdict for standing, _ in ended) / races
            best = range(n) if better == 0 else range(1)
            dropped = sum(any(each.out and each.trial in best for each in standing.finalists) for standing, _ in ended) / races
            trained = sum(count for _, count in ended) / races
            alone = sum(_first_of_one_seed(n, better, rng) for _ in range(races))
            print(f"| {n} | {seeds} | {better:g} | {named:.0%} | {apart:.1%} | {dropped:.1%} | {trained:.1f} | {alone / races:.0%} |")


if __name__ == "__main__":
    main()
