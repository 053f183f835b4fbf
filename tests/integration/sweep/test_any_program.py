"""Hydra programs that know nothing of speech: options are found, the official plugin's examples work, jobs report and are pruned."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from conftest import REPOSITORY, thinned
from optuna.trial import FrozenTrial

from speechtrain.sweep.study.storage import open_storage

SPHERE = """
import warnings
import hydra
from optuna.exceptions import ExperimentalWarning
warnings.filterwarnings("ignore", category=ExperimentalWarning)

@hydra.main(version_base=None, config_path="conf", config_name="config")
def sphere(cfg):
    return cfg.x**2 + cfg.y**2

if __name__ == "__main__":
    sphere()
"""
SPHERE_CONFIG = """
defaults: [{override hydra/sweeper: optuna}, {override hydra/sweeper/sampler: tpe}]
hydra:
  sweeper:
    sampler: {seed: 123}
    direction: minimize
    study_name: sphere
    storage: null
    n_trials: 6
    n_jobs: 1
    max_failure_rate: 0.0
    params: {x: "range(-5.5,5.5,step=0.5)", y: "choice(-5,0,5)"}
x: 1
y: 1
z: 1
"""
FRONT = """
import hydra

@hydra.main(config_path="conf", config_name="config")
def front(cfg):
    return 4 * cfg.x**2 + 4 * cfg.y**2, (cfg.x - 5) ** 2 + (cfg.y - 5) ** 2

if __name__ == "__main__":
    front()
"""
FRONT_CONFIG = """
defaults: [{override hydra/sweeper: optuna}, {override hydra/sweeper/sampler: nsgaii}]
hydra:
  sweeper:
    sampler: {seed: 123}
    direction: [minimize, minimize]
    study_name: front
    storage: null
    n_trials: 6
    params: {x: "range(0, 5, step=0.5)", y: "range(0, 3, step=0.5)"}
x: 1
y: 1
"""
CUSTOM = """
import hydra

@hydra.main(version_base=None, config_path="conf", config_name="config")
def sphere(cfg):
    return cfg.w**2 + cfg.x**2 + cfg.y**2 + cfg.z**2

def configure(cfg, trial):
    trial.suggest_float("z", trial.params["x"] - cfg.most, trial.params["x"] + cfg.most)
    trial.suggest_float("+w", 0.0, 1.0)

if __name__ == "__main__":
    sphere()
"""
CUSTOM_CONFIG = """
defaults: [{override hydra/sweeper: optuna}]
hydra:
  sweeper:
    study_name: custom
    n_trials: 4
    params: {x: "range(-5.5, 5.5, 0.5)", y: "choice(-5, 0, 5)"}
    custom_search_space: .custom-space.configure
x: 1
y: 1
z: 100
most: 0.5
"""
STEPS = """
import os
import hydra
from speechtrain.sweep import report

@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def steps(cfg):
    for step in range(6):
        if report(cfg.x, step, raises=cfg.raises) and not cfg.ignores:
            break
        with open(cfg.log, "a") as log:
            print(cfg.x, step, os.getpid(), file=log)
    return cfg.x

if __name__ == "__main__":
    steps()
"""
STEPS_CONFIG = """
defaults: [{override hydra/sweeper: optuna}]
hydra: {sweeper: {study_name: steps, pruner: {n_startup_trials: 1, n_warmup_steps: 1}}}
x: 0
raises: true
ignores: false
log: LOG
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., Run]:
    """Writes a program and its config, and gives what runs it."""

    def write(code: str, config: str, name: str = "program") -> Run:
        (tmp_path / "conf").mkdir()
        (tmp_path / f"{name}.py").write_text(code)
        (tmp_path / "conf" / "config.yaml").write_text(config.replace("LOG", str(tmp_path / "log.txt")))

        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, f"{name}.py", *arguments]
            env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
            return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)

        return run

    return write


