"""Whatever an earlier version has written is used as if it had been written today (`tests/old_runs/README.md`).

Error rates, texts and settings are those that the earlier version gave; losses may differ in their last digits, as machines do.
"""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import json
import os
import re
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import yaml
from conftest import REPOSITORY
from optuna.storages.journal import JournalFileBackend, JournalStorage

import speechtrain
from speechtrain.config.moved import with_present_name
from speechtrain.errors import ConfigError

OLD = REPOSITORY / "tests" / "old_runs"
MADE_IN = "/tmp/old_runs"  # the folder whose name stands in the files
TEXTS = (".yaml", ".json", ".jsonl", ".txt", "")
Command = Callable[..., subprocess.CompletedProcess[str]]


def unpack(name: str, folder: Path) -> None:
    """Put an archive where its files believe that they are."""
    with tarfile.open(OLD / name) as archive:
        archive.extractall(folder, filter="data")
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix in TEXTS and MADE_IN in (text := path.read_text()):
            path.write_text(text.replace(MADE_IN, str(folder)))
    if (database := folder / "mlflow.db").is_file():
        with contextlib.closing(sqlite3.connect(database)) as connection, connection:
            tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            for table in tables:
                for column in [row[1] for row in connection.execute(f"PRAGMA table_info('{table}')")]:
                    change = f'UPDATE "{table}" SET "{column}" = replace("{column}", ?, ?) WHERE "{column}" LIKE ?'
                    connection.execute(change, (MADE_IN, str(folder), f"%{MADE_IN}%"))


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the runs in it."""
    unpack("runs.tar.xz", tmp_path)
    monkeypatch.setenv("SPEECHTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return tmp_path


@pytest.fixture
def own_modules(old: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The folder's own classes can be imported, as they can in a command that is given there."""
    monkeypatch.syspath_prepend(str(old))
    yield
    sys.modules.pop("my_parts", None)


def run_id(name: str) -> str:
    return str(json.loads(Path(f"outputs/{name}/run.json").read_text())["mlflow_run_id"])


def history(name: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in Path(f"outputs/{name}/history.jsonl").read_text().splitlines()]


def overrides_of(name: str) -> list[str]:
    """What was typed, without what says how it is tracked."""
    found = yaml.safe_load(Path(f"outputs/{name}/.hydra/overrides.yaml").read_text())
    return [item for item in found if not item.startswith("tracking")]


def here(module: str, *arguments: str) -> str:
    """What a command prints that is run in this process, which has imported everything."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert importlib.import_module(f"speechtrain.{module}").run(list(arguments)) == 0
    return out.getvalue()


def evaluated(*arguments: str) -> dict[str, Any]:
    """The metrics of `speechtrain.evaluate`."""
    here("evaluate", *arguments, "report=false", "out=evaluated", "backend.threads=1")
    (found,) = json.loads(Path("evaluated/evaluation.json").read_text())["decoders"].values()
    return dict(found["metrics"])


def said(model: Any) -> tuple[str, float]:
    """What a model hears in a recording, and the mean of all its outputs."""
    return model.transcribe("audio/0.flac").text, float(model.log_probs("audio/0.flac").mean())


# going on


RESUMED = {
    "tracked": (0.6081432232057861, "val/cer", 0.0),
    "classes_2": (1.3564650220796466, "val/accuracy", 0.625),
    "signals": (0.5645065689086914, "val/snr_db", -0.5852014034122339),
    "parts": (2.2713919639587403, "val/cer", 0.7142857142857143),
    "own": (2.7164934650063515, "val/tag_accuracy", 0.725),
    "keras": (0.003814474876345113, "val/cer", 0.0),
}
"""Of the epoch that is added: its loss, and the metric that the run is judged by."""


def callback_states(folder: Path) -> set[str]:
    """Return the names under which a run's last checkpoint of Lightning has the state of its callbacks, whatever metric they go by."""
    path = folder / "checkpoints" / "last.ckpt"
    names = torch.load(path, weights_only=True)["callbacks"] if path.is_file() else ()
    return {re.sub(r"'val/\w+'", "METRIC", name) for name in names}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name == "keras" else name for name in RESUMED])
