"""What a run leaves in MLflow and on disk, and what is done with it later: loaded, compared, repeated."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import soundfile
import yaml
from conftest import TINY, thinned
from mlflow import MlflowClient
from mlflow.entities import Run

pytestmark = pytest.mark.long

Command = Callable[..., subprocess.CompletedProcess[str]]
RATE = 8000
SMALL = [item for item in TINY if not item.startswith("tracking")] + ["model=mlp", "trainer.epochs=2"]


def run_command(folder: Path, *arguments: str, module: str = "speechtrain", **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)


def write_corpus(folder: Path) -> None:
    """Words of two tones, said by three speakers; `loud` is a field of the manifest."""
    rng = np.random.default_rng(0)
    tones = {"lo": 400.0, "hi": 1200.0}
    (folder / "audio").mkdir(parents=True)
    for split, count in (("train", 48), ("val", 16), ("test", 16)):
        lines = []
        for index in range(count):
            words = [str(word) for word in rng.choice(list(tones), size=rng.integers(1, 4))]
            time = np.arange(int(0.3 * RATE)) / RATE
            samples = np.concatenate([np.concatenate([0.3 * np.sin(2 * np.pi * tones[word] * time), np.zeros(800)]) for word in words])
            name = f"{split}-{index:03d}"
            soundfile.write(folder / "audio" / f"{name}.wav", samples + 0.01 * rng.standard_normal(len(samples)), RATE)
            entry = {"utt_id": name, "audio_filepath": f"audio/{name}.wav", "duration": len(samples) / RATE, "text": " ".join(words)}
            lines.append(json.dumps({**entry, "speaker": f"s{index % 3}", "loud": "yes" if index % 2 else "no"}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which one run has been trained, with everything switched on."""
    folder = tmp_path_factory.mktemp("place")
    write_corpus(folder / "corpus")
    data = ["data=manifest", f"data.root={folder / 'corpus'}", "data.train=train.jsonl", "data.test=test.jsonl", "data.val=val.jsonl"]
    kept = ["tracking.mlflow.registered_model=asr", "tracking.mlflow.system_metrics=0.5", "trainer.log_every_n_steps=3"]
    listeners = ["tracking=[mlflow,tensorboard,wandb]", "tracking.wandb.mode=offline"]
    settings = ["features=logmel_8k", "model=tdnn", "model.channels=32", "trainer.epochs=14", "data.batch_seconds=6", "backend.threads=1"]
    done = run_command(folder, *data, *kept, *listeners, *settings)
    assert done.returncode == 0, done.stderr
    (folder / "output").write_text(done.stdout)
    return folder


