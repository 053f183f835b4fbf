"""One training of several processes that a launcher has started: torchrun's agents on the loopback interface, and Slurm's variables."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import mlflow
import psutil
import pytest
from conftest import TINY

import speechtrain

pytestmark = pytest.mark.long

MODEL = ["model=mlp", "trainer.epochs=3", "data.batch_size=5", "trainer.accelerator=cpu"]
RUN = [*TINY, *MODEL]
TIMES = ("time/", "train/audio_s_per_s")


def history(folder: Path) -> list[dict[str, float]]:
    """The metrics of each epoch of the run in a folder, without what depends on the time."""
    epochs = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{name: value for name, value in epoch.items() if not name.startswith(TIMES)} for epoch in epochs]


@pytest.fixture(scope="module")
def on_two_devices(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    """The epochs of the same run with `trainer.devices=2`."""
    folder = tmp_path_factory.mktemp("two")
    speechtrain.train(speechtrain.compose([*RUN, "trainer.devices=2"], output_dir=folder))
    return history(folder)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def agent(folder: Path, options: Sequence[str], arguments: Sequence[str], **environment: str) -> subprocess.Popen[str]:
    """One of torchrun's agents, with the command that it starts."""
    words = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "speechtrain", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(words, cwd=folder, env={**os.environ, **environment}, **pipes)  # type: ignore[call-overload, no-any-return]


def ranks_of(process: subprocess.Popen[str]) -> dict[int, psutil.Process]:
    """The processes that an agent has started, by their numbers."""
    ranks = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "speechtrain" in child.cmdline() and "data=synthetic" in child.cmdline():
                ranks[child.pid] = child
    return ranks


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_run_whose_process_is_killed_goes_on_exactly_when_torchrun_starts_it_again(
    tmp_path: Path, on_two_devices: list[dict[str, float]]
) -> None:
    options = ["--standalone", "--nproc-per-node=2", "--max-restarts=1", "--monitor-interval=0.1"]
    torchrun = agent(tmp_path, options, [*RUN, "callbacks=[slowly.Slowly]"], PYTHONPATH=str(tmp_path))
    (tmp_path / "slowly.py").write_text(SLOWLY)
    try:
        (checkpoint,) = wait_for_any(tmp_path, "outputs/*/*/checkpoints/last.ckpt", torchrun)
        folder = checkpoint.parent.parent
        leader = int((tmp_path / "leader").read_text())
        (second,) = (rank for number, rank in ranks_of(torchrun).items() if number != leader)
        second.send_signal(signal.SIGKILL)
        (tmp_path / "go").touch()
        output, _ = torchrun.communicate(timeout=120)
    finally:
        torchrun.kill()
    assert torchrun.returncode == 0, output
    assert [path.parent for path in tmp_path.glob("outputs/*/*/run.json")] == [folder]
    assert json.loads((folder / "run.json").read_text())["status"] == "FINISHED"
    assert history(folder) == on_two_devices
    assert len(re.findall(r"epoch +3\b", output)) == 1, output


SLOWLY = '''
import os
import time
from pathlib import Path
from speechtrain.backends.callbacks import Callback


class Slowly(Callback):
    """Waits behind the first epoch until the file `go` is there; it is in the process that leads alone."""

    def on_epoch_start(self, epoch):
        Path("leader").write_text(str(os.getpid()))
        while epoch > 0 and not Path("go").exists():
            time.sleep(0.02)
'''


def wait_for_any(folder: Path, pattern: str, process: subprocess.Popen[str], seconds: float = 120) -> list[Path]:
    until = time.monotonic() + seconds
    while not (found := list(folder.glob(pattern))):
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < until
        time.sleep(0.02)
    return found


SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost"}


Processes = list[subprocess.Popen[str]]


