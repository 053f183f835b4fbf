"""Trials that pause at a rung and are continued from their checkpoints."""

from __future__ import annotations

import contextlib
import importlib.util
import random
import re
import shutil
import signal
from pathlib import Path

import psutil
import pytest
from conftest import TINY
from optuna.trial import FrozenTrial, TrialState
from studies import make_study

from speechtrain import compose, train
from speechtrain.sweep.space.space import parse_space
from speechtrain.sweep.study.internals import id_of
from speechtrain.sweep.study.promotion import SuccessiveHalving
from speechtrain.sweep.study.study import ClaimedTrial, Study
from speechtrain.sweep.trial.context import TrialContext
from speechtrain.sweep.trial.job import TrialCallback, run_trial
from speechtrain.training.history import HISTORY, read_history

pytestmark = pytest.mark.long

EPOCHS = 3
RULE = {"_target_": "speechtrain.sweep.study.promotion.SuccessiveHalving", "min_resource": 1, "reduction_factor": 2}
CONFIG = [*TINY, "data.train_size=16", f"trainer.epochs={EPOCHS}", "scheduler=warmup_cosine"]
"""The rate falls along half a cosine to the last epoch."""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """A study of two trials, the first of which is the better one."""
    return make_study(
        tmp_path,
        space=parse_space(["optimizer.lr=0.006,1e-9"], {}),
        pruner=SuccessiveHalving(1, 2),
        first=[{"optimizer.lr": 0.006}, {"optimizer.lr": 1e-9}],
        n_trials=2,
        retries=2,
    )


def train_next(study: Study, folder: Path, *overrides: str, **context: object) -> ClaimedTrial:
    """Claim the next trial and train it in the folder of its number."""
    claimed = study.claim()
    assert claimed is not None
    values = [f"{key}={value}" for key, value in claimed.assignment.items()]
    cfg = compose([*CONFIG, *overrides, *values], output_dir=folder / str(claimed.number))
    ids = {"retry_of": claimed.retry_of, "promoted_from": claimed.promoted_from}
    run_trial(TrialContext(study.url, study.name, claimed.id, claimed.number, ["val/loss"], pruner=RULE, **ids, **context), cfg, overrides)
    return claimed


def losses(folder: Path) -> list[dict[str, float]]:
    """The losses and rates of each epoch, which are the same whenever they are computed."""
    return [{name: value for name, value in each.items() if not name.startswith(("time/", "train/audio"))} for each in read_history(folder)]


@pytest.mark.parametrize("backend", [["model=mlp"], pytest.param(["model=mlp", "backend=keras"], marks=pytest.mark.slow)])
def test_a_trial_that_paused_and_was_continued_has_the_numbers_of_one_trained_in_one_go(study, tmp_path, monkeypatch, backend):
    trained = []
    begin = TrialCallback.on_train_start

    def on_train_start(self, total, first):
        trained.append((first, total))
        begin(self, total, first)

    monkeypatch.setattr(TrialCallback, "on_train_start", on_train_start)
    numbers = []
    while not study.ledger().is_complete:
        numbers.append(train_next(study, tmp_path, *backend).number)
    expected = train(compose([*CONFIG, *backend, "optimizer.lr=0.006"], output_dir=tmp_path / "whole"))

    paused, worse, _, done = study.trials()
    assert numbers == [0, 1, 2, 3]
    assert trained == [(0, EPOCHS), (0, EPOCHS), (1, EPOCHS), (2, EPOCHS)]  # no epoch is trained twice
    assert [trial.state.name for trial in study.trials()] == ["PRUNED", "PRUNED", "PRUNED", "COMPLETE"]
    assert [trial.system_attrs.get("speechtrain:paused") for trial in study.trials()] == [1, 1, 2, None]
    assert done.params == paused.params
    assert done.value == min(epoch["val/loss"] for epoch in expected.history)
    assert list(done.intermediate_values.values()) == [epoch["val/loss"] for epoch in expected.history]
    assert losses(tmp_path / "3" / HISTORY) == losses(tmp_path / "whole" / HISTORY)  # with train/lr, whose schedule ends with the run
    assert worse.params == {"optimizer.lr": 1e-9}
    assert list((tmp_path / "1" / "checkpoints").iterdir())
    assert not (tmp_path / "0" / "checkpoints").exists()


