"""Studies that end before all their trials are run, and go on with more."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.long

STOP = "hydra.sweeper.stop_when"
POOL = ("hydra/launcher=pool", "hydra.sweeper.n_jobs=2")


def test_a_goal_ends_the_study_says_why_and_the_same_command_again_does_nothing(toy):
    sweep = ["x=range(0,9)", f"{STOP}={{goal: 1}}"]
    first = toy.run(*sweep)  # trial 0 has x=1, whose value is 1
    again = toy.run(*sweep)
    higher = toy.run("x=range(0,9)", f"{STOP}={{goal: 0, cpu_hours: 1}}")

    assert first.returncode == 0, first.stderr
    assert "stopped: the goal is reached: 1.0000 of trial 0, wanted 1.0000" in first.stdout
    assert "nothing was done" not in first.stdout
    assert "stopped: the goal is reached" in again.stdout
    assert "nothing was done" in again.stdout
    assert "stopped: the goal is reached: 0.0000" in higher.stdout
    assert [float(line[4]) for line in toy.log("start")] == [1, 0, 2]
    assert 0 <= toy.trials()[2].user_attrs["cost"]["cpu_s"] < 10  # stored where a budget asks for it


def test_a_budget_ends_a_study_without_a_number_of_trials_and_counts_earlier_commands(toy):
    sweep = ["x=interval(-5,5)", "seconds=0.3"]
    first = toy.run(*sweep, f"{STOP}.wall_hours=0.0002")  # 0.72 s
    trials = len(toy.log("start"))
    hours = sum(trial.duration.total_seconds() for trial in toy.trials() if trial.duration is not None) / 3600
    second = toy.run(*sweep, f"{STOP}.wall_hours={hours + 0.0001:.6f}")

    assert "0.0002 hours of wall time" in first.stdout, first.stdout + first.stderr
    assert "as many trials as hydra.sweeper.stop_when lets begin" in first.stdout
    assert trials < len(toy.log("start")) <= trials + 2  # 0.36 s more
    assert "hours of wall time" in second.stdout


def test_trials_that_run_when_the_goal_is_reached_end_by_themselves(toy):
    done = toy.run("x=range(1,20)", "lengths=[0,0.1,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2]", f"{STOP}.goal=0", *POOL)

    assert "stopped: the goal is reached" in done.stdout, done.stdout + done.stderr
    assert len(toy.log("start")) == len(toy.log("end")) < 10
    assert {trial.state.name for trial in toy.trials()} == {"COMPLETE"}
