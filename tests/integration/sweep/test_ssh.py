"""Runs on another machine: a real sshd on loopback, real rsync, real trainings."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import REPOSITORY, TINY
from mlflow import MlflowClient

pytestmark = pytest.mark.long

RUN = [*(item for item in TINY if item != "tracking=[]"), "model=mlp", "hydra.sweeper.study_name=study"]


@pytest.fixture
def box(tmp_path):
    """Options that reach this machine as `box`, with a home folder of its own for what is left there."""
    sshd = shutil.which("sshd") or "/usr/sbin/sshd"
    if not Path(sshd).is_file() or not shutil.which("rsync"):
        pytest.skip("sshd and rsync are not installed")
    keys = tmp_path / "keys"
    keys.mkdir(mode=0o700)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / name)], check=True)
    (keys / "authorized").write_text((keys / "user.pub").read_text())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    settings = [f"AuthorizedKeysFile={keys / 'authorized'}", f"HostKey={keys / 'host'}", "StrictModes=no", "UsePAM=no", "PidFile=none"]
    options = [word for setting in [*settings, "ListenAddress=127.0.0.1", "PermitRootLogin=yes"] for word in ("-o", setting)]
    server = subprocess.Popen([sshd, "-D", "-f", "/dev/null", "-p", str(port), *options], stderr=subprocess.DEVNULL)
    config = keys / "config"
    config.write_text(
        f"Host box\n  HostName 127.0.0.1\n  Port {port}\n  User {getpass.getuser()}\n  IdentityFile {keys / 'user'}\n"
        "  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n"
    )
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    there = tmp_path / "there"
    yield [
        "hydra/launcher=ssh",
        "hydra.launcher.host=box",
        f"hydra.launcher.ssh_options=[-F,{config}]",
        f"hydra.launcher.folder={there}",
        f"hydra.launcher.project={REPOSITORY}",
        f"hydra.launcher.setup='ln -sfn {Path(sys.executable).parent.parent} .venv'",
        "hydra.launcher.poll=0.2",
    ]
    server.kill()
    for process in psutil.process_iter(["cmdline"]):
        if str(there) in " ".join(process.info["cmdline"] or []):
            process.kill()


def the_run(there: Path) -> psutil.Process | None:
    """The training process there."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "speechtrain" in words and str(there / "runs") in " ".join(words) and "python" in words[0]:
            return process
    return None


def wait_for(what, seconds=60):
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
def test_results_and_mlflow_run_come_back(command, tmp_path, box):
    done = command("-m", *RUN, "trainer.epochs=2", *box)

    assert done.returncode == 0, done.stdout + done.stderr
    here = tmp_path / "multirun/study/0"
    assert (here / "checkpoints/last.ckpt").is_file()
    assert "epoch   2/2" in (here / "output.log").read_text()
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run, sweep = sorted(client.search_runs(["1"]), key=lambda found: found.data.tags.get("speechtrain.kind", ""))
    assert (run.info.status, sweep.info.status) == ("FINISHED", "FINISHED")
    assert run.data.tags["mlflow.parentRunId"] == sweep.info.run_id
    assert run.data.params["model._target_"].endswith("Mlp")
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "val/wer")] == [1, 2]
    assert {artifact.path for artifact in client.list_artifacts(run.info.run_id)} >= {"config.yaml", "transcripts.json"}
    again = command("-m", *RUN, "trainer.epochs=2", *box)
    assert "nothing was left to do" in again.stdout
    assert len(client.search_runs(["1"])) == 2


@pytest.mark.slow
def test_a_run_survives_the_connection_and_the_same_command_attaches_to_it(command, tmp_path, box):
    arguments = ["-m", *RUN, "data.train_size=400", "trainer.epochs=12", *box]
    first = subprocess.Popen([sys.executable, "-m", "speechtrain", *arguments], cwd=tmp_path, stdout=subprocess.DEVNULL)
    wait_for(lambda: list((tmp_path / "there/runs").glob("*/checkpoints/last.ckpt")))
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = the_run(tmp_path / "there")
    assert before is not None
    pid = before.pid

    wait_for(lambda: the_run(tmp_path / "there") is not None)
    assert the_run(tmp_path / "there").pid == pid
    done = command(*arguments)

    assert done.returncode == 0, done.stdout + done.stderr
    log = next((tmp_path / "there/runs").glob("*/output.log")).read_text()
    assert log.count("epoch   1/12") == 1
    assert "going on" not in log
    assert "1 done" in done.stdout


@pytest.mark.slow
def test_a_run_that_died_there_goes_on_from_its_checkpoint(command, tmp_path, box):
    arguments = ["-m", *RUN, "data.train_size=400", "trainer.epochs=12", *box]
    sweeper = subprocess.Popen([sys.executable, "-m", "speechtrain", *arguments], cwd=tmp_path, stdout=subprocess.DEVNULL)
    wait_for(lambda: list((tmp_path / "there/runs").glob("*/checkpoints/last.ckpt")))
    run = the_run(tmp_path / "there")
    assert run is not None
    run.kill()

    assert sweeper.wait(120) == 0
    log = next((tmp_path / "there/runs").glob("*/output.log")).read_text()
    assert "going on with epoch" in log
    assert "epoch  12/12" in log
    (run_in_mlflow,) = [
        run for run in MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").search_runs(["1"]) if "speechtrain.trial" in run.data.tags
    ]
    assert run_in_mlflow.info.status == "FINISHED"


def test_a_machine_that_cannot_be_reached_is_named(command, tmp_path):
    done = command("-m", *RUN, "hydra/launcher=ssh", "hydra.launcher.host=nowhere.invalid")

    assert done.returncode == 2
    assert "nowhere.invalid cannot be reached" in done.stderr
    assert "~/.ssh/config" in done.stderr
    assert "Traceback" not in done.stderr
