"""What a user sees of a sweep: mistakes told before anything starts, grids, jobs in parallel."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys

import pytest
import yaml
from conftest import TINY, thinned
from omegaconf import OmegaConf
from toys import TOY

PRUNER, PATIENT = "hydra.sweeper.pruner", "optuna.pruners.PatientPruner"


@pytest.mark.parametrize(
    ("arguments", "words"),
    thinned(
        [
            (["optimizer.lrr=1e-3,1e-2"], ["optimizer.lrr", "did you mean 'optimizer.lr'"]),
            (["model=tdnn,conformerr"], ["model: there is no 'conformerr'", "did you mean 'conformer'"]),
            (["model=tdnn,conformer", "model.d_model=96,144"], ["model.d_model: there is no such key"]),
            (["optimizer.lr=1e-3,fast"], ["optimizer.lr: must be a number, received 'fast'"]),
            (["trainer.epochs=3,0"], ["trainer.epochs: must be at least 1, received 0"]),
            (["model=conformer", "model.d_model=96,100", "model.n_heads=4,8"], ["model.d_model", "with model.d_model=100 model.n_heads=8"]),
            (["optimizer.lr=interval(1e-4,1e-2)"], ["hydra.sweeper.n_trials", "infinitely many points", "hydra.sweeper.n_trials=30"]),
            (["optimizer.lr=interval(1e-2,1e-4)", "hydra.sweeper.n_trials=3"], ["optimizer.lr", "tag(log,interval(low,high))"]),
            (["seed=interval(0.5,2)", "hydra.sweeper.n_trials=3"], ["seed: takes whole numbers"]),
            (["seed=1,2", "hydra.sweeper.n_trails=3"], ["hydra.sweeper.n_trails", "did you mean 'hydra.sweeper.n_trials'"]),
            (["seed=1,2", "hydra.sweeper.max_failure_rate=5"], ["hydra.sweeper.max_failure_rate: must be at least 0 and at most 1"]),
            (["seed=1,2", "hydra/launcher=pool", "hydra.launcher.threads=0"], ["hydra.launcher.threads: must be at least 1, received 0"]),
            (["seed=1,2", "hydra/launcher=ssh"], ["hydra.launcher.host"]),
            (["seed=1,2", "hydra.sweeper.n_trials=0"], ["hydra.sweeper.n_trials: must be at least 1"]),
            (["seed=1,2", "hydra.sweeper.pruner=medain"], ["hydra.sweeper.pruner: there is no 'medain'", "did you mean 'median'"]),
            (["seed=1,2", "hydra/sweeper/sampler=tp"], ["hydra/sweeper/sampler: there is no 'tp'", "did you mean 'tpe'"]),
            (
                ["seed=1,2", "+hydra.sweeper.sampler.sed=1"],
                ["hydra.sweeper.sampler.sed: optuna.samplers.TPESampler takes no argument 'sed'"],
            ),
            (["seed=1,2", "hydra.sweeper.constraints=['params < many']"], ["hydra.sweeper.constraints", "'params < many' cannot be read"]),
            (["seed=1,2", "hydra.sweeper.direction=down"], ["hydra.sweeper.direction: must be minimize or maximize"]),
            (["seed=1,2", "hydra.sweeper.objectives=[val/wer,size]"], ["hydra.sweeper.objectives[1]: there is no metric 'size'"]),
            (["seed=1,2", "hydra.sweeper.report=val/foo"], ["hydra.sweeper.report: there is no metric 'val/foo'", "val/loss"]),
            (["seed=1,2", "hydra.sweeper.report=val/loss", "objective.metric=val/exact"], ["hydra.sweeper.report: val/loss is to be min"]),
            (
                ["seed=1,2", f"{PRUNER}._target_={PATIENT}", f"{PRUNER}.wrapped_pruner._target_=x"],
                [f"{PRUNER}.patience: {PATIENT} needs it"],
            ),
            (["seed=1,2", "hydra/sweeper/pruner=none", f"{PRUNER}.n=1"], [f"{PRUNER}.n: there is no pruner that takes it"]),
            (["seed=1,2", "hydra.sweeper.enqueue=[{seed:7}]"], ["hydra.sweeper.enqueue[0].seed: 7 is not among choice(1, 2)"]),
            (["seed=1,2", "hydra.sweeper.enqueue=[{samples:7}]"], ["hydra.sweeper.enqueue[0].samples: is not swept"]),
            (["seed=1,2", "hydra.sweeper.when=[{if:{modell:x},params:{samples:[1,2]}}]"], ["if modell", "there is no such key or group"]),
            (["seed=1,2", "hydra.sweeper.when=[{params:{samples:[1,2]}}]"], ["hydra.sweeper.when: each entry has `if` and `params`"]),
            (["seed=1,2", "hydra.sweeper.repeat_best_of=nowhere"], ["hydra.sweeper.repeat_best_of", "no results of a sweep in nowhere"]),
            (
                ["seed=1,2", "hydra/sweeper/sampler=motpe"],
                ["hydra/sweeper/sampler: there is no 'motpe' any more", "hydra/sweeper/sampler=tpe"],
            ),
            (["seed=1,2", "hydra.sweeper.custom_search_space=x.y", "hydra.sweeper.n_trials=2"], ["there is no function 'x.y'"]),
            (
                ["--config-dir", "own", "experiment=swept,plain"],
                ["experiment: 'swept' sets keys of hydra.sweeper", "give experiment=swept alone"],
            ),
            (["model=conformer,fastconformer", "model.nheads=4"], ["model.nheads: there is no such key"]),
            (["model=glob(cnf*)"], ["model: no option fits glob(cnf*)", "conformer"]),
            (["sweep=llr"], ["sweep: there is no 'llr'", "did you mean 'lr'"]),
            (["seed=1,2", "hydra/launcher=pol"], ["hydra/launcher: there is no 'pol'", "did you mean 'pool'"]),
        ],
        5,
    ),
)
def test_a_mistake_in_a_sweep_is_told_before_anything_starts(command, tmp_path, arguments, words):
    experiments = tmp_path / "own" / "experiment"
    experiments.mkdir(parents=True)
    (experiments / "swept.yaml").write_text("# @package _global_\nhydra: {sweeper: {params: {seed: 'choice(1,2)'}}}\n")
    (experiments / "plain.yaml").write_text("# @package _global_\nsamples: 3\n")
    done = command("-m", *arguments)

    assert done.returncode == 2, done.stdout + done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "mlflow.db").exists()
    assert not list(tmp_path.glob("multirun/*/[0-9]*"))


@pytest.mark.cold
def test_a_mistake_in_a_swept_key_is_told_without_importing_a_framework(command):
    program = (
        "import sys, runpy; sys.argv = ['speechtrain', '-m', 'optimizer.lrr=1,2'];\n"
        "try: runpy.run_module('speechtrain', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'lightning', 'lhotse', 'mlflow', 'optuna') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_lists_make_a_grid_whose_points_run_once_each_however_often_the_command_is_given(toy):
    first = toy.run("x=1,2", "n=0,1,2")
    again = toy.run("x=1,2", "n=0,1,2")

    assert "6 done" in first.stdout
    assert "  1/6" in first.stdout
    assert "nothing was left to do" in again.stdout
    assert sorted((float(line[4])) for line in toy.log("start")) == [1, 1, 1, 2, 2, 2]


def test_more_trials_go_on_with_the_study_and_use_no_folder_again(toy):
    toy.run("x=interval(-5,5)", "hydra.sweeper.n_trials=3")
    done = toy.run("x=interval(-5,5)", "hydra.sweeper.n_trials=5")

    assert "3 of 5 were done before" in done.stdout
    assert [int(line[1]) for line in toy.log("start")] == [0, 1, 2, 3, 4]
    assert sorted(path.name for path in (toy.folder / "multirun/toy").glob("[0-9]*")) == ["0", "1", "2", "3", "4"]


def test_a_sweep_begins_with_the_best_of_an_earlier_one_and_half_of_its_trials_search(toy):
    toy.run("x=1,2,3", "n=5")
    later = "hydra.sweeper.study_name=later"
    done = toy.run("x=interval(-5,1.5)", later, "hydra.sweeper.warm_start=[toy]", "hydra.sweeper.n_trials=4")

    assert "warm start: 2 configs of 'toy' first (x); x 2 taken to the bound" in done.stdout, done.stdout + done.stderr
    begun = [float(line[4]) for line in toy.log("start")][3:]
    assert begun[:3] == [1.0, 1.5, begun[2]]  # the config's own value, which is the second best of the earlier one
    assert begun[2] not in (1.0, 1.5)
    assert len(begun) == 4


def test_without_a_name_the_same_sweep_finds_its_study_and_another_one_does_not(toy):
    unnamed = "hydra.sweeper.study_name=null"
    toy.run("x=1,2", unnamed)
    same = toy.run("x=1,2", unnamed)
    other = toy.run("x=1,2", "n=1", unnamed)

    assert "nothing was left to do" in same.stdout
    assert "2 done" in other.stdout
    assert "nothing was left" not in other.stdout
    assert len(list((toy.folder / "multirun").iterdir())) == 2


def test_a_finished_worker_gets_the_next_trial_at_once(toy):
    """One trial that waits for three others (a minute at most): with batches of two they would wait for its batch."""
    done = toy.run("x=range(2,12)", "bad=[2]", "fault=wait", "hydra.sweeper.n_jobs=2", "hydra/launcher=pool")

    assert "10 done" in done.stdout, done.stderr
    ends = [int(line[1]) for line in toy.log("end")]
    assert ends.index(0) >= 3  # in a batch it would end as the second at the latest


def test_a_choice_reaches_the_job_as_it_was_written(toy):
    values = ["a, b", "c=d", "it''s", "[1,2]", "null", "1e-3", "x y"]
    quoted = ",".join(f'"{value}"' for value in values)
    done = toy.run(f"+text={quoted}", "x=2")

    assert done.returncode == 0, done.stderr
    texts = [as_hydra_reads(path)["text"] for path in sorted((toy.folder / "multirun/toy").glob("*/.hydra/config.yaml"), key=str)]
    assert texts == values


def as_hydra_reads(path):
    return OmegaConf.to_container(OmegaConf.load(path), resolve=False)


def test_the_files_of_a_job_are_those_hydra_writes(toy):
    """`.hydra` of a job of ours beside that of Hydra's own sweeper."""
    own = ["n=3,4", "x=1.5", "+text='1e-3'", "+deep={a:[1,null,'2'],b:1}"]
    toy.run(*own)
    toy.run(*own, "hydra.sweep.dir=theirs", basic=True)

    for number, name in itertools.product("01", ("config.yaml", "overrides.yaml")):
        ours = as_hydra_reads(toy.folder / "multirun/toy" / number / ".hydra" / name)
        theirs = as_hydra_reads(toy.folder / "theirs" / number / ".hydra" / name)
        assert (ours if name == "config.yaml" else sorted(ours)) == (theirs if name == "config.yaml" else sorted(theirs))
    ours = yaml.safe_load((toy.folder / "multirun/toy/1/.hydra/hydra.yaml").read_text())["hydra"]
    theirs = yaml.safe_load((toy.folder / "theirs/1/.hydra/hydra.yaml").read_text())["hydra"]
    assert ours["job"]["num"] == theirs["job"]["num"] == 1
    assert set(ours["job"]["override_dirname"].split(",")) >= {"n=4", "x=1.5"}
    assert ours["runtime"]["output_dir"] == str(toy.folder / "multirun/toy/1")
    assert set(ours) == set(theirs)


