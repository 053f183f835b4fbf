from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace

import cloudpickle
import optuna
import psutil
import pytest
import yaml
from conftest import REPOSITORY
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from speechtrain.addresses import masked
from speechtrain.errors import ConfigError, UserError
from speechtrain.processes.identity import Process, Watch
from speechtrain.sweep.study.objectives import Constraint, directions_of
from speechtrain.sweep.study.samplers import can_prune, drop_defaults_of_other_class, make_pruner, node_of, sampler_factory
from speechtrain.sweep.study.storage import open_storage, storage_url, study_lock
from speechtrain.sweep.trial.job import violations
from speechtrain.sweep.trial.outcome import SweepJob, UnpicklableError, outcome_of_error
from speechtrain.sweep.workers.executors import LoggedTask, ThroughLauncher
from speechtrain.train import Result


@pytest.mark.parametrize(
    ("text", "metric", "value", "violation"),
    [
        ("params <= 2e6", "model/parameters", 2.5e6, 0.5e6),
        ("latency_ms<20", "model/latency_ms", 15.0, -5.0),
        ("val/exact >= 0.9", "val/exact", 0.8, 0.1),
        ("model/parameters ≤ 1000", "model/parameters", 1000, 0),
    ],
)
def test_a_constraint_is_positive_where_it_is_broken(text, metric, value, violation):
    constraint = Constraint.parse(text)

    assert constraint.metric == metric
    assert constraint.violation(value) == pytest.approx(violation)


def test_a_run_is_held_to_its_constraints_at_its_best_epoch(tmp_path):
    epochs = [{"val/exact": 0.2, "val/loss": 3.0}, {"val/exact": 0.95, "val/loss": 1.0}, {"val/exact": 0.5, "val/loss": 2.0}]
    result = Result({"model/parameters": 10.0}, 0.1, tmp_path, None, epochs, [], {})
    constraints = [Constraint.parse(text) for text in ("val/exact >= 0.9", "val/loss <= 0.5", "params <= 20")]

    assert violations(result, constraints) == pytest.approx(
        {"val/exact >= 0.9": -0.05, "val/loss <= 0.5": 0.5, "model/parameters <= 20": -10}
    )


def test_directions_follow_from_the_metrics():
    of_task = {"wer": "minimize", "exact": "maximize"}

    assert directions_of(["val/wer", "model/parameters", "val/exact"], None, of_task) == ["minimize", "minimize", "maximize"]
    assert directions_of(["val/wer"], "maximize", of_task) == ["maximize"]
    with pytest.raises(ConfigError, match="2 entries for 1 objectives"):
        directions_of(["val/wer"], ["minimize", "maximize"], of_task)


def test_what_a_sampler_proposes_follows_from_the_trial_number_and_the_history_alone():
    make = sampler_factory(node_of("tpe", "sampler"), conditional=False)

    def proposals(numbers):
        study = optuna.create_study(sampler=make(0))
        found = {}
        for number in numbers:
            study.sampler = make(number)
            found[number] = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)}).params["x"]
        return found

    first = proposals([0, 1, 2])
    assert first == proposals([0, 1, 2])
    assert len(set(first.values())) == 3


class Sampler(optuna.samplers.RandomSampler):
    def __init__(self, seed: int, group: bool = False, multivariate: bool = False) -> None:
        super().__init__(seed)
        self.grouped = group and multivariate


@pytest.mark.parametrize("conditional", [True, False])
def test_a_sampler_that_knows_groups_is_told_of_conditional_spaces(conditional):
    make = sampler_factory({"_target_": f"{__name__}.Sampler", "group": None}, conditional=conditional)

    assert make(0).grouped is conditional  # the multivariate estimate of TPE then covers each branch


@pytest.mark.parametrize("name", ["median", "percentile", "asha", "hyperband", "threshold", "patient"])
def test_every_pruner_in_conf_can_be_made(name):
    node = yaml.safe_load((REPOSITORY / "conf/hydra/sweeper/pruner" / f"{name}.yaml").read_text())
    if name == "threshold":
        node["upper"] = 1.0

    assert isinstance(make_pruner(node), optuna.pruners.BasePruner)


@pytest.mark.parametrize("name", ["tpe", "random", "nsgaii", "nsgaiii", "gp", "qmc", "grid"])
def test_every_sampler_in_conf_can_be_made(name):
    node = yaml.safe_load((REPOSITORY / "conf/hydra/sweeper/sampler" / f"{name}.yaml").read_text())

    assert isinstance(sampler_factory(node, conditional=False)(3), optuna.samplers.BaseSampler)