def test_a_run_goes_on_for_one_more_epoch(name: str, own_modules: None, old: Path, command: Command) -> None:
    before = history(name)
    states = callback_states(old / "outputs" / name)
    more = f"trainer.epochs={len(before) + 1}"
    if name in ("tracked", "keras"):
        done = command(f"resume=outputs/{name}", more)
        assert done.returncode == 0, done.stdout + done.stderr
    else:
        folder = old / "outputs" / name
        speechtrain.train(speechtrain.compose([*overrides_of(name), more, f"resume={folder}", "tracking=[]"], output_dir=folder))
    *same, added = history(name)
    assert same == before
    loss, metric, value = RESUMED[name]
    assert added["train/loss"] == pytest.approx(loss, rel=1e-4)
    assert added[metric] == pytest.approx(value, rel=1e-4)
    features = yaml.safe_load(Path(f"outputs/{name}/config.yaml").read_text())["features"]
    assert "remove_dc" not in features, "features of a run that goes on are computed as its weights know them"
    assert callback_states(old / "outputs" / name) == states, "Lightning does not restore the state of a callback under another name"


def test_a_resumed_old_run_names_new_checkpoints_by_the_epochs_that_people_read(old: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = old / "outputs" / "signals"
    more = ["trainer.epochs=3", "trainer.checkpoint.every_n_epochs=1", f"resume={folder}"]
    with caplog.at_level("INFO", logger="speechtrain"):
        speechtrain.train(speechtrain.compose([*overrides_of("signals"), *more, "tracking=[]"], output_dir=folder))
    assert "names such as best-epoch=001.ckpt are of an earlier version and count epochs from 0" in caplog.text
    assert (folder / "checkpoints" / "epoch=003.ckpt").is_file()
    assert len(history("signals")) == 3


@pytest.mark.parametrize("source", ["outputs/tracked", "outputs/tracked/exports/tracked.zip"])
def test_a_run_begins_with_the_weights_of_an_old_one(source: str, old: Path) -> None:
    still = ["trainer.epochs=1", "optimizer.lr=1e-12", "tracking=[]", f"init_from={source}"]
    result = speechtrain.train(speechtrain.compose([*overrides_of("tracked"), *still], output_dir=old / "warm"))
    assert result.metrics["test/cer"] == pytest.approx(FOUND["tracked"]["cer"])
    assert result.metrics["test/loss"] == pytest.approx(FOUND["tracked"]["loss"], rel=1e-4)


@pytest.mark.slow
def test_a_run_of_mlflow_is_repeated_and_compared_with_what_it_was(old: Path, command: Command) -> None:
    done = command(f"rerun={run_id('tracked')}", "hydra.run.dir=outputs/again")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is not what it was" not in done.stdout
    assert [epoch["val/cer"] for epoch in history("again")] == [epoch["val/cer"] for epoch in history("tracked")]
    assert history("again")[-1]["train/loss"] == pytest.approx(history("tracked")[-1]["train/loss"], rel=1e-3)
    here("compare", "outputs/tracked", "outputs/again", "out=compared")
    with Path("compared/compare.csv").open() as file:
        before, now = (float(row["test/cer"]) for row in csv.DictReader(file))
    assert now < before  # of epochs with equal val/cer the last is the best now, which had been the first


def test_the_better_of_two_runs_is_known_by_their_task(old: Path) -> None:
    here("compare", run_id("classes_1"), run_id("classes_2"), "sort=test/accuracy", "metrics=[test/accuracy]", "out=compared")
    with Path("compared/compare.csv").open() as file:
        found = [float(row["test/accuracy"]) for row in csv.DictReader(file)]
    assert len(set(found)) == 2
    assert found == sorted(found, reverse=True)


# used


HEARD = ("dcc", -7.712489128112793)
"""What `tracked` hears in a recording, and the mean of all its outputs."""

FOUND = {
    "tracked": {"cer": 0.08, "wer": 0.25, "loss": 0.21148073196411132},
    "classes_1": {"accuracy": 0.75, "loss": 1.1069307997822762},
    "signals": {"snr_db": -0.5779847630481075, "pearson_r": -0.05210280354963876},
    "parts": {"cer": 1.7, "loss": 4.355965677897135},
    "own": {"tag_accuracy": 0.6, "loss": 2.845658779144287},
    "keras": {"cer": 0.0, "loss": 0.02474707692861557},
}
"""What `speechtrain.evaluate` found."""

ASKED = {"own": ["trust=true"], "parts": ["data=folder", "data.root=audio", "split=train"]}
"""On the command line besides."""


def test_a_model_is_found_by_each_of_its_names(old: Path) -> None:
    number = run_id("tracked")
    (checkpoint,) = Path("outputs/tracked/checkpoints").glob("best-*")
    (folder,) = Path("mlartifacts/models").glob("*/artifacts")
    names = ["outputs/tracked", checkpoint, "outputs/tracked/exports/tracked.zip", number, number[:8]]
    for name in [*names, f"runs:/{number}/model", "models:/old/1", folder]:
        assert said(speechtrain.load(str(name))) == (HEARD[0], pytest.approx(HEARD[1], rel=1e-4)), name


@pytest.mark.parametrize("name", FOUND)
def test_an_evaluation_finds_what_the_earlier_version_found(name: str, own_modules: None) -> None:
    found = evaluated(f"from=outputs/{name}", *ASKED.get(name, []))
    assert {key: found[key] for key in FOUND[name]} == pytest.approx(FOUND[name], rel=1e-4)


@pytest.mark.slow
def test_archives_and_registered_models_are_evaluated_too(old: Path) -> None:
    for name, source in {"tracked": "outputs/tracked/exports/tracked.zip", "keras": "outputs/keras/exports/keras.zip"}.items():
        assert evaluated(f"from={source}")["cer"] == pytest.approx(FOUND[name]["cer"])
    assert evaluated("from=models:/old/1")["loss"] == pytest.approx(FOUND["tracked"]["loss"], rel=1e-4)


def test_a_key_that_came_since_can_be_set(old: Path) -> None:
    assert said(speechtrain.load("outputs/tracked", "data.channel=0")) == (HEARD[0], pytest.approx(HEARD[1], rel=1e-4))


def test_recordings_are_transcribed(old: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "speechtrain.transcribe", f"from={run_id('tracked')}", "audio/0.flac"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"{HEARD[0]}\n"), done.stderr


def test_an_old_run_becomes_an_archive_and_a_file_of_torch(old: Path) -> None:
    here("export", "from=outputs/tracked", "format=[archive,torchscript]", "out=files", "backend.threads=1")
    assert said(speechtrain.load(str(next(Path("files").glob("*-tracked.zip"))))) == (HEARD[0], pytest.approx(HEARD[1], rel=1e-4))
    assert json.loads(Path("files/model.ts.json").read_text())["difference"] < 1e-4


def test_mlflow_loads_a_model_with_the_code_that_was_kept_beside_it_and_beside_that_of_today(old: Path) -> None:
    load = "import mlflow, pandas as pd; model = mlflow.pyfunc.load_model('models:/old/1')\n"
    ask = "print(list(model.predict(pd.DataFrame({'audio': ['audio/0.flac']}))['text']))\n"
    for program in (load + ask, "import speechtrain.config\n" + load + ask):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert done.stdout == f"{[HEARD[0]]}\n", done.stderr


@pytest.mark.slow
def test_keras_itself_loads_an_old_checkpoint_as_its_documentation_says(old: Path) -> None:
    speechtrain.load("outputs/keras")  # which chooses the engine
    import keras

    for module in ("model", "models"):
        importlib.import_module(f"speechtrain.backends.keras.{module}")
    (checkpoint,) = Path("outputs/keras/checkpoints").glob("best-*")
    assert keras.saving.load_model(checkpoint).count_params() == 2241


# sweeps and configs


NEXT = {"model.stack": 1, "optimizer.lr": 0.004491523825138}, 14.107057218198422
"""Of the trial that follows on those of the study: what is tried, and what it gives."""


@pytest.mark.slow
def test_a_finished_sweep_goes_on(tmp_path: Path, command: Command) -> None:
    unpack("sweep.tar.xz", tmp_path)
    journal = JournalStorage(JournalFileBackend("multirun/study/study.journal"))
    before = optuna.load_study(study_name="study", storage=journal).trials
    typed = yaml.safe_load(Path("multirun/study/multirun.yaml").read_text())["hydra"]["overrides"]
    fixed = [item for item in typed["hydra"] if item.startswith("hydra.sweeper.study_name")] + typed["task"]
    done = command("-m", *fixed, "hydra.sweeper.n_trials=4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 4 were done before" in done.stdout
    *same, added = optuna.load_study(study_name="study", storage=journal).trials
    assert same == before
    params, value = NEXT
    assert added.params == pytest.approx(params)
    assert added.value == pytest.approx(value, rel=1e-4)
    best = command("--config-dir", "multirun/study", "experiment=best", "--cfg", "job")
    assert best.returncode == 0, best.stderr
    assert yaml.safe_load(best.stdout)["model"]["stack"] == min(before, key=lambda trial: trial.value or 0.0).params["model.stack"]


def test_every_target_of_an_old_config_is_still_one() -> None:
    groups: dict[str, list[str]] = {}
    for line in (OLD / "targets.txt").read_text().splitlines():
        group, target = line.split()
        groups.setdefault(group, []).append(target)
    missing = []
    for targets in zip_longest(*groups.values()):
        chosen = ["tracking=[mlflow,tensorboard,wandb]"]
        chosen += [with_present_name(f"{group}._target_={target}") for group, target in zip(groups, targets, strict=True) if target]
        try:
            speechtrain.compose(chosen)
        except ConfigError as error:
            missing += [str(problem) for problem in error.problems if problem.path.endswith("_target_")]
    assert missing == []
