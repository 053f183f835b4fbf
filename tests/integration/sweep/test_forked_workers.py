"""Workers that are forked from one process, which has imported what they need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import psutil
import pytest
from toys import REPOSITORY

PROGRAM = """
import json, os, time
from pathlib import Path

import hydra
import numpy
import helper


@hydra.main(version_base="1.3", config_path=None, config_name=None)
def main(cfg):
    import psutil

    names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
    facts = {"pid": os.getpid(), "parent": os.getppid(), "session": os.getsid(0), "random": numpy.random.random()}
    facts |= {"environment": {name: os.environ.get(name) for name in names}, "imported_in": helper.PID}
    facts["forks"] = [each.pid for each in psutil.Process(os.getppid()).children() if "fork" in each.cmdline()]
    Path(f"facts.{cfg.x}.tmp").write_text(json.dumps(facts))
    Path(f"facts.{cfg.x}.tmp").rename(f"facts.{cfg.x}")
    until = time.monotonic() + 60
    while len(list(Path().glob("facts.?"))) < 2 or Path("hold").exists() and time.monotonic() < until:
        time.sleep(0.02)
    return cfg.x


main()
"""
HELPER = "import os\n\nPID = os.getpid()\n"


@pytest.fixture
def program(tmp_path):
    """Start the program above as a sweep of two workers; what it left running is killed."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "helper.py").write_text(HELPER)
    started = []

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "program.py", "-m", "hydra/sweeper=optuna", "hydra.sweeper.study_name=s", "hydra.sweeper.n_jobs=2"]
        command += ["hydra/launcher=pool", "+x=1,2", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        output = (tmp_path / "output.txt").open("ab")
        started.append(subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=output, stderr=output))
        return started[-1]

    yield start
    for process in psutil.process_iter(["cwd"]):
        if process.info["cwd"] == str(tmp_path) and process.pid != os.getpid():
            process.kill()


def facts_of(folder, sweep) -> list[dict]:
    until = time.monotonic() + 100
    while len(list(folder.glob("facts.?"))) < 2:
        assert time.monotonic() < until, (folder / "output.txt").read_text()
        assert sweep.poll() is None, (folder / "output.txt").read_text()
        time.sleep(0.02)
    return [json.loads((folder / f"facts.{x}").read_text()) for x in (1, 2)]


def servers(workers: list[dict]) -> set[int]:
    """The processes with the server's command line, which its forks have as well, that are no workers."""
    return {pid for worker in workers for pid in worker["forks"]} - {worker["pid"] for worker in workers}


def ended(folder, sweep) -> None:
    assert sweep.wait(100) == 0, (folder / "output.txt").read_text()


def test_workers_are_children_of_the_sweeper_that_share_imports_and_have_their_own_session_random_numbers_and_threads(program, tmp_path):
    buffered = "import sys\n\nsys.stdout.reconfigure(line_buffering=False, write_through=False)\n"
    (tmp_path / "helper.py").write_text(HELPER + buffered + "print('imported')\n")
    sweep = program("hydra.launcher.threads=2")
    first, second = facts_of(tmp_path, sweep)
    ended(tmp_path, sweep)

    assert first["pid"] != second["pid"]
    assert servers([first, second]) == {first["imported_in"]} == {second["imported_in"]}
    for worker in (first, second):
        assert worker["parent"] == sweep.pid
        assert worker["session"] == worker["pid"]
        assert worker["environment"]["OMP_NUM_THREADS"] == "2"
    assert first["random"] != second["random"]
    assert not psutil.pid_exists(first["imported_in"])
    assert (tmp_path / "multirun/s/workers.log").read_text().count("imported") == 1


def test_workers_with_a_gpu_each_import_the_modules_of_the_program_themselves_for_these_may_read_which_it_is(program, tmp_path):
    sweep = program("hydra.launcher.gpus=[3,5]")
    workers = facts_of(tmp_path, sweep)
    ended(tmp_path, sweep)

    assert sorted(worker["environment"]["CUDA_VISIBLE_DEVICES"] for worker in workers) == ["3", "5"]
    assert all(worker["imported_in"] == worker["pid"] for worker in workers)
    assert len(servers(workers)) == 1


@pytest.mark.parametrize(
    ("helper", "reason"),
    [
        ("import threading, time\n\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n", "have started 1 thread"),
        ("FILE = open('program.py')\n", "have opened {}/program.py"),
        ("import sys\n\nsys.modules['keras'] = sys\n", "have loaded keras"),
    ],
)
def test_workers_start_cold_where_forking_is_not_safe_and_a_line_says_why(program, tmp_path, helper, reason):
    (tmp_path / "helper.py").write_text(HELPER + helper)
    sweep = program()
    workers = facts_of(tmp_path, sweep)
    ended(tmp_path, sweep)

    assert all(worker["imported_in"] == worker["pid"] for worker in workers)
    assert not servers(workers)
    assert f"workers start cold: the imports {reason.format(tmp_path)}" in (tmp_path / "output.txt").read_text()


RESOLVED = """
import threading, time
from speechtrain.sweep.trial.runner import JobRunner

compose = JobRunner.compose_base


def compose_base(runner, overrides):
    compose(runner, overrides)
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()


JobRunner.compose_base = compose_base
"""


def test_a_thread_that_a_resolver_has_started_is_not_forked_along(program, tmp_path):
    (tmp_path / "helper.py").write_text(HELPER + RESOLVED)
    sweep = program()
    workers = facts_of(tmp_path, sweep)
    ended(tmp_path, sweep)

    assert all(worker["imported_in"] == worker["pid"] for worker in workers)
    assert "workers start cold: the resolvers of a job's config have started 1 thread" in (tmp_path / "output.txt").read_text()


def test_a_sweep_without_forks_starts_each_worker_cold(program, tmp_path):
    sweep = program("hydra.launcher.fork=false")
    workers = facts_of(tmp_path, sweep)
    ended(tmp_path, sweep)

    assert all(worker["imported_in"] == worker["pid"] for worker in workers)
    assert not servers(workers)


def test_a_killed_server_costs_no_worker_and_a_killed_worker_is_then_replaced_by_a_cold_one(program, tmp_path):
    (tmp_path / "hold").touch()
    sweep = program("hydra.sweeper.retries=1")
    workers = facts_of(tmp_path, sweep)
    psutil.Process(workers[0]["imported_in"]).kill()
    (tmp_path / "facts.1").unlink()
    psutil.Process(workers[0]["pid"]).kill()
    first, second = facts_of(tmp_path, sweep)
    (tmp_path / "hold").unlink()
    ended(tmp_path, sweep)

    assert first["imported_in"] == first["pid"]
    assert second == workers[1]
    assert "its process was ended by SIGKILL" in (tmp_path / "output.txt").read_text()
    assert "2 done" in (tmp_path / "output.txt").read_text()


def test_a_killed_sweeper_leaves_no_server_behind(program, tmp_path):
    (tmp_path / "hold").touch()
    sweep = program()
    workers = facts_of(tmp_path, sweep)
    server = psutil.Process(workers[0]["imported_in"])
    sweep.kill()
    sweep.wait()

    psutil.wait_procs([server], 20)
    assert not server.is_running()
    assert all(psutil.pid_exists(worker["pid"]) for worker in workers)  # they end what they have begun
    (tmp_path / "hold").unlink()
    psutil.wait_procs([psutil.Process(worker["pid"]) for worker in workers if psutil.pid_exists(worker["pid"])], 20)
    assert not any(psutil.pid_exists(worker["pid"]) for worker in workers)
