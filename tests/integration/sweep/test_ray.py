"""Sweeps on Ray: actors with the resources of a trial, nodes that go away, programs that know nothing of speech. All need a cluster."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import TINY
from optuna.trial import TrialState
from ray_nodes import VARIABLES, RayNodes, ray_nodes
from toys import alive

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray: pip install 'speechtrain[ray]'"),
]

RAY = ["hydra/launcher=ray", "hydra.sweeper.retries=0"]
PATIENCE = 300
"""Seconds for a cluster and trainings on a busy machine."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayNodes]:
    with ray_nodes(1, 1, 1) as started:
        yield started


@pytest.fixture
def nodes(cluster: RayNodes, monkeypatch: pytest.MonkeyPatch) -> RayNodes:
    """Three nodes with room for one trial each."""
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    cluster.refill()
    return cluster


def outcomes(trials):
    return sorted((trial.params["x"], trial.state.name) for trial in trials)


def test_a_ray_of_the_sweeps_own_is_started_for_it_and_ends_with_it_and_its_workers_are_warm(toy):
    done = toy.run("x=range(0,6)", "epochs=2", *RAY, "hydra.sweeper.n_jobs=2", "hydra.launcher.init={num_cpus: 2}", timeout=PATIENCE)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 done" in done.stdout
    assert outcomes(toy.trials()) == [(x, "COMPLETE") for x in range(6)]
    assert len({line[2] for line in toy.log("start")}) <= 2  # six trials in two processes
    here = [process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(toy.folder)]
    assert [process.pid for process in here] in ([], [os.getpid()])
    assert "went wrong" not in (toy.folder / "multirun" / "toy" / "0" / "output.log").read_text()


def test_no_more_trials_run_than_there_are_resources_for_and_none_waits_as_a_running_one(toy):
    done = toy.run(
        "x=range(0,4)", "seconds=0.3", *RAY, "hydra.sweeper.n_jobs=4", "hydra.launcher.num_cpus=2", "hydra.launcher.init={num_cpus: 2}"
    )

    assert done.returncode == 0, done.stdout + done.stderr
    spans = [(float(start[3]), float(end[3])) for start, end in zip(toy.log("start"), toy.log("end"), strict=True)]
    assert all(later[0] >= earlier[1] for earlier, later in itertools.pairwise(spans))
    begun = sorted(trial.datetime_start.timestamp() for trial in toy.trials())
    assert all(start >= end - 0.05 for start, (_, end) in zip(begun[1:], spans, strict=False))  # claimed when the one before had ended
    assert "1 of 4 trials run at a time" in done.stdout + done.stderr


def test_trials_of_a_node_that_goes_away_run_elsewhere_and_there_are_exactly_n_trials(toy, nodes):
    space = ["x=interval(-5,5)", "hydra.sweeper.n_trials=8", "hydra.sweeper.pruner=none"]
    sweep = [*space, "epochs=4", "seconds=0.4", *RAY, "hydra.sweeper.n_jobs=3"]
    sweeper = toy.start(*sweep, f"hydra.launcher.address={nodes.address}")
    toy.wait_for(lambda: len(toy.running()) == 3, PATIENCE)
    pids = {int(line[1]): int(line[2]) for line in toy.log("start")}
    lost = next(number for number in toy.running() if nodes.node_of(pids[number]) != 0)

    nodes.kill(nodes.node_of(pids[lost]))
    assert sweeper.wait(PATIENCE) == 0, (toy.folder / "output.txt").read_text()

    trials = toy.trials()
    assert [trial.state for trial in trials].count(TrialState.COMPLETE) == 8
    (failed,) = (trial for trial in trials if trial.state is TrialState.FAIL)
    assert failed.number == lost
    assert re.fullmatch(r"its node \S+ went away", failed.user_attrs["reason"])
    (again,) = (trial for trial in trials if trial.system_attrs.get("speechtrain:retry_of") == lost)
    assert again.params == failed.params
    assert not alive(pids[lost])
    started = [int(line[1]) for line in toy.log("start")]
    assert len(started) == len(set(started)) == 9


