"""Sweeps of real trainings, as commands."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time

import optuna
import psutil
import pytest
import yaml
from conftest import TINY
from mlflow import MlflowClient

from speechtrain.sweep.study.storage import open_storage

pytestmark = pytest.mark.long

TRIALS = [*(item for item in TINY if item != "tracking=[]"), "model=mlp", "trainer.epochs=3", "hydra.sweeper.study_name=study"]
HOPELESS = ["optimizer.lr=0.003,1e-12", "hydra.sweeper.report=val/loss"]
"""The second trial learns nothing."""


def runs_of(folder):
    """MLflow's runs of the trials, by number."""
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    return {run.data.tags["speechtrain.trial"]: run for run in client.search_runs(["1"]) if "speechtrain.trial" in run.data.tags}


def trials_of(folder, name="study"):
    return optuna.load_study(study_name=name, storage=open_storage(f"journal:///{folder}/multirun/study/study.journal")).trials


@pytest.mark.parametrize(
    "launcher",
    [
        "in_process",
        pytest.param("pool", marks=[pytest.mark.cold, pytest.mark.slow]),
        pytest.param("joblib", marks=pytest.mark.slow),
        pytest.param("submitit_local", marks=pytest.mark.slow),
    ],
)
def test_a_hopeless_trial_is_pruned_inside_its_job_under_any_launcher(command, tmp_path, launcher):
    chosen = [] if launcher == "in_process" else [f"hydra/launcher={launcher}"]
    pruner = ["hydra/sweeper/pruner=threshold", "hydra.sweeper.pruner.upper=4.0", "hydra.sweeper.pruner.n_warmup_steps=1"]

    done = command("-m", *TRIALS, *HOPELESS, *chosen, *pruner)

    assert done.returncode == 0, done.stdout + done.stderr
    learnt, hopeless = trials_of(tmp_path)
    assert learnt.state.name == "COMPLETE", learnt
    assert hopeless.state.name == "PRUNED"
    assert list(hopeless.intermediate_values) == [0, 1]
    assert "val/loss" in hopeless.user_attrs["reason"]
    client, runs = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}"), runs_of(tmp_path)
    assert (runs["0"].info.status, runs["1"].info.status) == ("FINISHED", "KILLED")
    assert [metric.step for metric in client.get_metric_history(runs["1"].info.run_id, "val/loss")] == [1, 2]
    assert "test/wer" not in runs["1"].data.metrics
    assert (tmp_path / "multirun/study/0/checkpoints/last.ckpt").is_file()
    assert not (tmp_path / "multirun/study/1/checkpoints").exists()
    assert json.loads((tmp_path / "multirun/study/1/run.json").read_text())["status"] == "KILLED"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["in_process", "pool"])
def test_one_sweep_mixes_backends_and_prunes_on_both(command, tmp_path, launcher):
    chosen = [] if launcher == "in_process" else [f"hydra/launcher={launcher}"]
    pruner = ["hydra/sweeper/pruner=threshold", "hydra.sweeper.pruner.upper=4.0", "hydra.sweeper.pruner.n_warmup_steps=1"]

    done = command("-m", *TRIALS, "backend=torch,keras", *HOPELESS, *chosen, *pruner)

    assert done.returncode == 0, done.stdout + done.stderr
    found = {(trial.params["backend"], trial.params["optimizer.lr"]): trial.state.name for trial in trials_of(tmp_path)}
    assert found == {(backend, rate): state for backend in ("torch", "keras") for rate, state in ((0.003, "COMPLETE"), (1e-12, "PRUNED"))}


@pytest.mark.slow
def test_trials_on_other_engines_run_in_processes_of_their_own(command, tmp_path):
    done = command("-m", *TRIALS, "backend=keras", "backend.engine=tensorflow,torch", "trainer.epochs=1")

    assert done.returncode == 0, done.stdout + done.stderr
    trials = trials_of(tmp_path)
    assert {trial.params["backend.engine"]: trial.state.name for trial in trials} == dict.fromkeys(("tensorflow", "torch"), "COMPLETE")
    assert [run.info.status for run in runs_of(tmp_path).values()] == ["FINISHED"] * 2


@pytest.mark.slow  # tests/unit/processes/test_fresh.py has errors of other processes
def test_a_mistake_in_another_process_is_told_as_in_this_one(command, tmp_path):
    failing = ["backend.engine=tensorflow,torch", "trainer.accelerator=gpu", "trainer.epochs=1", "hydra.sweeper.retries=0"]

    done = command("-m", *TRIALS, "backend=keras", *failing, "hydra.sweeper.max_failure_rate=1")

    assert [trial.state.name for trial in trials_of(tmp_path)] == ["FAIL", "FAIL"]
    for trial in trials_of(tmp_path):
        assert "trainer.accelerator: is gpu, but the engine sees none" in trial.user_attrs["reason"]
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_trial_0_is_the_configs_own_values_and_the_best_config_runs_as_an_experiment(command, tmp_path):
    space = ["optimizer.lr=tag(log,interval(1e-4,1e-2))", "samples=interval(1,9)", "hydra.sweeper.n_trials=3"]

    done = command("-m", *TRIALS, *space, "hydra.sweeper.enqueue=[{optimizer.lr:0.001,samples:2}]", "tracking=[]")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "no trial can be pruned: MedianPruner (" in done.stdout + done.stderr
    assert "waits longer than 3 epochs" in done.stdout + done.stderr
    own, enqueued, sampled = trials_of(tmp_path)
    assert own.params["optimizer.lr"] == 0.006
    assert own.params["samples"] == 5
    assert enqueued.params == {"optimizer.lr": 0.001, "samples": 2}
    assert isinstance(sampled.params["samples"], int)
    assert 1 <= sampled.params["samples"] <= 9
    best = min((own, enqueued, sampled), key=lambda trial: trial.value)
    results = yaml.safe_load((tmp_path / "multirun/study/optimization_results.yaml").read_text())
    assert results["best_value"] == best.value
    with (tmp_path / "multirun/study/trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val/cer"]) for row in rows] == [own.value, enqueued.value, sampled.value]

    again = command("--config-dir", "multirun/study", "experiment=best")
    assert again.returncode == 0, again.stderr
    (config,) = (tmp_path / "outputs").glob("*/*/config.yaml")
    repeated = yaml.safe_load(config.read_text())
    assert repeated["optimizer"]["lr"] == pytest.approx(best.params["optimizer.lr"])
    assert repeated["samples"] == best.params["samples"]

    several = command("experiment=rerun_best", "seed=1,2")
    assert several.returncode == 0, several.stderr
    assert "± " in several.stdout
    assert "over 2 seeds" in several.stdout


