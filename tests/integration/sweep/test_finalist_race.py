"""Sweeps that end with a race of the best configurations over further seeds."""

from __future__ import annotations

import random
import re

import pytest
import yaml
from optuna.trial import FrozenTrial, TrialState

pytestmark = pytest.mark.long

POOL = ("hydra/launcher=pool", "hydra.sweeper.n_jobs=2")
RACE = ["hydra.sweeper.finalists.n=3", "hydra.sweeper.finalists.max_seeds=4", "noise=0.5"]
"""What the toy program returns has the standard deviation 0.5 over seeds."""


def runs_of(trials: list[FrozenTrial]) -> dict[tuple[int, int], FrozenTrial]:
    """The trial that has trained each finalist with each seed; one only."""
    runs: dict[tuple[int, int], FrozenTrial] = {}
    for trial in trials:
        finalist = trial.system_attrs.get("speechtrain:finalist")
        if finalist is not None and trial.state is TrialState.COMPLETE:
            key = (finalist["of"], finalist["seed"])
            assert key not in runs
            runs[key] = trial
    return runs


def assert_raced(trials: list[FrozenTrial], n_trials: int) -> None:
    """The best three have been trained with the same seeds, each once, and the seed has reached the program."""
    runs = runs_of(trials)
    searched = [trial for trial in trials if "speechtrain:finalist" not in trial.system_attrs and trial.state is TrialState.COMPLETE]
    assert len(searched) <= n_trials
    best = sorted(searched, key=lambda trial: trial.values[0])[:3]
    assert {number for number, _ in runs} == {trial.number for trial in best}
    for trial in best:
        seeds = sorted(seed for number, seed in runs if number == trial.number)
        assert len(seeds) >= 3
        assert seeds == list(range(2, 2 + len(seeds)))
    for (_, seed), run in runs.items():
        x = run.params["x"]
        assert run.values[0] == (x - 2) ** 2 + random.Random(f"{seed} {float(x)}").gauss(0, 0.5)
        assert not run.system_attrs.get("speechtrain:paused")


def test_a_race_of_the_best_ends_a_sweep_and_its_winner_is_the_best(toy):
    sweep = ["x=range(0,5)", *RACE]
    done = toy.run(*sweep)
    again = toy.run(*sweep)

    assert done.returncode == 0, done.stderr
    trials = toy.trials()
    assert_raced(trials, 5)
    results = yaml.safe_load((toy.folder / "multirun/toy/optimization_results.yaml").read_text())
    means = {each["trial"]: each["mean"] for each in results["race"]["finalists"] if each["out"] is None}
    assert results["best_trial"] == min(means, key=means.__getitem__)
    assert results["best_value"] == means[results["best_trial"]]
    assert f"best  #{results['best_trial']}  result " in done.stdout
    assert re.search(r"race of the finalists: #\d, #\d, #\d with seed=2 to 5, until", done.stdout)
    assert re.search(r"race of the finalists: (a tie: trials|trial \d is significantly better)", done.stdout)
    assert "5 done" in done.stdout
    assert "nothing was left to do" in again.stdout
    assert f"best  #{results['best_trial']}  result " in again.stdout
    assert len(toy.trials()) == len(trials)


@pytest.mark.slow
def test_a_race_goes_on_where_it_was_stopped_and_a_reached_goal_leads_to_it_as_well(toy):
    sweep = ["x=range(0,5)", *RACE, "hydra.sweeper.stop_when.goal=0"]
    first = toy.run(*sweep, "seconds=0.2", "hydra.sweeper.stop_after=1.2")
    second = toy.run(*sweep, "seconds=0.2")

    assert "stopped: this command has run for hydra.sweeper.stop_after=1.2 s" in first.stdout, first.stdout + first.stderr
    assert "stopped: the goal is reached" in second.stdout, second.stdout + second.stderr
    runs = runs_of(toy.trials())
    assert len(runs) >= 6
    assert not [trial for trial in toy.trials() if trial.state is TrialState.FAIL]


@pytest.mark.slow
@pytest.mark.parametrize("pruner", ["none", "halving"])
def test_a_race_loses_nothing_and_trains_nothing_twice_whatever_is_killed(toy, pruner):
    pauses = ["hydra/sweeper/pruner=halving", "hydra.sweeper.pruner.min_resource=1", "epochs=4"] if pruner == "halving" else []
    n_trials = 16 if pauses else 5
    sweep = ["x=interval(-5,5)", f"hydra.sweeper.n_trials={n_trials}", "seconds=0.1", "hydra.sweeper.retries=50", *RACE, *pauses, *POOL]
    toy.run_through_kills(sweep, 12, random.Random(5), while_running=1.0)
    again = toy.run(*sweep)

    assert "nothing was left to do" in again.stdout, again.stdout + again.stderr
    assert_raced(toy.trials(), n_trials)


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["sqlite", "postgresql", "grpc_proxy"])
def test_two_sweepers_share_a_race_on_every_storage(toy, storage, request):
    url = f"sqlite:///{toy.folder}/study.db" if storage == "sqlite" else request.getfixturevalue(storage)
    sweep = ["x=range(0,5)", "seconds=0.05", *RACE, f"hydra.sweeper.storage={url}", *POOL]
    both = [toy.start(*sweep), toy.start(*sweep)]

    assert [process.wait(90) for process in both] == [0, 0], (toy.folder / "output.txt").read_text()
    assert_raced(toy.trials(url), 5)