def client_of(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


def first_run(folder: Path) -> Run:
    return next(iter(client_of(folder).search_runs(["1"], order_by=["attributes.start_time"])))


def artifact(folder: Path, run: Run, name: str) -> str:
    return Path(client_of(folder).download_artifacts(run.info.run_id, name)).read_text()


@pytest.mark.slow
def test_a_run_holds_its_data_times_machine_pictures_and_pages(place: Path) -> None:
    run = first_run(place)
    assert run.inputs is not None
    inputs = {item.tags[0].value: item.dataset for item in run.inputs.dataset_inputs}
    assert set(inputs) == {"training", "validation", "test"}
    profile = json.loads(str(inputs["training"].profile))
    assert (profile["utterances"], profile["speakers"]) == (48, 3)
    assert 0 < profile["hours"] < 0.1
    assert run.data.tags["data.fingerprint.test"].startswith(inputs["test"].digest)
    assert inputs["test"].digest != inputs["training"].digest
    assert str(place / "corpus") in inputs["test"].source
    metrics = run.data.metrics
    assert {"time/data_s", "time/step_s", "time/eval_s", "values/best val cer", "values/best epoch"} <= set(metrics)
    assert {"system/cpu_utilization_percentage", "system/process_memory_megabytes"} <= set(metrics)
    steps = [item.step for item in client_of(place).get_metric_history(run.info.run_id, "step/loss")]
    assert steps
    assert all(step % 3 == 0 for step in steps)
    kept = {item.path for item in client_of(place).list_artifacts(run.info.run_id)}
    assert {"config.yaml", "overrides.txt", "transcripts.json", "history.png", "error_report.html", "transcripts", "checkpoints"} <= kept
    assert (run.data.tags["seed"], run.data.tags["mlflow.source.type"]) == ("1", "LOCAL")


def test_the_error_report_is_one_page_that_fetches_nothing_and_agrees_with_the_metrics(place: Path) -> None:
    run = first_run(place)
    page = artifact(place, run, "error_report.html")
    assert f"{100 * run.data.metrics['test/wer']:.2f} %" in page
    assert f"{100 * run.data.metrics['test/cer']:.2f} %" in page
    for shown in ("Worst utterances", "WER by duration", "WER by speaker", "WER by loud", "calibration error", "Confusions", "<svg"):
        assert shown in page, shown
    assert 'src="http' not in page
    assert 'href="http' not in page
    assert "data:audio/mpeg;base64," in page


def test_the_model_says_what_the_run_said_of_files_bytes_and_samples(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = first_run(place)
    table = json.loads(artifact(place, run, "transcripts.json"))
    (name, _, hypothesis, confidence) = table["data"][0]
    path = place / "corpus" / "audio" / f"{name}.wav"
    samples, _ = soundfile.read(path, dtype="float32")
    content = io.BytesIO()
    soundfile.write(content, samples, RATE, format="WAV", subtype="FLOAT")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # which MLflow sets, for later tests as well
    mlflow.set_tracking_uri(f"sqlite:///{place / 'mlflow.db'}")
    model = mlflow.pyfunc.load_model("models:/asr/1")
    written = f"data:audio/wav;base64,{base64.b64encode(content.getvalue()).decode()}"
    said = model.predict(pd.DataFrame({"audio": [str(path), content.getvalue(), samples, written]}))
    assert list(said["text"]) == [hypothesis] * 4
    assert said["confidence"].tolist() == pytest.approx([confidence] * 4, abs=2e-3)
    assert model.metadata.signature is not None
    assert model.input_example is not None
    (entry,) = client_of(place).search_logged_models(["1"])
    assert entry.source_run_id == run.info.run_id


def test_a_model_refuses_what_is_no_audio(place: Path, tmp_path: Path) -> None:
    from speechtrain.errors import DataError, UserError
    from speechtrain.inference.recognizer import Recognizer

    weights = next(place.glob("outputs/*/*/recognizer.ckpt"))
    recognizer = Recognizer.load(weights)
    (tmp_path / "text.wav").write_text("no audio")
    for bad in (tmp_path / "text.wav", tmp_path / "gone.wav", b"", [], [float("nan")] * 100, "word", [[["a"]]]):
        with pytest.raises(DataError):
            recognizer.transcribe(bad)
    stereo = np.zeros((RATE, 2), dtype=np.float32)
    assert recognizer.transcribe(stereo).text == recognizer.transcribe(stereo[:, 0]).text
    (tmp_path / "model.ckpt").write_text("no model")
    with pytest.raises(UserError, match=r"model\.ckpt: is not a model"):
        Recognizer.load(tmp_path / "model.ckpt")


def test_tensorboard_and_wandb_get_the_same_numbers(place: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = first_run(place)
    (folder,) = place.glob("outputs/*/*/tensorboard")
    events = EventAccumulator(str(folder))
    events.Reload()
    tracked = [(item.step, item.value) for item in client_of(place).get_metric_history(run.info.run_id, "val/loss")]
    assert [(item.step, pytest.approx(item.value, rel=1e-6)) for item in events.Scalars("val/loss")] == tracked
    assert "history" in events.Tags()["images"]
    assert list(place.glob("outputs/*/*/wandb/offline-run-*/*.wandb"))
    assert "wandb sync" in (place / "output").read_text()


def test_a_listener_that_is_not_installed_is_a_warning_that_names_the_extra(tmp_path: Path) -> None:
    for package in ("tensorboard", "wandb"):
        (tmp_path / "absent" / package).mkdir(parents=True)
        (tmp_path / "absent" / package / "__init__.py").write_text("raise ImportError('absent')")
    done = run_command(tmp_path, *SMALL, "tracking=[tensorboard,wandb]", PYTHONPATH=str(tmp_path / "absent"))
    assert done.returncode == 0, done.stderr
    assert "speechtrain[tensorboard]" in done.stderr
    assert "speechtrain[wandb]" in done.stderr


@pytest.mark.slow
def test_a_rerun_gives_identical_metrics_and_says_what_is_different_now(place: Path) -> None:
    run = first_run(place)
    same = run_command(place, f"rerun={run.info.run_id}")
    assert same.returncode == 0, same.stderr
    assert "code, versions and machine are as they were" in same.stdout
    assert "metrics are identical to those of" in same.stdout
    assert "not what it was" not in same.stdout
    again = client_of(place).search_runs(["1"], order_by=["attributes.start_time DESC"])[0]
    assert again.data.tags["speechtrain.rerun_of"] == run.info.run_id
    assert again.data.metrics["val/loss"] == run.data.metrics["val/loss"]

    path = place / "corpus" / "audio" / "test-000.wav"
    before = path.read_bytes()
    samples, _ = soundfile.read(path, dtype="float32")
    soundfile.write(path, 0.5 * samples, RATE)
    other = run_command(place, f"rerun={run.info.run_id[:8]}", "trainer.epochs=3", OMP_NUM_THREADS="2")
    path.write_bytes(before)
    assert other.returncode == 0, other.stderr
    assert "OMP_NUM_THREADS: was 1, is 2" in other.stdout
    assert "changed on purpose: trainer.epochs=3" in other.stdout
    assert "the test data is not what it was" in other.stdout
    assert "the train data is not what it was" not in other.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    thinned(
        [
            (["rerun=nothing"], "there is no run 'nothing'"),
            (["rerun=RUN", "model.chanels=3"], "did you mean 'model.channels'"),
            (["rerun=RUN", "model=mlp"], "only values can be changed"),
            (["rerun=RUN", "tracking=[]"], "needs MLflow"),
        ],
        4,
    ),
)
def test_a_rerun_that_cannot_be_says_why(place: Path, arguments: list[str], said: str) -> None:
    run_id = first_run(place).info.run_id
    done = run_command(place, *(item.replace("RUN", run_id) for item in arguments))
    assert done.returncode == 2, done.stdout
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_runs_are_compared_in_the_terminal_and_in_files(place: Path) -> None:
    runs = [run.info.run_id for run in client_of(place).search_runs(["1"], order_by=["attributes.start_time"])]
    more = run_command(place, f"rerun={runs[0]}", "optimizer.lr=1e-6", "trainer.epochs=1")
    assert more.returncode == 0, more.stderr
    bad = client_of(place).search_runs(["1"], order_by=["attributes.start_time DESC"])[0]
    done = run_command(place, runs[0][:9], "last", "out=compared", module="speechtrain.compare")
    assert done.returncode == 0, done.stderr
    assert "optimizer.lr" in done.stdout
    assert "model.channels" not in done.stdout  # the same in both
    assert "on the same 16 utterances" in done.stdout
    rows = list(csv.DictReader((place / "compared" / "compare.csv").open()))
    assert [row["run"] for row in rows] == [runs[0], bad.info.run_id]
    assert float(rows[1]["test/wer"]) == bad.data.metrics["test/wer"]
    assert (place / "compared" / "compare.md").read_text().count("|---") >= 5
    page = (place / "compared" / "compare.html").read_text()
    assert "val/cer" in page
    assert "Plotly.newPlot" in page
    assert yaml.safe_load((place / "compared" / "best.yaml").read_text())["seed"] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    thinned(
        [
            ([], "there is nothing to compare"),
            (["lats"], "there is no run 'lats'"),
            (["last", "sort=test/were"], "did you mean 'test/wer'"),
            (["last", "metrics=test/wet"], "did you mean 'test/wer'"),
            (["last", "top=0"], "must be at least 1"),
            (["sotr=x"], "did you mean 'sort'"),
            (["study=none"], "there are no trials of 'none'"),
            (["tags.host=nowhere"], "no run has {'host': 'nowhere'}"),
            (["last", "tracking_uri=sqlite:////nowhere/a.db"], "there is no such database"),
        ],
        4,
    ),
)
def test_a_comparison_that_cannot_be_says_why(place: Path, arguments: list[str], said: str) -> None:
    done = run_command(place, *arguments, module="speechtrain.compare")
    assert done.returncode == 2, done.stdout
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_keras_model_is_kept_and_says_the_same(tmp_path: Path) -> None:
    done = run_command(tmp_path, *SMALL, "backend=keras")
    assert done.returncode == 0, done.stderr
    run = first_run(tmp_path)
    table: dict[str, Any] = json.loads(artifact(tmp_path, run, "transcripts.json"))
    assert len(table["data"]) == 8
    (entry,) = client_of(tmp_path).search_logged_models(["1"])
    code = (
        "import mlflow, sys, pandas as pd; mlflow.set_tracking_uri(sys.argv[1]); m = mlflow.pyfunc.load_model(sys.argv[2]); "
        "print(len(m.predict(m.input_example)), 'answer')"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code, f"sqlite:///{tmp_path / 'mlflow.db'}", entry.model_uri], capture_output=True, text=True, check=False
    )
    assert "1 answer" in loaded.stdout, loaded.stderr
