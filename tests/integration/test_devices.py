"""A run on two devices of one machine: two processes, joined by gloo, that are one training."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from conftest import TINY

import speechtrain

MODEL = ["model=mlp", "model.dropout=0", "trainer.epochs=3", "data.batch_size=5"]
Command = Callable[..., subprocess.CompletedProcess[str]]


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
    assert not [process for process in psutil.Process().children(recursive=True) if "speechtrain.follow" in process.cmdline()]


def test_a_run_on_two_devices_is_resumed_by_another_pair(tmp_path: Path) -> None:
    options = [*TINY, *MODEL, "scheduler=constant", "trainer.accelerator=cpu", "trainer.devices=2"]
    whole = speechtrain.train(speechtrain.compose(options, output_dir=tmp_path / "whole"))
    speechtrain.train(speechtrain.compose([*options, "trainer.limit_epochs=2"], output_dir=tmp_path / "part"))
    resumed = speechtrain.train(speechtrain.compose([*options, f"resume={tmp_path / 'part'}"], output_dir=tmp_path / "part"))
    assert resumed.history[-1]["train/loss"] == pytest.approx(whole.history[-1]["train/loss"], rel=1e-5)


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
        (second,) = (each for each in psutil.Process(run.pid).children(recursive=True) if "speechtrain.follow" in each.cmdline())
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


def test_ctrl_c_ends_all_processes(training: tuple[subprocess.Popen[bytes], psutil.Process]) -> None:
    run, second = training
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=60)
    assert run.returncode == 130
    gone, _ = psutil.wait_procs([second], timeout=20)
    assert gone


def test_sharded_weights_are_refused_by_name(command: Command) -> None:
    found = command(*TINY, "model=mlp", "trainer.strategy=fsdp", "trainer.accelerator=cpu", "trainer.devices=2")
    assert found.returncode == 2
    assert "trainer.strategy: is fsdp" in found.stderr
    assert "Traceback" not in found.stderr
