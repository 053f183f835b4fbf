from __future__ import annotations

import random
import signal
import time

import pytest
import yaml
from conftest import REPOSITORY, thinned

pytestmark = pytest.mark.long

POOL = ("hydra/launcher=pool", "hydra.sweeper.n_jobs=2")


@pytest.mark.parametrize(
    ("fault", "reason"),
    thinned(
        [
            ("kill", "SIGKILL"),
            ("hang", "took longer than hydra.sweeper.timeout=1 s"),
            pytest.param("memory", "hydra.launcher.memory_gb is 0.5", marks=pytest.mark.cold),  # a forked one shares its memory
            ("raise", "RuntimeError: went wrong"),
            ("exit", "SystemExit: 3"),
            ("unpicklable", "UnpicklableError: cannot be pickled"),
            ("not_a_number", "returned nan, not 1 number"),
            ("text", "returned 'a text', not 1 number"),
        ],
        3,
    ),
)
def test_what_goes_wrong_in_a_trial_costs_that_trial_alone(toy, fault, reason):
    extra = {"hang": ["hydra.sweeper.timeout=1"], "memory": ["hydra.launcher.memory_gb=0.5"]}.get(fault, [])
    done = toy.run("x=1,2,3,4", "bad=[2]", f"fault={fault}", *POOL, *extra)

    assert done.returncode == 0, done.stdout + done.stderr
    trials = toy.trials()
    assert [trial.state.name for trial in trials].count("COMPLETE") == 3
    failed = [trial for trial in trials if trial.state.name == "FAIL"]
    assert [trial.params["x"] for trial in failed] == [2, 2]  # tried again once, as retries=1 says
    assert all(reason in trial.user_attrs["reason"] for trial in failed)
    assert len(trials) == 5
    assert "3 done, 1 failed" in done.stdout


def test_a_trial_that_takes_too_long_in_the_sweepers_own_process_is_ended_as_well(toy):
    done = toy.run("x=1,2,3", "lengths=[0,30,0]", "hydra.sweeper.timeout=1", "hydra.sweeper.retries=0")

    assert "2 done, 1 failed" in done.stdout, done.stdout + done.stderr
    assert "took longer than hydra.sweeper.timeout=1 s" in toy.trials()[1].user_attrs["reason"]


def test_a_trial_that_fails_once_is_retried_with_the_same_values(toy):
    done = toy.run("x=1,2,3", "bad=[2]", "fault=raise", "once=true", "hydra.sweeper.n_jobs=1")

    assert "3 done" in done.stdout
    states = [(trial.params["x"], trial.state.name) for trial in toy.trials()]
    assert sorted(states) == [(1, "COMPLETE"), (2, "COMPLETE"), (2, "FAIL"), (3, "COMPLETE")]
    assert "retry of #1" in done.stdout


def test_jobs_of_a_killed_sweeper_finish_and_record_themselves_and_the_same_command_completes_the_study(toy):
    sweep = ["x=range(0,8)", "seconds=0.8", *POOL]
    first = toy.start(*sweep)
    toy.wait_for(lambda: len(toy.log("start")) >= 4)
    first.send_signal(signal.SIGKILL)
    first.wait()
    running = {int(line[1]) for line in toy.log("start")} - {int(line[1]) for line in toy.log("end")}
    toy.wait_for(lambda: all(toy.trials()[number].state.name == "COMPLETE" for number in running))

    again = toy.run(*sweep)

    assert "8 done" in again.stdout
    started = sorted(int(line[1]) for line in toy.log("start"))
    complete = [trial.number for trial in toy.trials() if trial.state.name == "COMPLETE"]
    assert started == complete  # none was run twice, and one that was made and not begun when the sweeper died is made again
    assert sorted(trial.params["x"] for trial in toy.trials() if trial.state.name == "COMPLETE") == list(range(8))


def test_a_sweep_killed_in_its_own_process_goes_on_with_the_trial_it_lost(toy):
    sweep = ["x=range(0,5)", "seconds=0.3"]
    first = toy.start(*sweep)
    toy.wait_for(lambda: len(toy.log("start")) == 3)
    first.kill()
    first.wait()

    again = toy.run(*sweep, "hydra.sweeper.retries=0")  # not charged: the sweeper died, not the trial

    assert "5 done" in again.stdout, again.stdout
    assert "#2   failed" in again.stdout
    assert "died" in again.stdout
    assert sorted(trial.params["x"] for trial in toy.trials() if trial.state.name == "COMPLETE") == list(range(5))


def test_ctrl_c_leaves_a_study_that_the_same_command_completes(toy):
    sweep = ["x=range(0,6)", "seconds=0.5", *POOL]
    first = toy.start(*sweep)
    toy.wait_for(lambda: len(toy.log("start")) >= 3)
    first.send_signal(signal.SIGINT)
    first.wait(20)
    toy.wait_for(lambda: not any(process.is_running() and process.status() != "zombie" for process in toy.workers()))
    (results,) = toy.folder.glob("multirun/*/optimization_results.yaml")
    assert yaml.safe_load(results.read_text())["best_value"] is not None  # of the trials that had ended
    assert (results.parent / "trials.csv").is_file()

    again = toy.run(*sweep, "hydra.sweeper.retries=0")

    assert "6 done" in again.stdout, again.stdout
    assert sorted(trial.params["x"] for trial in toy.trials() if trial.state.name == "COMPLETE") == list(range(6))


