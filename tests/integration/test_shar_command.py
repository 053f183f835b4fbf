"""Training from a server: killed within an epoch it goes on as if nothing had happened; what is gone ends it with a message."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from range_server import serving

from speechtrain import shard

Command = Callable[..., subprocess.CompletedProcess[str]]

KEYS = [*TINY[1:2], *TINY[5:], "model=tdnn", "model.channels=16", "data.batch_size=4", "trainer.epochs=3", "data.retries=6"]


def make_shards(folder: Path) -> Path:
    """Forty utterances in five tar files."""
    assert shard.run(["data=synthetic", "data.train_size=40", "data.val_size=8", "data.test_size=8", f"out={folder}", "shard_size=8"]) == 0
    return folder


def history(folder: Path) -> list[dict[str, Any]]:
    """The metrics of each epoch but those that time changes."""
    lines = [json.loads(line) for path in folder.rglob("history.jsonl") for line in path.read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key.rpartition("/")[2] in ("loss", "cer", "wer", "grad_norm", "lr")} for line in lines
    ]


def test_a_tar_file_that_is_gone_ends_the_training_with_its_address_and_code_2(tmp_path: Path, command: Command) -> None:
    folder = make_shards(tmp_path / "shards")
    (folder / "train" / "recording.000003.tar").unlink()
    with serving(folder, fails_each=20) as server:
        done = command("data=shar", f"data.root={server.address}", *KEYS)
    assert done.returncode == 2
    assert f"{server.address}/train/recording.000003.tar: there is no such file (404 Not Found)" in done.stderr
    assert "utterance 'train-" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["data.num_workers=2"]])
def test_a_training_that_was_killed_within_an_epoch_goes_on_as_if_it_had_not_been(
    tmp_path: Path, command: Command, more: list[str]
) -> None:
    with serving(make_shards(tmp_path / "shards"), fails_each=20, cuts_each=20, login="ann:s3cret-word") as server:
        words = [
            "data=shar",
            f"data.root={server.address.replace('//', '//ann:s3cret-word@')}",
            *KEYS,
            "data.cache_gb=0",
            "trainer.checkpoint.every_n_steps=1",
            *more,
        ]
        whole = command(*words, f"hydra.run.dir={tmp_path / 'whole'}")
        assert whole.returncode == 0, whole.stderr
        asked = len(server.asked)
        folder = tmp_path / "killed"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        line = [sys.executable, "-m", "speechtrain", *words, f"hydra.run.dir={folder}"]
        with subprocess.Popen(
            line, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
        ) as started:
            while len(server.asked) - asked < 0.55 * asked and started.poll() is None:
                time.sleep(0.01)
            assert started.poll() is None
            os.killpg(started.pid, signal.SIGKILL)
        assert len(history(folder)) < len(history(tmp_path / "whole"))
        resumed = command(f"resume={folder}", *more)
        assert resumed.returncode == 0, resumed.stderr
    assert history(folder) == history(tmp_path / "whole")
    assert server.failed > 5