def results_of(folder: Path, study: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((folder / "multirun" / study / "optimization_results.yaml").read_text())
    return content


def trials_of(folder: Path, study: str) -> Sequence[FrozenTrial]:
    storage = open_storage(f"journal:///{folder / 'multirun' / study / 'study.journal'}")
    return optuna.load_study(study_name=study, storage=storage).trials


def test_the_options_are_found_and_no_other_group_is_added_and_a_single_run_imports_nothing_of_ours(program, tmp_path):
    seen = "import sys; print('ours:', [name for name in sys.modules if 'speechtrain.' in name])"
    watched = SPHERE.replace("return", f"{seen}; return")
    run = program(watched, SPHERE_CONFIG)

    shown, alone = run("hydra/sweeper=optuna", "--cfg", "hydra", "-p", "hydra.sweeper"), run()
    listed = run("model=tdnn").stderr

    assert {"_target_: hydra_plugins.speechtrain_sweeper.OptunaSweeper", "check: null"} <= set(shown.stdout.splitlines()), shown.stderr
    assert alone.stdout.splitlines() == ["ours: []"], alone.stderr
    assert "Could not find 'model/tdnn'" in listed or "Key 'model' is not in struct" in listed


def test_the_official_plugins_example_of_one_objective_runs_unchanged(program, tmp_path):
    run = program(SPHERE, SPHERE_CONFIG)
    own = ["hydra.sweep.dir=theirs", "hydra.job.chdir=True", "hydra.sweeper.storage=sqlite:///theirs.db", "hydra.sweeper.study_name=other"]

    plain = run("--multirun")
    typed = run("--multirun", *own, "hydra/sweeper/sampler=random", "~z", "x=choice(0,1,2)", "y=0")

    assert plain.returncode == 0, plain.stderr
    best = results_of(tmp_path, "sphere")
    assert best["best_value"] == best["best_params"]["x"] ** 2 + best["best_params"]["y"] ** 2
    assert typed.returncode == 0, typed.stderr
    assert yaml.safe_load((tmp_path / "theirs" / "optimization_results.yaml").read_text())["best_params"] == {"x": 0}


def test_the_official_plugins_example_of_two_objectives_runs_unchanged(program, tmp_path):
    done = program(FRONT, FRONT_CONFIG)("--multirun", "x=range(0, 5)", "y=range(0, 3)")

    assert done.returncode == 0, done.stderr
    solutions = results_of(tmp_path, "front")["solutions"]
    assert all(solution["values"][0] == 4 * sum(value**2 for value in solution["params"].values()) for solution in solutions)
    assert "result 1" in done.stdout
    assert "result 2" in done.stdout
    assert (tmp_path / "multirun" / "front" / "trials.csv").read_text().startswith("trial,state,value 1,value 2,seconds,x,y,reason")


def test_the_official_plugins_example_of_a_custom_space_runs_unchanged_and_is_retried_with_the_same_values(program, tmp_path):
    once = "    if not __import__('os').path.exists('failed'):\n        open('failed', 'w').close()\n        raise RuntimeError\n"
    run = program(CUSTOM.replace("def sphere(cfg):\n", f"def sphere(cfg):\n{once}"), CUSTOM_CONFIG, "custom-space")

    done = run("--multirun", "most=0.3")

    assert done.returncode == 0, done.stderr
    trials = trials_of(tmp_path, "custom")
    assert all(abs(trial.params["z"] - trial.params["x"]) <= 0.3 for trial in trials)
    assert [trial.params for trial in trials if trial.system_attrs.get("speechtrain:retry_of") == 0] == [trials[0].params]
    params = results_of(tmp_path, "custom")["best_params"]
    assert results_of(tmp_path, "custom")["best_value"] == pytest.approx(sum(value**2 for value in params.values()))


@pytest.mark.parametrize(
    "launcher",
    thinned(
        [
            [],
            ["hydra/launcher=pool"],
            pytest.param(["hydra/launcher=joblib"], marks=pytest.mark.long),
            pytest.param(["hydra/launcher=submitit_local"], marks=pytest.mark.long),
        ],
        4,
    ),
    ids=["process", "pool", "joblib", "submitit"],
)
def test_a_job_of_another_program_reports_and_is_pruned_under_any_launcher(program, tmp_path, launcher):
    done = program(STEPS, STEPS_CONFIG)("--multirun", "x=0,1,2", *launcher)

    assert done.returncode == 0, done.stderr
    states = {trial.params["x"]: (trial.state.name, len(trial.intermediate_values)) for trial in trials_of(tmp_path, "steps")}
    assert states == {0: ("COMPLETE", 6), 1: ("PRUNED", 2), 2: ("PRUNED", 2)}
    assert "1 done, 2 pruned" in done.stdout


def test_a_trial_that_was_told_to_end_counts_as_pruned_whatever_its_job_returns(program, tmp_path):
    run = program(STEPS, STEPS_CONFIG)

    run("--multirun", "x=0,1", "raises=false", "ignores=true")

    assert [(trial.state.name, trial.value) for trial in trials_of(tmp_path, "steps")] == [("COMPLETE", 0.0), ("PRUNED", 1.0)]


def test_a_job_reports_to_nobody_where_there_is_no_sweep(program, tmp_path):
    run = program(STEPS, STEPS_CONFIG)

    alone = run("x=3")

    assert alone.returncode == 0, alone.stderr
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 6