def test_the_trial_of_an_actor_that_is_killed_is_tried_again_as_a_failed_one(toy, nodes):
    sweep = ["x=1,2,3", "hydra.sweeper.pruner=none", "epochs=4", "seconds=0.4", *RAY, "hydra.sweeper.retries=1", "hydra.sweeper.n_jobs=2"]
    sweeper = toy.start(*sweep, f"hydra.launcher.address={nodes.address}")
    toy.wait_for(lambda: len(toy.running()) == 2, PATIENCE)
    killed = min(toy.running())
    job = psutil.Process(next(int(line[2]) for line in toy.log("start") if int(line[1]) == killed))

    job.parent().kill()
    job.wait(10)  # with its actor
    assert sweeper.wait(PATIENCE) == 0, (toy.folder / "output.txt").read_text()

    trials = toy.trials()
    assert [trial.state for trial in trials].count(TrialState.COMPLETE) == 3
    (failed,) = (trial for trial in trials if trial.state is TrialState.FAIL)
    assert failed.number == killed
    assert "its worker on" in failed.user_attrs["reason"]


def test_a_job_that_kills_its_process_costs_that_trial_alone_and_keeps_its_actor(toy, nodes):
    done = toy.run(
        "x=1,2,3,4", "bad=[2]", "fault=kill", *RAY, "hydra.sweeper.n_jobs=1", f"hydra.launcher.address={nodes.address}", timeout=PATIENCE
    )

    assert "3 done, 1 failed" in done.stdout, done.stdout + done.stderr
    assert "SIGKILL" in next(trial for trial in toy.trials() if trial.state is TrialState.FAIL).user_attrs["reason"]
    assert len({line[2] for line in toy.log("start")}) == 2  # a new process beside the same actor


def test_ctrl_c_ends_what_runs_and_the_same_command_completes_the_study(toy, nodes):
    sweep = ["x=range(0,5)", "seconds=0.6", "epochs=2", *RAY, "hydra.sweeper.n_jobs=3", f"hydra.launcher.address={nodes.address}"]
    first = toy.start(*sweep)
    toy.wait_for(lambda: len(toy.running()) == 3, PATIENCE)
    first.send_signal(signal.SIGINT)
    assert first.wait(30) != 0
    toy.wait_for(lambda: not toy.running())
    states = [trial.state for trial in toy.trials()]
    assert TrialState.RUNNING not in states

    again = toy.run(*sweep, timeout=PATIENCE)

    assert "5 done" in again.stdout, again.stdout + again.stderr
    assert sorted(trial.params["x"] for trial in toy.trials() if trial.state is TrialState.COMPLETE) == list(range(5))


def test_jobs_end_with_a_sweeper_that_is_killed_and_the_same_command_completes_the_study(toy, nodes):
    sweep = ["x=range(0,5)", "seconds=0.6", "epochs=2", *RAY, "hydra.sweeper.n_jobs=3", f"hydra.launcher.address={nodes.address}"]
    first = toy.start(*sweep)
    toy.wait_for(lambda: len(toy.running()) == 3, PATIENCE)
    first.kill()
    first.wait()
    toy.wait_for(lambda: not toy.running())

    again = toy.run(*sweep, timeout=PATIENCE)

    assert "5 done" in again.stdout, again.stdout + again.stderr
    assert sorted(trial.params["x"] for trial in toy.trials() if trial.state is TrialState.COMPLETE) == list(range(5))


def test_a_batch_of_another_sweeper_runs_on_ray(toy):
    done = toy.run(
        "x=1,2,3", "hydra/launcher=ray", "hydra.launcher.num_cpus=0.5", "hydra.launcher.init={num_cpus: 1}", basic=True, timeout=PATIENCE
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(int(line[1]) for line in toy.log("end")) == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["hydra.launcher.num_cpus=64"], "hydra.launcher.num_cpus: a trial asks for 64 CPUs, and no node has more than 1 CPU"),
        (["hydra.launcher.resources={licence: 2}"], "hydra.launcher.resources.licence: a trial asks for 2 of 'licence'"),
        (["hydra.launcher.runtime_env={working_dir: nowhere}"], "hydra.launcher.runtime_env"),
    ],
)
def test_what_the_cluster_has_not_is_told_before_the_first_trial(toy, nodes, arguments, said):
    done = toy.run("x=1,2", *RAY, f"hydra.launcher.address={nodes.address}", *arguments, timeout=PATIENCE)

    assert done.returncode != 0
    assert said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    with contextlib.suppress(KeyError):  # there may be no study yet
        assert toy.trials() == []


def training(nodes: RayNodes) -> list[str]:
    model = ["model=mlp", "data.train_size=60", "trainer.epochs=8", "data.batch_size=4"]
    own = [each for each in TINY if not each.startswith("tracking")]
    sweep = ["optimizer.lr=0.001,0.002,0.003", "hydra.sweeper.n_jobs=2", "hydra.sweeper.pruner=none", "hydra.sweeper.study_name=lr"]
    tracking = ["tracking.mlflow.log_model=false", "tracking.mlflow.system_metrics=null"]
    return [*own, *model, *sweep, *tracking, *RAY, f"hydra.launcher.address={nodes.address}"]