@pytest.mark.slow
def test_a_trial_whose_process_dies_while_it_pauses_or_goes_on_does_neither_twice(study, tmp_path, monkeypatch):
    """It is killed between its report and its pause, and then while its files are moved."""
    with monkeypatch.context() as patched:
        patched.setattr("speechtrain.sweep.trial.handle.prune", fail)
        with pytest.raises(RuntimeError):
            train_next(study, tmp_path, "model=mlp")
    study.storage.set_trial_state_values(id_of(study.trials()[0]), TrialState.FAIL)
    again = train_next(study, tmp_path, "model=mlp")
    assert again.retry_of == 0
    assert study.trials()[again.number].system_attrs["speechtrain:paused"] == 1
    assert list(study.trials()[again.number].intermediate_values) == [0]
    train_next(study, tmp_path, "model=mlp")
    with monkeypatch.context() as patched:
        move, moved = shutil.move, []

        def move_some(source, target):
            if len(moved) == 2:
                raise RuntimeError("killed")
            moved.append(move(source, target))

        patched.setattr("shutil.move", move_some)
        with pytest.raises(RuntimeError):
            train_next(study, tmp_path, "model=mlp")

    while not study.ledger().is_complete:
        train_next(study, tmp_path, "model=mlp")

    done = study.trials()[-1]
    assert done.state.name == "COMPLETE"
    assert list(done.intermediate_values) == list(range(EPOCHS))
    assert len(read_history(tmp_path / str(done.number) / HISTORY)) == EPOCHS
    assert (tmp_path / str(done.number) / "run.json").is_file()


def fail(*_arguments: object, **_named: object) -> None:
    raise RuntimeError("killed")


@pytest.mark.slow
def test_the_seeds_of_a_trial_are_trained_once_its_first_one_has_come_to_its_end(study, tmp_path):
    while not study.ledger().is_complete:
        train_next(study, tmp_path, "model=mlp", seeds=2)

    done = study.trials()[-1]
    assert done.state.name == "COMPLETE"
    assert len(done.user_attrs["seed_values"]) == 2
    assert done.value == pytest.approx(sum(done.user_attrs["seed_values"]) / 2)
    assert sorted(path.name for path in (tmp_path / str(done.number)).glob("seed_*")) == ["seed_1", "seed_2"]


HALVING = ["x=interval(-5,5)", "epochs=4", "hydra/sweeper/pruner=halving", "hydra.sweeper.pruner.min_resource=1"]
"""Trials of the toy program pause after one and three of four epochs."""
POOL = ("hydra/launcher=pool", "hydra.sweeper.n_jobs=2")


def assert_promoted(trials: list[FrozenTrial], n_trials: int) -> None:
    """Each slot has one chain of attempts, each of which was continued or retried once, and the best that paused was continued."""
    counted = [trial for trial in trials if "surplus" not in trial.system_attrs.get("speechtrain:failure", {})]
    earlier = [trial.system_attrs["speechtrain:retry_of"] for trial in counted if "speechtrain:retry_of" in trial.system_attrs]
    assert len(earlier) == len(set(earlier)), "an attempt was followed by two"
    assert len(counted) - len(earlier) == n_trials
    last = [trial for trial in counted if trial.number not in earlier]
    done = [trial for trial in last if trial.state is TrialState.COMPLETE]
    others = [trial for trial in last if trial.state is not TrialState.COMPLETE]
    assert done
    assert all(trial.state is TrialState.PRUNED and "speechtrain:paused" in trial.system_attrs for trial in others)
    assert min(done, key=error_of).params == min((trial for trial in last if trial.params), key=error_of).params
    for trial in counted:
        assert list(trial.intermediate_values) == list(range(len(trial.intermediate_values)))


def error_of(trial: FrozenTrial) -> float:
    return abs(trial.params["x"] - 2)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [(), POOL], ids=["in_process", "pool"])