def test_help_imports_nothing_heavy_and_lists_the_presets(command):
    done = command("--help")

    assert done.returncode == 0
    for preset in ("lr", "regularisation", "architecture", "quick", "pareto"):
        assert re.search(rf"\b{preset}\b", done.stdout)


@pytest.mark.slow
def test_two_models_with_sizes_of_their_own(command, tmp_path):
    when = "hydra.sweeper.when=[{if:{model:mlp},params:{model.stack:[1,2]}},{if:{model:tdnn},params:{model.channels:[16,32]}}]"

    done = command("-m", *TINY, "model=mlp,tdnn", when, "trainer.epochs=1", "hydra.sweeper.study_name=study", "hydra.sweeper.n_jobs=2")

    assert done.returncode == 0, done.stdout + done.stderr
    lines = [(tmp_path / f"multirun/study/{number}/.hydra/overrides.yaml").read_text() for number in range(4)]
    assert sum("model.stack" in line and "model=mlp" in line for line in lines) == 2
    assert sum("model.channels" in line and "model=tdnn" in line for line in lines) == 2
    assert "4 done" in done.stdout


def test_an_installed_official_plugin_is_noticed_and_stays_what_other_programs_use(toy, command, tmp_path):
    info = tmp_path / "elsewhere" / "hydra_optuna_sweeper-1.3.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hydra-optuna-sweeper\nVersion: 1.3.0\n")
    plugin = tmp_path / "elsewhere" / "hydra_plugins" / "hydra_optuna_sweeper.py"
    plugin.parent.mkdir()
    plugin.write_text(
        "from dataclasses import dataclass\nfrom hydra.core.config_store import ConfigStore\n"
        "@dataclass\nclass Conf:\n    _target_: str = 'hydra_plugins.hydra_optuna_sweeper.OptunaSweeper'\n    n_trials: int = 20\n"
        "ConfigStore.instance().store(group='hydra/sweeper', name='optuna', node=Conf, provider='optuna_sweeper')\n"
    )
    toy.more_path = str(tmp_path / "elsewhere")

    done = command("-m", *TINY, "model=mlp", "seed=1", "hydra.sweeper.n_trials=0", PYTHONPATH=toy.more_path)
    asked = [sys.executable, str(TOY / "app.py"), "--cfg", "hydra", "-p", "hydra.sweeper"]
    shown = subprocess.run(asked, cwd=tmp_path, env=toy.env, capture_output=True, text=True, check=False)

    assert "hydra.sweeper.n_trials: must be at least 1" in done.stderr
    assert "hydra_plugins.hydra_optuna_sweeper.OptunaSweeper" in shown.stdout, shown.stderr
    assert "hydra-optuna-sweeper 1.3.0 is installed as well" in done.stdout + done.stderr
    assert "pip uninstall hydra-optuna-sweeper" in done.stdout + done.stderr


