"""The command a user types, from start to end, in an empty folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY, thinned
from mlflow import MlflowClient
from mlflow.entities import Run

Command = Callable[..., subprocess.CompletedProcess[str]]

SMALL = [item for item in TINY if not item.startswith("tracking")] + ["model=mlp", "data.batch_seconds=15"]


def runs(folder: Path) -> list[Run]:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("speechtrain")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"]))


def history(folder: Path, run: Run) -> dict[str, list[tuple[int, float]]]:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    names = [name for name in run.data.metrics if not name.endswith("_per_s") and not name.startswith(("time/", "system/"))]
    return {name: [(item.step, item.value) for item in client.get_metric_history(run.info.run_id, name)] for name in names}


def started(arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    """The command, running; its output comes line by line."""
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "speechtrain", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def interrupt_when(arguments: list[str], folder: Path, said: str, with_signal: signal.Signals = signal.SIGINT) -> tuple[int, str]:
    """Start the command, press Ctrl-C (or another signal) once its output holds `said`; its exit code and output."""
    process = started(arguments, folder)
    assert process.stdout is not None
    output = ""
    for line in process.stdout:
        output += line
        if re.search(said, line):
            process.send_signal(with_signal)
            break
    output += process.stdout.read()
    return process.wait(timeout=120), output


@pytest.mark.cold
def test_a_run_reports_keeps_and_tracks_what_it_did(command: Command, tmp_path: Path) -> None:
    done = command(*SMALL, "trainer.epochs=2", "samples=3")
    assert done.returncode == 0, done.stderr
    for said in (
        "model      mlp",
        "trainer    default epochs=2",
        "epoch   2/2",
        "audio s/s",
        "test ",
        "ref  ",
        "  hyp",
        "checkpoint  ",
        "make ui",
    ):
        assert said in done.stdout, said
    assert done.stdout.count("  ref  ") == 3
    folder = next((tmp_path / "outputs").glob("*/*"))
    assert (folder / "config.yaml").is_file()
    assert json.loads((folder / "run.json").read_text())["status"] == "FINISHED"
    checkpoint = re.search(r"checkpoint  (\S+)", done.stdout)
    assert checkpoint is not None
    assert (tmp_path / checkpoint[1]).is_file()

    (run,) = runs(tmp_path)
    assert run.info.status == "FINISHED"
    assert run.data.params["model.hidden_sizes"] == "[256, 256]"
    assert run.data.params["trainer.checkpoint.save_top_k"] == "1"
    assert {"host", "python", "version.torch", "overrides"} <= set(run.data.tags)
    expected = {f"{split}/{name}" for split in ("val", "test") for name in ("loss", "cer", "wer", "exact")}
    expected |= {"train/loss", "train/lr", "train/grad_norm", "train/audio_s_per_s", "values/data skipped", "values/data infeasible"}
    assert expected <= set(run.data.metrics)
    assert [step for step, _ in history(tmp_path, run)["val/wer"]] == [1, 2]
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert {"config.yaml", "transcripts.json", "checkpoints"} <= {item.path for item in client.list_artifacts(run.info.run_id)}
    table = json.loads(Path(client.download_artifacts(run.info.run_id, "transcripts.json")).read_text())
    assert table["columns"] == ["id", "reference", "hypothesis", "confidence"]
    assert len(table["data"]) == 8


def test_after_ctrl_c_the_run_goes_on_where_it_was_and_ends_like_an_uninterrupted_one(command: Command, tmp_path: Path) -> None:
    arguments = [*SMALL, "trainer.epochs=12", "model=tdnn", "model.channels=32"]
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    assert command(*arguments, cwd=tmp_path / "whole").returncode == 0

    code, output = interrupt_when(arguments, tmp_path / "parts", r"epoch   2/12")
    assert code == 130, output
    assert "Traceback" not in output
    assert "resume=last" in output
    (run,) = runs(tmp_path / "parts")
    assert run.info.status == "KILLED"

    done = command("resume=last", cwd=tmp_path / "parts")
    assert done.returncode == 0, done.stderr
    assert re.search(r"going on with epoch \d+ of 12", done.stdout)
    (resumed,) = runs(tmp_path / "parts")
    assert resumed.info.run_id == run.info.run_id
    assert resumed.info.status == "FINISHED"
    (whole,) = runs(tmp_path / "whole")
    assert history(tmp_path / "parts", resumed) == history(tmp_path / "whole", whole)
    assert len(list((tmp_path / "parts" / "outputs").glob("*/*"))) == 1


@pytest.mark.parametrize("number", thinned([signal.SIGINT, signal.SIGTERM], 2))
def test_a_signal_before_the_first_epoch_ended_leaves_a_run_that_can_be_resumed(
    command: Command, tmp_path: Path, number: signal.Signals
) -> None:
    code, output = interrupt_when([*SMALL, "trainer.epochs=1"], tmp_path, r"^train +40 utterances", number)
    assert code == 130, output
    (run,) = runs(tmp_path)
    assert run.info.status == "KILLED"
    done = command(f"resume={run.info.run_id}")
    assert done.returncode == 0, done.stderr
    (resumed,) = runs(tmp_path)
    assert resumed.info.status == "FINISHED"
    assert resumed.info.run_id == run.info.run_id


@pytest.mark.slow
def test_a_mistake_made_while_a_run_is_resumed_is_not_stored_in_it(command: Command, tmp_path: Path, trained: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    stored = tmp_path / "run" / ".hydra" / "overrides.yaml"
    before = stored.read_text()
    for mistake in ("optimizer.lr=-1", "data.train_size=2"):
        refused = command("resume=run", mistake, "tracking=[]")
        assert refused.returncode == 2, refused.stdout + refused.stderr
        assert stored.read_text() == before
    done = command("resume=run", "trainer.epochs=15", "tracking=[]")
    assert done.returncode == 0, done.stderr
    assert "trainer.epochs=15" in stored.read_text()
    assert {path.name for path in stored.parent.iterdir()} == {"config.yaml", "hydra.yaml", "overrides.yaml", "signature"}


def test_a_run_that_is_refused_leaves_a_folder_of_the_users_own_as_it_was(command: Command, tmp_path: Path) -> None:
    (tmp_path / "mine" / "empty").mkdir(parents=True)
    (tmp_path / "mine" / "config.yaml").write_text("own: 1\n")
    assert command("data=synthetic", "trainer.epochs=0", "hydra.run.dir=mine").returncode == 2
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["config.yaml", "empty"]
    assert (tmp_path / "mine" / "config.yaml").read_text() == "own: 1\n"


def test_a_loss_of_nan_ends_the_run_as_failed_and_names_the_utterances(command: Command, tmp_path: Path) -> None:
    done = command(
        *SMALL, "optimizer=sgd", "optimizer.lr=1e30", "trainer.gradient_clip_val=null", "scheduler=constant", "trainer.max_skipped_steps=0"
    )
    assert done.returncode == 1
    assert "the loss became NaN or infinite in epoch 1" in done.stderr
    assert re.search(r"train-\d{5}", done.stderr)
    assert "Traceback" not in done.stderr
    assert next((tmp_path / "outputs").glob("*/*/bad_batch.npz")).is_file()
    (run,) = runs(tmp_path)
    assert run.info.status == "FAILED"
    assert "NonFiniteLossError" in run.data.tags["error"]


def test_a_crash_keeps_its_trace_and_ends_the_run_as_failed(command: Command, tmp_path: Path) -> None:
    (tmp_path / "my_pkg.py").write_text(
        "from speechtrain.backends.torch.models import Mlp\n"
        "class Broken(Mlp):\n"
        "    def forward(self, features, lengths):\n"
        "        raise RuntimeError('my own mistake')\n"
    )
    done = command(*SMALL, "model._target_=my_pkg.Broken")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "my own mistake" in done.stderr
    assert runs(tmp_path)[0].info.status == "FAILED"


def test_a_dry_run_and_a_fast_dev_run_are_short_and_marked_as_tests(command: Command, tmp_path: Path) -> None:
    done = command("-m", *SMALL, "dry_run=true,false", "trainer.fast_dev_run=true,false", "trainer.epochs=1")
    assert done.returncode == 0, done.stderr
    marks = [run.data.tags.get("speechtrain.test_run") for run in runs(tmp_path) if "speechtrain.trial" in run.data.tags]
    assert marks == [None, "fast_dev_run", "dry_run", "fast_dev_run"]  # the config's own values come first in a sweep
    assert len(list((tmp_path / "multirun").glob("*/[0-3]/config.yaml"))) == 4


def test_a_tracking_server_that_is_not_there_is_a_users_mistake(command: Command) -> None:
    started = time.monotonic()
    done = command(*SMALL, "tracking.mlflow.tracking_uri=http://127.0.0.1:9")
    assert done.returncode == 2
    assert "MLflow cannot be reached at http://127.0.0.1:9" in done.stderr
    assert time.monotonic() - started < 100


@pytest.mark.parametrize(
    ("arguments", "said"),
    thinned(
        [
            (["resume=last"], "no run 'last'"),
            (["resume=0123456789abcdef"], "no run '0123456789abcdef'"),
            (["data=manifest", "data.root=."], "no such manifest"),
            (["model=null"], "Config group override must be a string or a list"),
            (["hydra.run.dir=/proc/x"], "/proc/x"),
            (["output_dir=/proc/x", "tracking=[]"], "/proc/x: cannot be written"),
            ([*TINY, "trainer.fast_dev_run=true", "trainer.accelerator=tpu"], "trainer: "),
        ],
        4,
    ),
)
def test_what_is_not_there_is_named_and_the_exit_code_is_2(command: Command, arguments: list[str], said: str) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