def test_freeze_thaw_continues_what_promises_most_and_proposes_near_it(toy, launcher):
    names = ("pruner", "sampler")
    sweep = ["x=interval(-5,5)", "epochs=8", *(f"hydra/sweeper/{name}=freeze_thaw" for name in names), "hydra.sweeper.n_trials=20"]
    done = toy.run(*sweep, "hydra.sweeper.pruner.min_resource=2", *launcher)

    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"continues #\d+ from epoch [24] ", done.stdout)
    trials = toy.trials()
    assert not [trial for trial in trials if trial.state is TrialState.FAIL]
    last = {trial.number: trial for trial in trials}
    for trial in trials:
        last.pop(trial.system_attrs.get("speechtrain:retry_of"), None)
    assert len(last) == 20
    complete = [trial for trial in last.values() if trial.state is TrialState.COMPLETE]
    assert len(complete) < 16
    assert min(map(error_of, complete)) < 0.3
    assert "nothing was left to do" in toy.run(*sweep, "hydra.sweeper.pruner.min_resource=2", *launcher).stdout


@pytest.mark.slow
def test_trials_are_continued_once_whatever_is_killed(toy):
    sweep = [*HALVING, "hydra.sweeper.n_trials=7", "seconds=0.1", "hydra.sweeper.retries=50", *POOL]
    toy.run_through_kills(sweep, 4, random.Random(3), while_running=1.0)
    again = toy.run(*sweep)

    assert "nothing was left to do" in again.stdout, again.stdout + again.stderr
    assert_promoted(toy.trials(), 7)
    output = (toy.folder / "output.txt").read_text()
    assert re.search(r"paused  at epoch 1 ", output)
    assert re.search(r"continues #\d+ from epoch [13]", output)


@pytest.mark.slow
@pytest.mark.parametrize(
    "storage", ["grpc_proxy", pytest.param("sqlite", marks=pytest.mark.slow), pytest.param("postgresql", marks=pytest.mark.slow)]
)
def test_two_sweepers_continue_each_paused_trial_once(toy, storage, request):
    url = f"sqlite:///{toy.folder}/study.db" if storage == "sqlite" else request.getfixturevalue(storage)
    sweep = [*HALVING, "hydra.sweeper.n_trials=7", "seconds=0.02", f"hydra.sweeper.storage={url}", *POOL]
    both = [toy.start(*sweep), toy.start(*sweep)]

    assert [process.wait(90) for process in both] == [0, 0], (toy.folder / "output.txt").read_text()
    assert_promoted(toy.trials(url), 7)
    assert {trial.number for trial in toy.trials(url) if trial.state is TrialState.FAIL} <= {
        trial.number for trial in toy.trials(url) if "speechtrain:failure" in trial.system_attrs
    }


def under(launcher: str) -> list[str]:
    if launcher == "ray" and importlib.util.find_spec("ray") is None:
        pytest.skip("needs ray: pip install 'speechtrain[ray]'")
    return [f"hydra/launcher={launcher}", "hydra.sweeper.n_jobs=2"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["submitit_local", "joblib", "ray"])
def test_trials_pause_and_go_on_in_jobs_of_other_launchers(toy, launcher):
    done = toy.run(*HALVING, "hydra.sweeper.n_trials=3", "seconds=0.02", *under(launcher))

    assert done.returncode == 0, done.stdout + done.stderr
    assert_promoted(toy.trials(), 3)
    assert re.search(r"continues #\d from epoch 1 ", done.stdout)
    assert re.search(r"continues #\d from epoch 3 ", done.stdout)
    assert not [trial for trial in toy.trials() if trial.state is TrialState.FAIL]


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        "pool",
        pytest.param("submitit_local", marks=pytest.mark.slow),
        pytest.param("joblib", marks=pytest.mark.slow),
        pytest.param("ray", marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_among_trials_that_pause_and_go_on_loses_none_of_them(toy, launcher):
    sweep = [*HALVING, "hydra.sweeper.n_trials=4", "seconds=0.2", *under(launcher)]
    first = toy.start(*sweep)
    toy.wait_for(lambda: (toy.folder / "output.txt").read_text().count("paused") >= 1 and bool(toy.running()))
    for process in [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]:  # as a terminal sends it
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGINT)
    first.wait(30)
    toy.wait_for(lambda: not toy.running())  # jobs of some launchers come to their ends

    again = toy.run(*sweep, "hydra.sweeper.retries=0")

    assert again.returncode == 0, again.stdout + again.stderr
    assert_promoted(toy.trials(), 4)