def test_a_training_whose_node_goes_away_goes_on_from_its_checkpoint_on_another_and_mlflow_tells_the_truth(nodes, tmp_path, toy):
    import mlflow
    import optuna

    from speechtrain.sweep.study.storage import open_storage

    command = [sys.executable, "-m", "speechtrain", "-m", *training(nodes)]
    output = (tmp_path / "output.txt").open("ab")
    sweeper = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, **VARIABLES, "OMP_NUM_THREADS": "1"}, stdout=output, stderr=output)
    url = f"journal:///{tmp_path / 'multirun' / 'lr' / 'study.journal'}"

    def trials():
        return (
            optuna.load_study(study_name="lr", storage=open_storage(url)).trials if (tmp_path / "multirun/lr/study.json").exists() else []
        )

    def with_checkpoint():
        time.sleep(0.2)
        found = [trial for trial in trials() if trial.state is TrialState.RUNNING and 1 <= len(trial.intermediate_values) < 7]
        return [trial for trial in found if nodes.node_of(trial.system_attrs["speechtrain:job"]["pid"]) != 0]

    found = []
    toy.folder = tmp_path
    toy.wait_for(lambda: bool(found.extend(with_checkpoint()) or found) or sweeper.poll() is not None, seconds=PATIENCE)
    lost = found[0]
    nodes.kill(nodes.node_of(lost.system_attrs["speechtrain:job"]["pid"]))
    assert sweeper.wait(PATIENCE) == 0, (tmp_path / "output.txt").read_text()

    ended = trials()
    assert [trial.state for trial in ended].count(TrialState.COMPLETE) == 3
    assert ended[lost.number].state is TrialState.FAIL
    assert "went away" in ended[lost.number].user_attrs["reason"]
    again = next(trial for trial in ended if trial.system_attrs.get("speechtrain:retry_of") == lost.number)
    assert f"goes on from what trial {lost.number} has left" in (tmp_path / f"multirun/lr/{again.number}/output.log").read_text()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    parents = [run for run in runs if run.data.tags.get("speechtrain.kind") == "sweep"]
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert [run.info.status for run in parents] == ["FINISHED"]
    assert [run.info.status for run in children] == ["FINISHED"] * 3  # the trial that goes on resumes the run of the lost one


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="a node that does not see a folder is made by root")
def test_a_node_that_does_not_see_the_sweeps_folder_is_refused_where_the_study_lies_in_it_and_otherwise_its_trials_lie_elsewhere(
    toy, nodes, grpc_proxy, monkeypatch
):
    nodes.kill(1)
    nodes.kill(2)
    home = Path(f"{toy.folder}-home")
    script = f"mount -t tmpfs none {toy.folder} && exec {sys.executable} -m ray.scripts.scripts start --block --address={nodes.address}"
    arguments = ["--num-cpus=1", "--resources='{\"elsewhere\": 1}'", "--object-store-memory=80000000"]
    env = {**os.environ, **VARIABLES, "HOME": str(home)}
    home.mkdir()
    with subprocess.Popen(["unshare", "-m", "sh", "-c", f"{script} {' '.join(arguments)}"], env=env, cwd="/") as node:
        try:
            sweep = [
                "x=1,2",
                *RAY,
                f"hydra.launcher.address={nodes.address}",
                "hydra.launcher.resources={elsewhere: 1}",
                f"log={home}/log.txt",
            ]
            own = ["hydra.launcher.autoscales=true"]  # until the node is there
            refused = toy.run(*sweep, *own, timeout=PATIENCE)
            done = toy.run(*sweep, *own, f"hydra.sweeper.storage={grpc_proxy}", "hydra.sweep.dir=multirun/elsewhere", timeout=PATIENCE)
        finally:
            for process in [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]:
                process.kill()

    assert "hydra.sweeper.storage: the node" in refused.stderr, refused.stderr
    assert "2 done" in done.stdout, done.stdout + done.stderr
    assert "its trials lie in" in done.stdout + done.stderr
    (folder,) = (home / "speechtrain-ray").glob("elsewhere-*")
    assert (folder / "0" / "output.log").is_file()
    assert not (toy.folder / "multirun" / "toy" / "0" / "output.log").exists()