def test_a_sampler_that_a_package_is_missing_for_is_refused_before_a_trial():
    if importlib.util.find_spec("cmaes") is not None:
        pytest.skip("cmaes is installed")

    with pytest.raises(ConfigError, match=r"cmaes is not installed\n.*pip install cmaes"):
        sampler_factory(node_of("cmaes", "sampler"), conditional=False)


def test_nodes_in_a_node_are_built_as_well():
    inner = {"_target_": "optuna.samplers.RandomSampler"}
    sampler = sampler_factory({"_target_": "optuna.samplers.QMCSampler", "independent_sampler": inner}, conditional=False)(0)
    patient = {"_target_": "optuna.pruners.PatientPruner", "patience": 1}
    pruner = make_pruner(patient | {"wrapped_pruner": {"_target_": "optuna.pruners.NopPruner"}})

    optuna.create_study(sampler=sampler, pruner=pruner).ask({"x": optuna.distributions.CategoricalDistribution([1, 2])})
    with pytest.raises(ConfigError, match="takes no argument 'sed'"):
        sampler_factory({"_target_": "optuna.samplers.QMCSampler", "independent_sampler": inner | {"sed": 1}}, conditional=False)
    with pytest.raises(ConfigError, match=r"hydra.sweeper.pruner.wrapped_pruner.wrapped_pruner: optuna.pruners.PatientPruner needs it"):
        make_pruner(patient | {"wrapped_pruner": patient})


def test_another_class_takes_the_arguments_that_were_typed_and_not_those_of_the_option_it_replaces():
    node = {"_target_": "optuna.samplers.RandomSampler", "seed": 0, "n_ei_candidates": 24, "group": None, "sed": 1}

    assert drop_defaults_of_other_class(node, "sampler", "tpe", {"sed"}) == {"_target_": node["_target_"], "seed": 0, "sed": 1}
    assert drop_defaults_of_other_class(node, "sampler", "random", set()) == node


def test_a_process_is_told_apart_from_a_later_one_with_its_number():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    known = replace(Process.current(), pid=child.pid, started=psutil.Process(child.pid).create_time())
    assert known.is_alive()
    assert not replace(known, started=known.started - 100).is_alive()
    assert not replace(known, boot="another").is_alive()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not known.is_alive()  # a zombie
    child.wait()
    assert not known.is_alive()
    assert Process.current().is_alive()
    assert Process.from_dict(Process.current().to_dict()) == Process.current()
    assert Process.current().pid == os.getpid()


def test_a_heartbeat_that_stands_still_is_noticed_on_ones_own_clock():
    watch = Watch(patience=0.05)

    assert not watch.is_silent(7, "a")
    time.sleep(0.06)
    assert not watch.is_silent(7, "b")
    assert not watch.is_silent(7, "b")
    time.sleep(0.06)
    assert watch.is_silent(7, "b")


@pytest.mark.parametrize("address", ["sqlite:///50% {d} c#d.db", "sqlite:///a%3Fb/study.db?timeout=30", None])
def test_a_storage_whose_name_has_odd_characters_lies_there_with_its_locks_and_nothing_else(tmp_path, monkeypatch, address):
    folder = tmp_path / "a?b"
    folder.mkdir()
    monkeypatch.chdir(folder)
    url = storage_url(address and address.replace("a%3Fb/", ""), folder)
    study = optuna.create_study(storage=open_storage(url), study_name="odd")
    with study_lock(url, "odd"):
        study.add_trial(optuna.trial.create_trial(value=1.0))
    assert optuna.load_study(storage=open_storage(url), study_name="odd").best_value == 1.0
    file = {None: "study.journal"}.get(address) or address.partition("?")[0].rpartition("/")[2]
    assert (folder / file).is_file()
    assert all(path.name.startswith(file) for path in folder.iterdir())
    assert list(tmp_path.iterdir()) == [folder]


def test_a_storage_is_where_it_is_said_to_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert storage_url(None, tmp_path / "sweep") == f"journal:///{tmp_path}/sweep/study.journal"
    assert storage_url("sqlite:///a.db", tmp_path) == f"sqlite:///{tmp_path}/a.db"
    assert storage_url("sqlite:////b/a.db", tmp_path) == "sqlite:////b/a.db"
    assert storage_url("kept/study.journal", tmp_path) == f"journal:///{tmp_path}/kept/study.journal"
    assert storage_url("postgresql+psycopg://me@db/x", tmp_path) == "postgresql+psycopg://me@db/x"
    assert masked("postgresql+psycopg://me:secret@db/x") == "postgresql+psycopg://me:***@db/x"