def test_the_official_plugins_command_lines_work(toy):
    theirs = ["hydra/sweeper/sampler=random", "hydra.sweeper.sampler.seed=123", "hydra.sweeper.direction=maximize"]
    more = [
        "hydra.sweeper.max_failure_rate=0.0",
        "hydra.sweeper.n_jobs=1",
        "hydra.sweeper.n_trials=4",
        "+hydra.sweeper.params.n='choice(0,1)'",
    ]

    done = toy.run("x=interval(-5,5)", *theirs, *more)

    assert done.returncode == 0, done.stderr
    results = yaml.safe_load((toy.folder / "multirun/toy/optimization_results.yaml").read_text())
    trials = toy.trials()
    assert results["name"] == "optuna"
    assert results["best_value"] == max(trial.value for trial in trials)
    assert set(results["best_params"]) == {"x", "n"}


def test_another_config_does_not_go_on_in_an_old_study(toy):
    toy.run("n=0,1", "+samples=1")  # a key of ours that changes no result of ours

    done = toy.run("n=0,1", "x=3", "+samples=2")

    assert done.returncode != 0
    assert "x: the study 'toy' was started with 1.0, now it is 3" in done.stderr
    assert "samples: the study 'toy' was started with 1, now it is 2" in done.stderr
    assert len(toy.trials()) == 2


def test_none_of_equal_trials_is_called_the_best(toy):
    done = toy.run("x=1,3")

    assert "all equal  result 1" in done.stdout, done.stdout + done.stderr
    assert "best " not in done.stdout.replace("none is the best", "").partition("all equal so far")[2]


def test_two_studies_do_not_share_a_folder(toy):
    toy.run("n=0,1", "hydra.sweep.dir=here")

    done = toy.run("n=0,1", "hydra.sweep.dir=here", "hydra.sweeper.study_name=other")

    assert done.returncode != 0
    assert "hydra.sweep.dir: here holds the trials of the study 'toy'" in done.stderr
    assert len(toy.log("start")) == 2


@pytest.mark.parametrize("launcher", ["basic", "pool"])
def test_the_trace_of_a_trial_that_failed_is_in_its_output(toy, launcher):
    toy.run("x=1,2", "bad=[2]", "fault=raise", "hydra.sweeper.retries=0", f"hydra/launcher={launcher}")

    text = (toy.folder / "multirun/toy/1/output.log").read_text()
    assert text.count("RuntimeError: went wrong") == 1
    assert "job.py" in text
    assert not (toy.folder / "multirun/toy/0/output.log").exists() or not (toy.folder / "multirun/toy/0/output.log").read_text()