@pytest.mark.slow
def test_seeds_per_trial_gives_mean_and_deviation_and_a_hopeless_trial_stops_after_its_first_seed(command, tmp_path):
    seeds = [
        "hydra.sweeper.seeds_per_trial=2",
        "hydra.sweeper.seeds_startup_trials=1",
        "objective.metric=val/loss",
        "hydra.sweeper.pruner=none",
    ]

    done = command("-m", *TRIALS, "optimizer.lr=0.003,1e-12", *seeds, "trainer.epochs=2", "tracking=[]")

    assert done.returncode == 0, done.stdout + done.stderr
    learnt, hopeless = trials_of(tmp_path)
    values = learnt.user_attrs["seed_values"]
    assert len(values) == 2
    assert learnt.value == pytest.approx(sum(values) / 2)
    assert learnt.user_attrs["deviation"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert hopeless.state.name == "PRUNED"
    assert len(hopeless.user_attrs["seed_values"]) == 1
    assert sorted(path.name for path in (tmp_path / "multirun/study/1").glob("seed_*")) == ["seed_1"]
    assert "±" in done.stdout


def test_several_objectives_leave_a_front_and_a_broken_constraint_ends_a_trial_before_training(command, tmp_path):
    goals = [
        "hydra.sweeper.objectives=[val/loss,params]",
        "hydra.sweeper.constraints=['params <= 20000','latency_ms <= 1000']",
    ]

    done = command("-m", *TRIALS, "model.hidden_sizes=[32],[64],[512]", *goals, "trainer.epochs=1", "tracking=[]")

    assert done.returncode == 0, done.stdout + done.stderr
    small, middle, large = trials_of(tmp_path)
    assert small.values[1] < middle.values[1] < 20000
    assert large.state.name == "PRUNED"
    assert "breaks model/parameters <= 20000" in large.user_attrs["reason"]
    assert large.constraints["model/parameters <= 20000"] > 0
    assert set(small.constraints) == {"model/parameters <= 20000", "model/latency_ms <= 1000"}
    assert all(value <= 0 for value in small.constraints.values())
    assert not (tmp_path / "multirun/study/2/checkpoints").exists()
    results = yaml.safe_load((tmp_path / "multirun/study/optimization_results.yaml").read_text())
    assert len(results["solutions"]) >= 1


def test_a_trial_whose_loss_is_not_finite_fails_alone_with_its_reason(command, tmp_path):
    done = command(
        "-m", *TRIALS, "optimizer.lr=0.003,1e30", "hydra.sweeper.retries=0", "trainer.gradient_clip_val=null", "trainer.epochs=6"
    )

    assert done.returncode == 0, done.stdout + done.stderr
    fine, broken = trials_of(tmp_path)
    assert fine.state.name == "COMPLETE"
    assert broken.state.name == "FAIL"
    assert "NonFiniteLossError" in broken.user_attrs["reason"]
    assert sorted(run.info.status for run in runs_of(tmp_path).values()) == ["FAILED", "FINISHED"]


@pytest.mark.slow
def test_the_mlflow_run_of_a_killed_worker_is_failed_with_the_reason(command, tmp_path):
    arguments = [
        "-m",
        *TRIALS,
        "seed=1,2",
        "trainer.epochs=200",
        "hydra/launcher=pool",
        "hydra.launcher.fork=false",
        "hydra.sweeper.retries=0",
    ]
    sweeper = subprocess.Popen([sys.executable, "-m", "speechtrain", *arguments], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    checkpoint = tmp_path / "multirun/study/0/checkpoints/last.ckpt"
    until = time.monotonic() + 60
    while not checkpoint.is_file() and time.monotonic() < until:
        time.sleep(0.1)
    worker = next(child for child in psutil.Process(sweeper.pid).children() if "speechtrain.sweep.workers.worker" in child.cmdline())

    worker.kill()
    while "SIGKILL" not in runs_of(tmp_path)["0"].data.tags.get("error", "") and time.monotonic() < until:
        time.sleep(0.1)
    sweeper.terminate()
    sweeper.wait(60)

    assert runs_of(tmp_path)["0"].info.status == "FAILED"
    assert "SIGKILL" in trials_of(tmp_path)[0].user_attrs["reason"]