@contextlib.contextmanager
def started(folder: Path, commands: Sequence[Sequence[str]], folders: Mapping[int, Path] | None = None) -> Iterator[Processes]:
    """Processes of one Slurm job on two machines, one each; ended when the block is left."""
    environment = {**os.environ, **SLURM, "MASTER_PORT": str(free_port())}
    processes = []
    for rank, arguments in enumerate(commands):
        own = {**environment, "SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank), "SLURM_LOCALID": "0"}
        words = [sys.executable, "-m", "speechtrain", *arguments]
        place = (folders or {}).get(rank, folder)
        processes.append(subprocess.Popen(words, cwd=place, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()


def ended(folder: Path, commands: Sequence[Sequence[str]], folders: Mapping[int, Path] | None = None) -> list[tuple[int, str, str]]:
    """The exit code and what is printed of each of these processes."""
    with started(folder, commands, folders) as processes:
        printed = [process.communicate(timeout=120) for process in processes]
        return [(process.returncode, *texts) for process, texts in zip(processes, printed, strict=True)]


def test_tasks_of_slurm_on_two_machines_train_as_two_devices_do(tmp_path: Path, on_two_devices: list[dict[str, float]]) -> None:
    (tmp_path / "other").mkdir()  # which shares nothing with the first
    (first, second) = ended(tmp_path, [RUN, RUN], {1: tmp_path / "other"})
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    (folder,) = (path.parent for path in tmp_path.glob("outputs/*/*/run.json"))
    assert history(folder) == on_two_devices
    assert "results" in first[1]
    assert second[1:] == ("", "")
    assert not [*(tmp_path / "other").iterdir()]


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        (["trainer.epochs=0"], ["trainer.epochs=0"], "trainer.epochs: must be at least 1, received 0"),
        (["trainer.devices=2"], ["trainer.devices=2"], "trainer.devices: is 2, and srun has started 1 on each machine"),
        (["seed=1"], ["seed=2"], "process 1 on .* was given .* seed=2, and process 0 .* seed=1"),
        (["nosuch=1"], ["nosuch=1"], "nosuch: "),
        pytest.param(
            ["-m", "seed=1,2"],
            ["-m", "seed=1,2"],
            "asks for a sweep, and srun has started 2 processes of one training",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_mistake_ends_all_processes_with_one_message(tmp_path: Path, first: list[str], second: list[str], told: str) -> None:
    one, two = ended(tmp_path, [[*RUN, *first], [*RUN, *second]])
    assert (one[0], two[0]) == (2, 2), one[2] + two[2]
    assert two[1:] == ("", "")
    assert len(re.findall(told, one[2])) == 1, one[2]
    assert "Traceback" not in one[2]


def test_data_that_one_machine_has_otherwise_end_all_processes_with_its_name(tmp_path: Path, corpus: Callable[..., Path]) -> None:
    folder = corpus(["ab", "ba", "aa", "bb"])
    corpus(["ab"], "valid.jsonl")
    other = tmp_path / "other"
    shutil.copytree(folder, other / "corpus")
    lines = (folder / "train.jsonl").read_text().splitlines(keepends=True)
    (other / "corpus/train.jsonl").write_text("".join(lines[:3]))
    options = [
        "tracking=[]",
        "model=mlp",
        "features=logmel_8k",
        "data=manifest",
        "data.root=corpus",
        "data.val=valid.jsonl",
        "data.test=null",
    ]
    one, two = ended(tmp_path, [options, options], {1: other})
    assert (one[0], two[0]) == (2, 2), one[2] + two[2]
    assert two[1:] == ("", "")
    assert re.search("process 1 on .*: train has 3 utterances here, which are not the 4 that process 0 has\n +-> give all", one[2]), one[2]
    assert one[2].count("process 1") == 1


@pytest.mark.slow
def test_a_trial_of_two_tasks_is_one_training(tmp_path: Path, on_two_devices: list[dict[str, float]]) -> None:
    options = ["hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2", "hydra.sweeper.n_trials=1", "hydra.sweep.dir=sweep"]
    command = [sys.executable, "-m", "speechtrain", "-m", *RUN, *options, "optimizer.lr=interval(0.005,0.02)"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert history(tmp_path / "sweep/0") == on_two_devices  # the first trial has the values of the config itself
    assert "devices: 2" in (tmp_path / "sweep/0/config.yaml").read_text()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.slow
def test_a_run_on_two_machines_goes_on_when_one_of_them_is_lost_and_replaced(tmp_path: Path, strategy: str) -> None:
    own = [*RUN, "trainer.epochs=4", f"trainer.strategy={strategy}"]
    speechtrain.train(speechtrain.compose([*own, "trainer.devices=4"], output_dir=tmp_path / "whole"))
    (tmp_path / "slowly.py").write_text(SLOWLY)
    endpoint = f"--rdzv-endpoint=127.0.0.1:{free_port()}"
    options = ["--nnodes=2", "--nproc-per-node=2", "--rdzv-backend=c10d", endpoint, "--rdzv-id=ours", "--max-restarts=3"]
    command = [*own, "callbacks=[slowly.Slowly]", "tracking=[mlflow]", "hydra.run.dir=run"]
    environment = {"PYTHONPATH": str(tmp_path), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    first = agent(tmp_path, options, command, **environment)
    wait_for_port(endpoint)
    agents = [first, agent(tmp_path, options, command, **environment)]
    try:
        wait_for(tmp_path / "run/checkpoints/last.ckpt", first)
        lost = ranks_of(agents[1])
        agents[1].send_signal(signal.SIGKILL)
        gone, _ = psutil.wait_procs(lost.values(), timeout=20)
        assert len(gone) == 2, "processes go on without their agent"
        (tmp_path / "go").touch()
        agents.append(agent(tmp_path, options, command, **environment))
        outputs = [each.communicate(timeout=240)[0] for each in (first, agents[2])]
    finally:
        for each in agents:
            each.kill()
    assert [first.returncode, agents[2].returncode] == [0, 0], "\n".join(outputs)
    for epoch, whole in zip(history(tmp_path / "run"), history(tmp_path / "whole"), strict=True):
        assert epoch == pytest.approx(whole, rel=1e-6)  # of more than two numbers the sum depends on how gradients are packed
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs(["1"])
    assert run.info.status == "FINISHED"
    assert [each.step for each in client.get_metric_history(run.info.run_id, "train/loss")] == [1, 2, 3, 4]


def wait_for_port(endpoint: str) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", int(endpoint.rpartition(":")[2])), 1).close()
            return
        time.sleep(0.1)
