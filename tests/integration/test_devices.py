"""A run on two devices of one machine: two processes, joined by gloo, that are one training."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from conftest import TINY

import speechtrain
from speechtrain.backends.callbacks import Callback
from speechtrain.errors import ConfigError, RunError
from speechtrain.tracking.run_folder import write_run_file

pytestmark = pytest.mark.long

MODEL = ["model=mlp", "model.dropout=0", "trainer.epochs=3", "data.batch_size=5"]


def ranks_of(process: psutil.Process) -> list[psutil.Process]:
    """The ranks among the processes that a process has started, but for those that have ended."""
    ranks = []
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            ranks += [child] * ("speechtrain.training.rank" in child.cmdline())
    return ranks


def test_two_processes_have_the_loss_curve_of_one_with_the_same_batches(tmp_path: Path) -> None:
    results = {}
    for devices in (1, 2):
        options = ["trainer.accelerator=cpu", f"trainer.devices={devices}"]
        cfg = speechtrain.compose([*TINY, *MODEL, *options], output_dir=tmp_path / str(devices))
        results[devices] = speechtrain.train(cfg)
    assert len(results[1].history) == len(results[2].history) == 3
    for one, two in zip(results[1].history, results[2].history, strict=True):
        for name in ("train/loss", "train/grad_norm", "train/lr", "val/loss", "val/cer", "val/wer", "val/exact"):
            assert two[name] == pytest.approx(one[name], rel=1e-3), name
    assert results[2].metrics["test/loss"] == pytest.approx(results[1].metrics["test/loss"], rel=1e-3)
    assert not ranks_of(psutil.Process())


@pytest.mark.slow
def test_a_run_on_two_devices_is_resumed_by_another_pair(tmp_path: Path) -> None:
    options = [*TINY, *MODEL, "scheduler=constant", "trainer.accelerator=cpu", "trainer.devices=2"]
    whole = speechtrain.train(speechtrain.compose(options, output_dir=tmp_path / "whole"))
    speechtrain.train(speechtrain.compose([*options, "trainer.limit_epochs=2"], output_dir=tmp_path / "part"))
    resumed = speechtrain.train(speechtrain.compose([*options, f"resume={tmp_path / 'part'}"], output_dir=tmp_path / "part"))
    assert resumed.history[-1]["train/loss"] == pytest.approx(whole.history[-1]["train/loss"], rel=1e-5)


class Stop(Callback):
    """Ends the process as `kill -9` does, once a checkpoint was written inside the second epoch."""

    def on_batch_start(self, epoch: int, batch_index: int, batch_count: int) -> None:
        if epoch == 1 and batch_index == 2:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_two_devices_that_were_killed_within_an_epoch_go_on_as_if_they_had_not_been(tmp_path: Path) -> None:
    options = [*TINY, "model=mlp", "model.dropout=0.2", "trainer.epochs=3", "data.batch_size=5", "trainer.checkpoint.every_n_steps=1"]
    options += ["trainer.accelerator=cpu", "trainer.devices=2"]
    whole = speechtrain.train(speechtrain.compose(options, output_dir=tmp_path / "whole"))
    train = "speechtrain.train(speechtrain.compose(sys.argv[2:], output_dir=sys.argv[1]), callbacks=[test_devices.Stop()])"
    script = f"import sys, speechtrain, test_devices\n{train}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "part"), *options], env=environment, timeout=300, check=False)
    assert killed.returncode == -signal.SIGKILL
    resumed = speechtrain.train(speechtrain.compose([*options, f"resume={tmp_path / 'part'}"], output_dir=tmp_path / "part"))
    for one, two in zip(whole.history, resumed.history, strict=True):
        for name in ("train/loss", "train/grad_norm", "val/loss"):
            assert one[name] == two[name], name


@pytest.fixture
def training(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], psutil.Process]]:
    """A run on two devices that has finished an epoch and has many to go, and its second process."""
    command = [sys.executable, "-m", "speechtrain", *TINY, "model=mlp", "trainer.epochs=10000", "data.batch_size=5"]
    options = ["trainer.accelerator=cpu", "trainer.devices=2", f"hydra.run.dir={tmp_path / 'run'}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen([*command, *options], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run/checkpoints/last.ckpt").exists():
            assert run.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        (second,) = ranks_of(psutil.Process(run.pid))
        yield run, second
    finally:
        run.kill()


def test_a_process_that_dies_ends_the_run_with_what_it_wrote(training: tuple[subprocess.Popen[bytes], psutil.Process]) -> None:
    run, second = training
    second.send_signal(signal.SIGKILL)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 1
    assert b"process 1 of the training ended early" in errors
    assert b"Traceback" not in errors


def test_ranks_listen_on_the_loopback_interface_alone_and_leave_no_files(
    training: tuple[subprocess.Popen[bytes], psutil.Process],
) -> None:
    run, second = training
    sockets = [each for process in (psutil.Process(run.pid), second) for each in process.net_connections()]
    addresses = {each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN or not each.raddr}
    assert addresses == {"127.0.0.1"}, "gloo has not kept to the interface of GLOO_SOCKET_IFNAME, or something else listens"
    (meeting,) = Path(tempfile.gettempdir()).glob(f"speechtrain-ranks-{run.pid}-*")
    assert meeting.stat().st_mode & 0o077 == 0
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=60)
    assert not meeting.exists()


class Kill(Callback):
    """Kills the second process after a batch, while this one does something else than to wait for it."""

    def on_batch_end(self, epoch: int, batch_index: int, batch_count: int, loss: float, lr: float) -> None:
        (second,) = ranks_of(psutil.Process())
        second.kill()
        for _ in range(600):
            time.sleep(0.05)  # it is interrupted


def test_a_process_that_dies_while_another_is_at_work_is_not_taken_for_ctrl_c(tmp_path: Path) -> None:
    cfg = speechtrain.compose([*TINY, *MODEL, "trainer.accelerator=cpu", "trainer.devices=2"], output_dir=tmp_path)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(RunError, match="process 1 of the training ended early"):
        speechtrain.train(cfg, callbacks=[Kill()])
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "FAILED"
    assert signal.getsignal(signal.SIGINT) == handler


@pytest.mark.slow
@pytest.mark.cold
def test_ctrl_c_ends_all_processes(training: tuple[subprocess.Popen[bytes], psutil.Process]) -> None:
    run, second = training
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=60)
    assert run.returncode == 130
    gone, _ = psutil.wait_procs([second], timeout=20)
    assert gone


SHARDED = ["trainer.strategy=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"]
PARTS = ["model=conformer", "model.size=tiny", "model.dropout=0", "trainer.epochs=2", "data.batch_size=5"]
EVERYTHING = ["trainer.ema_decay=0.9", "trainer.accumulate_grad_batches=2", "task.intermediate=0.3", "trainer.gradient_checkpointing=true"]


@pytest.mark.slow
def test_sharded_weights_are_trained_like_whole_ones(tmp_path: Path) -> None:
    results, files = {}, {}
    for strategy in ("ddp", "fsdp"):
        cfg = speechtrain.compose([*TINY, *PARTS, *EVERYTHING, *SHARDED, f"trainer.strategy={strategy}"], output_dir=tmp_path / strategy)
        results[strategy] = speechtrain.train(cfg)
        files[strategy] = torch.load(tmp_path / strategy / "checkpoints/last.ckpt", weights_only=True)
    for whole, sharded in zip(results["ddp"].history, results["fsdp"].history, strict=True):
        for name in ("train/loss", "train/grad_norm", "val/loss", "val/cer"):
            assert sharded[name] == pytest.approx(whole[name], rel=1e-3), name
    assert results["fsdp"].metrics["test/loss"] == pytest.approx(results["ddp"].metrics["test/loss"], rel=1e-3)
    for part in ("state_dict", "trained"):
        assert {name: value.shape for name, value in files["fsdp"][part].items()} == {
            name: value.shape for name, value in files["ddp"][part].items()
        }
    torch.testing.assert_close(files["fsdp"]["optimizer_states"], files["ddp"]["optimizer_states"], rtol=1e-2, atol=1e-4)


@pytest.mark.slow
def test_a_run_with_sharded_weights_and_one_with_whole_ones_go_on_with_each_other(tmp_path: Path) -> None:
    options = [*TINY, *MODEL, "scheduler=constant"]
    whole = speechtrain.train(speechtrain.compose(options, output_dir=tmp_path / "whole"))
    for first, then in ((SHARDED, []), ([], SHARDED)):
        folder = tmp_path / str(len(first))
        speechtrain.train(speechtrain.compose([*options, *first, "trainer.limit_epochs=2"], output_dir=folder))
        resumed = speechtrain.train(speechtrain.compose([*options, *then, f"resume={folder}"], output_dir=folder))
        assert resumed.history[-1]["train/loss"] == pytest.approx(whole.history[-1]["train/loss"], rel=1e-3)


@pytest.mark.slow
def test_a_run_with_sharded_weights_that_was_killed_behind_its_last_epoch_is_measured_when_it_is_resumed(tmp_path: Path) -> None:
    options = [*TINY, *MODEL, *SHARDED, "trainer.epochs=1"]
    before = speechtrain.train(speechtrain.compose(options, output_dir=tmp_path))
    write_run_file(tmp_path, {"status": "KILLED"})  # while it was measured
    after = speechtrain.train(speechtrain.compose([*options, f"resume={tmp_path}"], output_dir=tmp_path))
    assert after.metrics["test/loss"] == pytest.approx(before.metrics["test/loss"], rel=1e-5)


@pytest.mark.slow
def test_sharded_weights_begin_with_those_that_the_first_process_was_given(tmp_path: Path) -> None:
    speechtrain.train(speechtrain.compose([*TINY, *MODEL], output_dir=tmp_path / "before"))
    losses = []
    for name, devices in (("one", []), ("two", SHARDED)):
        options = [*TINY, *MODEL, *devices, "trainer.epochs=1", f"init_from={tmp_path / 'before'}"]
        losses.append(speechtrain.train(speechtrain.compose(options, output_dir=tmp_path / name)).history[0]["train/loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["trainer.strategy=fsdp_cpu_offload"], "trainer.strategy: is fsdp_cpu_offload, which is not available"),
        (["trainer.devices=1"], "trainer.strategy: is fsdp, and there is one device"),
        (["trainer.precision=16-mixed"], "trainer.precision: is 16-mixed; losses of sharded weights are not scaled"),
        (["trainer.find_lr=true"], "trainer.find_lr: is true; sharded weights cannot be tried out"),
        (["backend.compile=true"], "backend.compile: is true; sharded weights are not compiled"),
    ],
)
def test_what_sharded_weights_cannot_do_is_refused(tmp_path: Path, options: list[str], told: str) -> None:
    cfg = speechtrain.compose([*TINY, "model=mlp", *SHARDED, *options], output_dir=tmp_path / "run")
    with pytest.raises(ConfigError, match=re.escape(told)):
        speechtrain.train(cfg)