def test_random_kills_of_sweepers_and_workers_lose_no_trial_and_count_none_twice(toy):
    """Six here, fifty in the slow test."""
    kill_at_random(toy, kills=6, n_trials=10, seed=1)


@pytest.mark.slow
def test_fifty_random_kills_lose_no_trial_and_count_none_twice(toy):
    kill_at_random(toy, kills=50, n_trials=80, seed=2)


def kill_at_random(toy, kills: int, n_trials: int, seed: int) -> None:
    sweep = ["x=interval(-5,5)", "seconds=0.4", f"hydra.sweeper.n_trials={n_trials}", "hydra.sweeper.retries=50", *POOL]
    toy.run_through_kills(sweep, kills, random.Random(seed))
    toy.run(*sweep)

    trials = toy.trials()
    states = [trial.state.name for trial in trials]
    assert states.count("COMPLETE") == n_trials
    assert set(states) == {"COMPLETE", "FAIL"}
    slots = [trial for trial in trials if "speechtrain:retry_of" not in trial.system_attrs]
    assert len(slots) == n_trials
    retried = [trial.system_attrs["speechtrain:retry_of"] for trial in trials if "speechtrain:retry_of" in trial.system_attrs]
    assert len(retried) == len(set(retried)) == states.count("FAIL")
    assert all(trials[number].state.name == "FAIL" for number in retried)
    values: dict[int, dict[str, float]] = {}  # of each slot, by the number of its latest attempt
    for trial in trials:  # a retry repeats the values of what it retries, if it lived long enough to be given them
        before = values.get(trial.system_attrs.get("speechtrain:retry_of"), {})
        assert not (before and trial.params) or trial.params == before
        values[trial.number] = trial.params or before
    started = [int(line[1]) for line in toy.log("start")]
    assert len(started) == len(set(started)), "a folder was used twice"
    assert {trial.number for trial in trials if trial.state.name == "COMPLETE"} <= set(started)


def test_two_sweepers_at_once_share_one_quota_exactly(toy):
    sweep = ["x=interval(-5,5)", "seconds=0.05", "hydra.sweeper.n_trials=20", *POOL]
    both = [toy.start(*sweep), toy.start(*sweep)]

    assert [process.wait(60) for process in both] == [0, 0], (toy.folder / "output.txt").read_text()
    trials = toy.trials()
    assert len(trials) == 20
    assert all(trial.state.name == "COMPLETE" for trial in trials)
    assert sorted(int(line[1]) for line in toy.log("start")) == list(range(20))
    assert len({line[2] for line in toy.log("start")}) > 2, "only one of them worked"


def test_a_line_that_a_killed_process_left_half_written_does_not_spoil_the_study(toy):
    toy.run("x=1,2", "hydra.sweeper.n_jobs=1")
    journal = toy.folder / "multirun" / "toy" / "study.journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole.splitlines()[-1][:20])

    done = toy.run("x=1,2", "hydra.sweeper.n_jobs=1")

    assert "2 done" in done.stdout, done.stderr
    with journal.open("ab") as file:
        file.write(b'{"op_code":4,"wor')
    (toy.folder / "multirun" / "toy" / "0").rename(toy.folder / "kept")
    again = toy.run("x=1,2,3", "hydra.sweeper.study_name=other", "hydra.sweeper.storage=journal:///multirun/toy/study.journal")
    assert "3 done" in again.stdout, again.stderr


def test_a_lock_dies_with_its_process(toy):
    journal = toy.folder / "multirun" / "toy" / "study.journal"
    journal.parent.mkdir(parents=True)
    code = (
        "import sys, time; from pathlib import Path; from speechtrain.sweep.study.storage import JournalLocks;"
        f"JournalLocks(Path({str(journal)!r})).acquire(); print('held', flush=True); time.sleep(60)"
    )
    import subprocess
    import sys

    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=REPOSITORY)
    assert holder.stdout is not None
    holder.stdout.readline()
    holder.kill()
    seconds = []
    for study in ("toy", "other"):
        started = time.monotonic()
        done = toy.run("x=1,2", "hydra.sweeper.n_jobs=1", f"hydra.sweeper.study_name={study}")
        seconds.append(time.monotonic() - started)
        assert "2 done" in done.stdout
    assert seconds[0] - seconds[1] < 25  # Optuna's own lock waits 30 s for a dead holder


def test_a_sweep_in_which_everything_fails_is_given_up_with_the_reason(toy):
    done = toy.run("x=range(0,20)", "bad=[0,1,2,3,4,5,6,7,8]", "fault=raise", "hydra.sweeper.retries=0")

    assert done.returncode == 1
    assert "5 of 5 trials failed" in done.stderr
    assert "RuntimeError: went wrong" in done.stderr
    assert len(toy.log("start")) == 5


def test_no_trial_begins_after_stop_after(toy):
    toy.run("x=range(0,50)", "seconds=0.1", "hydra.sweeper.stop_after=1", "hydra.sweeper.n_jobs=1")

    states = [trial.state.name for trial in toy.trials()]
    assert set(states) == {"COMPLETE"}
    assert len(states) == len(toy.log("end")) < 50
    assert (toy.folder / "multirun" / "toy" / "0").is_dir()
