from __future__ import annotations

from datetime import datetime, timedelta

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from speechtrain.config.schemas.sweeps import StopWhen
from speechtrain.sweep.study.attributes import BEAT, FAILURE
from speechtrain.sweep.study.cost import COST
from speechtrain.sweep.study.stopping import Intervals, StopRule

NONE = dict.fromkeys(("goal", "no_improvement", "wall_hours", "cpu_hours", "gpu_hours"))


def rule(*values: float, direction: str = "minimize", metric: str = "val/wer", **conditions: float) -> StopRule:
    made = StopRule(StopWhen(**NONE | conditions), [direction], metric)
    made.update([numbered(index, optuna.create_trial(value=value)) for index, value in enumerate(values)])
    return made


def numbered(number: int, trial: FrozenTrial) -> FrozenTrial:
    trial.number = number
    return trial


def timed(start: float, end: float | None, **changes: object) -> FrozenTrial:
    """A trial that ran between two hours."""
    trial = optuna.create_trial(state=TrialState.RUNNING if end is None else TrialState.COMPLETE, value=None if end is None else 1.0)
    day = datetime.fromisoformat("2026-01-01")
    trial.datetime_start = day + timedelta(hours=start)
    trial.datetime_complete = None if end is None else day + timedelta(hours=end)
    for name, value in changes.items():
        setattr(trial, name, value)
    return trial


def spent(*trials: FrozenTrial, **budget: float) -> str | None:
    made = StopRule(StopWhen(**NONE | budget), ["minimize"])
    made.update(trials)
    return made.used_up()


def test_a_goal_is_reached_in_the_direction_of_the_objective():
    assert rule(0.3, 0.021, goal=0.02).enough() is None
    assert rule(0.3, 0.019, 0.5, goal=0.02).enough() == "the goal is reached: 1.90 % of trial 1, wanted 2.00 %"
    assert rule(0.3, 0.91, direction="maximize", goal=0.9).enough() is not None
    assert rule(0.3, 0.89, direction="maximize", goal=0.9).enough() is None


def test_a_trial_that_breaks_a_constraint_or_was_pruned_reaches_no_goal():
    made = rule(goal=0.5)
    made.update([optuna.create_trial(value=0.1, constraints={"params <= 2": 1.0}), optuna.create_trial(value=0.1, state=TrialState.PRUNED)])
    assert made.enough() is None


@pytest.mark.parametrize("scale", [1.0, -1.0])
def test_no_improvement_is_expected_once_the_second_half_of_the_trials_gained_less_than_the_share(scale):
    direction = "minimize" if scale > 0 else "maximize"
    steady = [scale * (1.0 - 0.02 * index) for index in range(20)]
    settled = [*steady[:10], *[steady[9] - scale * 0.0008] * 10]

    assert rule(*steady, direction=direction, no_improvement=0.01).enough() is None
    assert rule(*settled[:19], direction=direction, no_improvement=0.01).enough() is None
    found = rule(*settled, direction=direction, no_improvement=0.01).enough()
    assert found == "no improvement is expected: the second half of 20 trials made the best 0.10% better, less than 1.00%"
    assert rule(*settled, direction=direction, no_improvement=0.0005).enough() is None


def test_wall_time_is_that_in_which_any_trial_ran():
    apart, together = [timed(0, 1), timed(5, 6)], [timed(0, 1), timed(0.5, 1.5), timed(0.2, 0.4)]

    assert spent(*apart, wall_hours=2.01) is None
    assert spent(*apart, wall_hours=2) == "the budget is used up: 2 of 2 hours of wall time"
    assert spent(*together, wall_hours=1.51) is None
    assert spent(*together, wall_hours=1.5) is not None


def test_trials_that_run_count_as_far_as_they_have_come():
    begun = datetime.now() - timedelta(hours=3)  # in local time, as Optuna stores it
    running = timed(0, None, datetime_start=begun, user_attrs={COST: {"cpu_s": 7200.0}})

    made = StopRule(StopWhen(**NONE | {"wall_hours": 2.9}), ["minimize"])
    assert made.used_up() is None
    assert made.used_up([running]) == "the budget is used up: 3 of 2.9 hours of wall time"
    assert StopRule(StopWhen(**NONE | {"cpu_hours": 2.1}), ["minimize"]).used_up([running]) is None
    assert StopRule(StopWhen(**NONE | {"cpu_hours": 2}), ["minimize"]).used_up([running]) is not None


def test_cpu_and_gpu_time_are_what_trials_have_stored_and_one_core_where_they_have_not():
    told = timed(0, 1, user_attrs={COST: {"cpu_s": 3 * 3600, "gpu_s": 1800}})

    assert spent(told, timed(1, 2), cpu_hours=4) == "the budget is used up: 4 of 4 hours of CPU time"
    assert spent(told, timed(1, 2), cpu_hours=4.1) is None
    assert spent(told, timed(1, 2), gpu_hours=0.5) == "the budget is used up: 0.5 of 0.5 hours of GPU time"
    assert spent(told, gpu_hours=0.6) is None


def test_a_trial_whose_process_died_unseen_ended_with_its_last_sign_of_life():
    start = timed(0, 9).datetime_start.timestamp()
    lost = timed(0, 9, state=TrialState.FAIL, values=None, system_attrs={FAILURE: {"charged": False}, BEAT: start + 3600})

    assert spent(lost, wall_hours=1.01) is None
    assert spent(lost, wall_hours=1) is not None


def test_intervals_that_touch_overlap_or_lie_in_each_other_are_one():
    union = Intervals()
    for start, end in [(0, 1), (4, 5), (1, 2), (8, 9), (3, 6), (4.5, 4.6)]:
        union.add(start, end)

    assert union.length() == 2 + 3 + 1
    assert union.length([8.5, 5.5], now=10) == 2 + 7
    assert union.length([20], now=21) == 7