@pytest.mark.parametrize(("name", "idle"), [("median", 3), ("percentile", 3), ("patient", 3), ("asha", 3), ("hyperband", 2)])
@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_a_pruner_that_waits_longer_than_trials_last_is_found(name, idle, direction):
    node = yaml.safe_load((REPOSITORY / "conf/hydra/sweeper/pruner" / f"{name}.yaml").read_text())
    assert not can_prune(node, range(idle), direction=direction, n_trials=8)
    assert can_prune(node, range(idle + 1), direction=direction, n_trials=8)


@pytest.mark.parametrize("bounds", [{"lower": 0.1}, {"upper": 0.9}, {"upper": 0.9, "n_warmup_steps": 1}])
def test_a_pruner_by_bounds_can_stop_what_diverges(bounds):
    node = {"_target_": "optuna.pruners.ThresholdPruner", **bounds}
    assert can_prune(node, range(2), direction="maximize", n_trials=8)
    assert can_prune(node | {"n_warmup_steps": 2}, range(2), direction="maximize", n_trials=8) is False


class FailingLauncher:
    """A launcher that fails before a job has a folder."""

    def launch(self, job_overrides, initial_job_idx):
        raise RuntimeError("cannot be composed")


def test_the_trace_of_a_job_that_got_no_folder_is_kept_where_the_others_are(tmp_path):
    executor = ThroughLauncher(FailingLauncher, 1, tmp_path)
    executor.submit(SweepJob(3, [], {}))
    (outcome,) = executor.wait(10)
    assert "cannot be composed" in outcome.reason
    assert "Traceback" in (tmp_path / "3" / "output.log").read_text()


def test_the_trace_of_a_job_is_written_in_the_process_that_a_launcher_runs_it_in(tmp_path, monkeypatch):
    job = OmegaConf.create({"hydra": {"runtime": {"output_dir": str(tmp_path / "3")}, "job": {"num": 3}}})
    monkeypatch.setattr(HydraConfig.instance(), "cfg", job)

    def fail(cfg):
        raise {"defect": ValueError, "mistake": UserError}[cfg.what]("went wrong")

    sent = cloudpickle.loads(cloudpickle.dumps(LoggedTask(fail)))
    with pytest.raises(UserError, match="went wrong"):
        sent(OmegaConf.create({"what": "mistake"}))
    assert not (tmp_path / "3").exists()
    with pytest.raises(ValueError, match="went wrong"):
        sent(OmegaConf.create({"what": "defect"}))
    assert "in fail\n" in (tmp_path / "3" / "output.log").read_text()


@pytest.mark.parametrize("what", ["cannot be read back", "cannot be written"])
def test_an_error_that_cannot_be_pickled_reaches_the_sweeper_as_its_reason(what, tmp_path, monkeypatch):
    job = OmegaConf.create({"hydra": {"runtime": {"output_dir": str(tmp_path / "3")}, "job": {"num": 3}}})
    monkeypatch.setattr(HydraConfig.instance(), "cfg", job)

    def fail(cfg):
        raise {"cannot be read back": TwoArgumentsError, "cannot be written": LockedError}[cfg.what](4, 2)

    with pytest.raises(UnpicklableError) as raised:
        LoggedTask(fail)(OmegaConf.create({"what": what}))
    outcome = outcome_of_error(7, cloudpickle.loads(cloudpickle.dumps(raised.value)))

    assert (outcome.number, outcome.ending, outcome.final) == (7, "failed", what == "cannot be written")
    assert "4 is not 2" in outcome.reason


def test_a_result_that_cannot_be_pickled_reaches_the_sweeper_as_its_text():
    results = [LoggedTask(lambda _, made=made: made)(OmegaConf.create()) for made in (0.5, [1, 2], threading.Lock())]

    assert results[:2] == [0.5, [1, 2]]
    assert results[2].startswith("<unlocked _thread.lock")


class TwoArgumentsError(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} is not {second}")


class LockedError(UserError):
    def __init__(self, first, second):
        super().__init__(f"{first} is not {second}")
        self.lock = threading.Lock()
