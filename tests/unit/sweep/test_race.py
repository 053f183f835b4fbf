"""What a race between the best configurations has come to, as a function of their values."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from scipy.stats import ttest_rel

from speechtrain.sweep.study.race import Standing, paired_p, standing_of
from speechtrain.sweep.study.race_plan import RacePlan

PLAN = RacePlan(n=3, max_seeds=5, significance=0.05, direction="minimize", seed_key="seed", first_seed=2)


def plan(**changes: object) -> RacePlan:
    return RacePlan(**{**vars(PLAN), **changes})


def raced(value: Callable[[int, int], float | str], numbers: tuple[int, ...] = (7, 3, 4), of: RacePlan = PLAN) -> Standing:
    """Train what a race wants until it is decided."""
    runs: dict[tuple[int, int], float | str] = {}
    entrants = [(number, 0.1 * place) for place, number in enumerate(numbers)]
    while (standing := standing_of(entrants, runs, of)).wanted:
        runs |= {key: value(*key) for key in standing.wanted}
    return standing


NOISE = [0.0, 0.3, -0.2, 0.25, -0.3, 0.1, -0.15, 0.2]
"""What each seed adds to every finalist, far more than they differ by."""


def test_the_first_comparison_needs_three_seeds_of_each_and_the_first_seeds_come_first():
    standing = standing_of([(7, 0.1), (3, 0.2)], {(7, 1): 0.1}, PLAN)

    assert standing.wanted == [(3, 1), (7, 2), (3, 2), (7, 3), (3, 3)]
    assert standing.winner is None  # one seed, and of one alone


def test_the_same_seeds_for_all_tell_finalists_apart_that_differ_by_less_than_seeds_do():
    better = {3: 0.0, 7: 0.1, 4: 0.2}
    standing = raced(lambda trial, seed: better[trial] + NOISE[seed] + 0.002 * ((seed * trial) % 3))

    assert standing.verdict == "trial 3 is significantly better than the others"
    assert standing.winner is not None
    assert (standing.winner.trial, standing.seeds) == (3, 3)
    assert standing.wanted == []


def test_the_value_that_made_a_finalist_is_not_counted():
    standing = raced(lambda trial, seed: {7: 0.9, 3: 0.5, 4: 0.8}[trial] + 0.002 * ((seed * trial) % 3))

    assert standing.winner is not None
    assert standing.winner.trial == 3
    assert standing.finalists[0].value_in_search == 0.1
    assert standing.winner.mean == pytest.approx(0.5, abs=0.01)


def test_one_that_is_significantly_worse_is_trained_no_further_and_the_others_are_a_tie():
    close = {7: [0.1, 0.3, 0.2, 0.4, 0.25], 3: [0.12, 0.28, 0.21, 0.38, 0.26], 4: [2.1, 2.31, 2.2, 2.4, 2.26]}
    trained = []

    def value(trial: int, seed: int) -> float:
        trained.append((trial, seed))
        return close[trial][seed - 1]

    standing = raced(value)

    assert trained.count((4, 4)) == 0
    assert standing.verdict == "a tie: trials 7 and 3 are not told apart by 5 seeds"
    assert [each.trial for each in standing.racing] == [7, 3]
    assert standing.finalists[-1].out.startswith("worse than trial 7 after 3 seeds (p = ")
    assert len(trained) == 2 * 5 + 3


@pytest.mark.parametrize(("direction", "best"), [("minimize", 3), ("maximize", 7)])
def test_the_direction_says_which_one_wins(direction, best):
    standing = raced(lambda trial, seed: trial + NOISE[seed] + 0.01 * ((trial * seed) % 3), of=plan(direction=direction))

    assert standing.winner is not None
    assert standing.winner.trial == best


def test_a_finalist_that_has_no_result_with_another_seed_leaves_the_race():
    standing = raced(lambda trial, seed: "failed with seed=3" if (trial, seed) == (7, 2) else 1.0 + NOISE[seed])
    none = raced(lambda _trial, _seed: "failed")
    alone = raced(lambda trial, _seed: 1.0 if trial == 3 else "failed")

    assert standing.finalists[-1].out == "failed with seed=3"
    assert {each.trial for each in standing.racing} == {3, 4}
    assert (none.verdict, none.winner) == ("none of the finalists could be trained with other seeds", None)
    assert alone.winner is not None
    assert alone.verdict == "trial 3 is the only one left with a result of other seeds"


def test_a_program_that_ignores_the_seed_is_found_out_and_not_trained_on():
    standing = raced(lambda trial, _seed: float(trial))

    assert standing.verdict == "each finalist has the same value whatever seed is, so that the race tells no more than the search did"
    assert standing.seeds == 3


def test_one_configuration_alone_has_nobody_to_race_with():
    standing = raced(lambda _trial, _seed: 1.0, numbers=(7,))

    assert standing.verdict.startswith("fewer than two configurations have a result")
    assert standing.winner is None


def test_a_race_that_is_not_decided_names_the_best_over_the_seeds_that_all_have():
    runs = {(7, 1): 0.3, (3, 1): 0.2, (7, 2): 0.3, (3, 2): 0.1, (7, 3): -9.0}
    standing = standing_of([(7, 0.1), (3, 0.2)], runs, PLAN)

    assert (standing.seeds, standing.verdict) == (2, "")
    assert standing.winner is not None
    assert standing.winner.trial == 3
    assert standing.winner.mean == pytest.approx(0.15)


def test_the_p_value_is_that_of_the_paired_t_test_and_of_the_sign_test_where_all_differences_are_the_same():
    one, other = {1: 0.31, 2: 0.25, 3: 0.4, 4: 0.2}, {1: 0.35, 2: 0.3, 3: 0.41, 4: 0.29}

    assert paired_p(one, other) == pytest.approx(ttest_rel(list(one.values()), list(other.values())).pvalue)
    assert paired_p({1: 0.1, 2: 0.2, 3: 0.3}, {1: 0.2, 2: 0.3, 3: 0.4}) == 0.25  # up to rounding
    assert paired_p({1: 0.1, 2: 0.2}, {1: 0.1, 2: 0.2}) == 1.0


def test_the_interval_of_a_mean_is_students():
    standing = raced(lambda trial, seed: {3: 0.3, 7: 0.5, 4: 0.7}[trial] + NOISE[seed])
    finalist = standing.finalists[0]

    values = list(finalist.values.values())
    deviation = math.sqrt(sum((value - finalist.mean) ** 2 for value in values) / (len(values) - 1))
    assert len(values) == 5
    assert finalist.half_width(0.05) == pytest.approx(2.776 * deviation / math.sqrt(5), rel=1e-3)


@pytest.mark.parametrize("most", [2, 3, 5, 20])
def test_the_comparisons_of_a_race_share_its_significance(most):
    rules = plan(max_seeds=most)

    assert sum(rules.share_of_look(seeds) for seeds in range(min(3, most), most + 1)) == pytest.approx(0.05)


@pytest.mark.parametrize(("equal", "dropped"), [(2, 0.05), (5, 0.12)])
def test_equals_are_said_to_be_different_as_rarely_as_the_docs_say(equal, dropped):
    rng = random.Random(1)
    races = [raced(lambda _trial, _seed: rng.gauss(0, 1), tuple(range(equal))) for _ in range(400)]

    assert sum("significantly better" in each.verdict for each in races) / len(races) <= 0.05
    assert 0 < sum(any(finalist.out for finalist in each.finalists) for each in races) / len(races) <= dropped


def test_p_values_that_are_shown_are_compared_with_the_significance_itself():
    rng = random.Random(2)
    races = [raced(lambda trial, _seed: rng.gauss(trial / 3, 1), (0, 1, 2, 3)) for _ in range(100)]

    for each in (finalist for race in races for finalist in race.finalists if finalist.p is not None):
        assert (each.p <= PLAN.significance) is each.out.startswith("worse")


def test_one_whose_rival_has_failed_wins_only_with_a_result_of_its_own():
    failed = {(7, 1): "failed with seed=2"}
    standing = standing_of([(7, 0.1), (3, 0.2)], failed, PLAN)

    assert (standing.wanted, standing.verdict, standing.winner) == ([(3, 1)], "", None)
    standing = standing_of([(7, 0.1), (3, 0.2)], failed | {(3, 1): 0.4}, PLAN)
    assert standing.verdict == "trial 3 is the only one left with a result of other seeds"
    assert standing.winner is not None
    assert standing.winner.trial == 3
    standing = standing_of([(7, 0.1), (3, 0.2)], failed | {(3, 1): "failed with seed=2"}, PLAN)
    assert standing.verdict == "none of the finalists could be trained with other seeds"


def test_a_constant_difference_far_smaller_than_the_values_is_no_variance():
    one = dict(enumerate((131.7, 3.3, 77.77, 0.9, 250.1), 1))

    assert paired_p(one, {seed: value + 1e-6 / 3 for seed, value in one.items()}) == 2.0**-4


def test_what_is_shown_of_a_race_can_be_stored_as_json():
    import json

    shown = raced(lambda trial, seed: trial + NOISE[seed]).to_dict()

    assert json.loads(json.dumps(shown)) == shown
