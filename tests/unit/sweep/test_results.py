"""The best trials are those that a look at all trials would find."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState, create_trial

from speechtrain.sweep.study.results import Results

VALUES = st.sampled_from([0.0, 0.5, 1.0, math.inf])


def trials_of(values: list[list[float]]) -> list[FrozenTrial]:
    trials = [create_trial(values=each) for each in values]
    for number, trial in enumerate(trials):
        trial.number = number
    return trials


def results_of(trials: list[FrozenTrial], *directions: str) -> Results:
    results = Results(list(directions))
    for trial in trials:
        results.add(trial)
    return results


@given(st.lists(VALUES, max_size=6), st.sampled_from(["minimize", "maximize"]), st.randoms())
def test_the_best_is_the_first_of_those_with_the_best_finite_value(values, direction, rng):
    trials = trials_of([[value] for value in values])
    finite = [trial for trial in trials if math.isfinite(trial.values[0])]
    pick = min if direction == "minimize" else max
    expected = [pick(finite, key=lambda trial: trial.values[0])] if finite else []
    rng.shuffle(trials)

    assert results_of(trials, direction).best == expected


@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=2), max_size=7), st.randoms())
def test_the_front_holds_every_trial_that_no_other_is_better_than(values, rng):
    trials = trials_of(values)

    def beats(one: FrozenTrial, other: FrozenTrial) -> bool:
        (a, b), (c, d) = one.values, other.values
        return a <= c and b >= d and (a, b) != (c, d)

    expected = [trial for trial in trials if not any(beats(other, trial) for other in trials)]
    rng.shuffle(trials)

    assert results_of(trials, "minimize", "maximize").best == expected


def test_trials_are_all_equal_from_the_second_on_until_one_differs():
    trials = trials_of([[1.0], [1.0], [0.5]])
    assert [results_of(trials[:count], "minimize").all_equal for count in range(4)] == [False, False, True, False]


def test_what_is_not_complete_or_breaks_a_constraint_is_no_result():
    pruned = create_trial(state=TrialState.PRUNED, value=0.1)
    broken = create_trial(value=0.2)
    broken.set_constraint("params <= 5", 1.0)

    assert results_of([pruned, broken], "minimize").best == []
