"""A run that is killed again and again, wherever it is, ends like one that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY

import speechtrain
from speechtrain.backends.callbacks import Callback, TrainResult
from speechtrain.processes import interrupts
from speechtrain.tracking.run_folder import write_run_file
from speechtrain.training import outcome

KILLS = 20
SMALL = [*TINY, "model=mlp", "trainer.epochs=2", "data.train_size=16"]


@pytest.fixture
def _listening() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    interrupts.listen()
    yield
    interrupts.forget()
    for number, handler in before.items():
        signal.signal(number, handler)


def known(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "run.json").read_text(encoding="utf-8")))


def test_a_run_killed_after_its_last_epoch_and_resumed_knows_what_an_uninterrupted_one_knows(tmp_path: Path) -> None:
    class Interrupted(Callback):
        def on_train_end(self, result: TrainResult) -> None:
            raise KeyboardInterrupt

    speechtrain.train(speechtrain.compose(SMALL, output_dir=tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        speechtrain.train(speechtrain.compose(SMALL, output_dir=tmp_path / "parts"), callbacks=[Interrupted()])
    assert known(tmp_path / "parts")["status"] == "KILLED"
    speechtrain.train(speechtrain.compose([*SMALL, f"resume={tmp_path / 'parts'}"], output_dir=tmp_path / "parts"))
    whole, parts = (known(tmp_path / name) for name in ("whole", "parts"))
    assert whole["metrics"].keys() == parts["metrics"].keys()
    for name, value in whole["metrics"].items():
        assert value == parts["metrics"][name] or "time/" in name or name.endswith("_per_s"), name
    assert (parts["objective"], parts["status"]) == (whole["objective"], "FINISHED")


@pytest.mark.usefixtures("_listening")
@pytest.mark.parametrize("step", ["load_checkpoint", "evaluate_splits", "summarise", "write_outputs"])
def test_a_signal_that_is_lost_in_any_step_after_the_training_ends_the_run_as_killed(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = getattr(outcome, step)

    def swallowing(*given: Any, **named: Any) -> Any:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            return original(*given, **named)

    monkeypatch.setattr(outcome, step, swallowing)
    with pytest.raises(KeyboardInterrupt):
        speechtrain.train(speechtrain.compose(SMALL, output_dir=tmp_path / "run"))
    assert known(tmp_path / "run")["status"] == "KILLED"


@pytest.mark.usefixtures("_listening")
def test_a_signal_while_the_end_of_a_run_is_written_down_comes_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(folder: Path, values: dict[str, Any]) -> None:
        if values.keys() == {"status"}:
            signal.raise_signal(signal.SIGTERM)
        write_run_file(folder, values)

    monkeypatch.setattr("speechtrain.tracking.recorder.write_run_file", write)
    with pytest.raises(KeyboardInterrupt):
        speechtrain.train(speechtrain.compose(SMALL, output_dir=tmp_path / "run"))
    assert known(tmp_path / "run")["status"] == "FINISHED"


@pytest.mark.slow
def test_a_run_killed_at_twenty_random_moments_ends_with_the_same_weights_and_numbers(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    arguments = [*TINY, "model=tdnn", "model.channels=48", "augment=specaugment", "trainer.epochs=60", "data.batch_size=4"]
    arguments += ["data.train_size=60", "trainer.ema_decay=0.9", "trainer.checkpoint.every_n_steps=1", "trainer.checkpoint.save_top_k=2"]
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    assert command(*arguments, cwd=tmp_path / "whole").returncode == 0
    folder, moments = tmp_path / "parts", random.Random(0)
    given, kills, inside = arguments, 0, 0
    while kills < KILLS:
        before = last(folder).stat().st_mtime_ns if last(folder) is not None else 0
        process = subprocess.Popen(
            [sys.executable, "-m", "speechtrain", *given],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and (last(folder) is None or last(folder).stat().st_mtime_ns == before):
            time.sleep(0.01)  # until it trains
        time.sleep(moments.uniform(0, 0.7))
        assert process.poll() is None, f"it was done after {kills} kills: give it more epochs"
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        inside += "halfway" in torch.load(last(folder), weights_only=True)
        given = ["resume=last"]
    assert inside > 0
    done = command("resume=last", cwd=folder)
    assert done.returncode == 0, done.stderr
    whole, parts = (torch.load(last(tmp_path / name), weights_only=True) for name in ("whole", "parts"))
    for key in ("state_dict", "trained"):
        assert whole[key].keys() == parts[key].keys()
        assert all(torch.equal(value, parts[key][name]) for name, value in whole[key].items())
    assert numbers(tmp_path / "whole") == numbers(folder)


def last(folder: Path) -> Path | None:
    return next(iter(folder.glob("outputs/*/*/checkpoints/last.ckpt")), None)


def numbers(folder: Path) -> list[dict[str, float]]:
    (path,) = folder.glob("outputs/*/*/history.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 60
    return [{name: value for name, value in row.items() if "time/" not in name and not name.endswith("_per_s")} for row in rows]
