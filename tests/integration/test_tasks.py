"""Tasks besides CTC, as commands: what they leave, what they reach, and one of the user's own."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import REPOSITORY, SHARED_DATA, thinned
from mlflow import MlflowClient

import speechtrain
from speechtrain.config.build import build, component_of
from speechtrain.data.corpora.synthetic import Synthetic
from speechtrain.inference.recognizer import Recognizer

pytestmark = pytest.mark.long

Command = Callable[..., subprocess.CompletedProcess[str]]

WORDS = [
    *("task=classification", "data=synthetic", "features=logmel_8k", "data.alphabet=abc", "data.min_chars=1", "data.max_chars=1"),
    *("data.train_size=60", "data.val_size=12", "data.test_size=12", "model=mlp", "trainer.epochs=6", "augment=none", "backend.threads=1"),
]
SINES = ["experiment=signal_extraction", "data.train_size=12", "data.val_size=4", "data.test_size=4", "data.duration=1", "trainer.epochs=2"]
SINES += ["backend.threads=1"]


def only_run(folder: Path):  # type: ignore[no-untyped-def]
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiments = [each.experiment_id for each in client.search_experiments()]
    return client, client.search_runs(experiments)[0]


def files_of(client: MlflowClient, run_id: str, folder: str = "") -> set[str]:
    found = set()
    for entry in client.list_artifacts(run_id, folder):
        found |= files_of(client, run_id, entry.path) if entry.is_dir else {entry.path}
    return found


@pytest.mark.slow
def test_a_classification_leaves_its_curves_in_mlflow_and_a_model_that_names_classes(command: Command, tmp_path: Path) -> None:
    done = command(*WORDS)
    assert done.returncode == 0, done.stderr
    assert "val/accuracy" in done.stdout
    client, run = only_run(tmp_path)
    assert run.data.metrics["test/accuracy"] == 1.0
    assert {"test/precision", "test/recall", "test/f1", "val/f1", "values/best val accuracy"} <= set(run.data.metrics)
    files = files_of(client, run.info.run_id)
    pictures = {f"classes/{name}" for name in ("confusion_matrix.png", "roc.png", "precision_recall.png", "per_class.csv")}
    assert pictures | {"class_report.html", "history.png"} <= files
    assert not any(name.startswith(("error_report", "transcripts/")) for name in files)
    page = next(tmp_path.glob("outputs/*/*/class_report.html")).read_text()
    assert '<td class="n big" id="accuracy">100.00 %' in page
    assert not re.search(r"(src|href)=\"?https?:", page)
    checkpoint = next(tmp_path.glob("outputs/*/*/checkpoints/best-*"))
    model = Recognizer.load(checkpoint)
    assert model.task.direction("val/accuracy") == "maximize"
    cfg = speechtrain.compose(WORDS)
    source: Synthetic = build("data", cfg.data)
    cut = next(iter(source.load(1).splits["test"]))
    found = model.transcribe(source.read(cut, 8000), 8000)
    assert found.text == cut.text
    assert 0.5 < found.confidence <= 1


def test_a_regression_leaves_its_signals_and_its_measures(command: Command, tmp_path: Path) -> None:
    done = command(*SINES)
    assert done.returncode == 0, done.stderr
    client, run = only_run(tmp_path)
    names = {"loss", "mse", "rmse", "mae", "pearson_r", "r2", "snr_db", "snr_gain_db"}
    assert {f"test/{name}" for name in names} <= set(run.data.metrics)
    files = files_of(client, run.info.run_id)
    assert {"signal_report.html", "signals/spread_of_snr_gain_db.png", "measures.json"} <= files
    assert any(re.fullmatch(r"signals/test-\d+\.png", name) for name in files)
    table = json.loads(Path(client.download_artifacts(run.info.run_id, "measures.json", str(tmp_path))).read_text())
    assert table["columns"] == ["id", "mse", "rmse", "mae", "pearson_r", "r2", "snr_db", "snr_gain_db"]
    assert len(table["data"]) == 4


@pytest.mark.parametrize("backend", thinned(["torch", "keras"], 2))
def test_signals_written_as_hdf5_give_the_same_training(command: Command, tmp_path: Path, backend: str) -> None:
    if backend == "keras":
        pytest.importorskip("keras")
    quiet = ["tracking=[]", "report.enabled=false", f"backend={backend}", "trainer.epochs=1"]
    made = command(*SINES, *quiet, f"data.save_to={tmp_path / 'h5'}", "hydra.run.dir=one")
    given = ["data=hdf5_signals", f"data.root={tmp_path / 'h5'}", "data.val=val.h5", "data.test=test.h5", "data.sample_rate=200"]
    kept = [item for item in SINES if not item.startswith("data.")]
    read = command(*kept, *given, *quiet, "hydra.run.dir=two")
    assert made.returncode == read.returncode == 0, made.stderr + read.stderr
    histories = [json.loads((tmp_path / name / "history.jsonl").read_text()) for name in ("one", "two")]
    assert histories[0]["val/snr_db"] == pytest.approx(histories[1]["val/snr_db"], rel=1e-3)


@pytest.mark.parametrize(
    ("preset", "kind"), [("experiment=quick", "quick"), ("dry_run=true", "dry_run"), ("test_run=fast_dev_run", "fast_dev_run")]
)
def test_presets_shorten_a_run_and_mark_it_as_a_test(tmp_path: Path, preset: str, kind: str) -> None:
    options = [*WORDS, preset, "trainer.epochs=9", "report.enabled=false", "data.limit_utterances=20", "tracking.mlflow.log_model=false"]
    result = speechtrain.train(speechtrain.compose(options, output_dir=tmp_path / "run"))
    assert len(result.history) == (8 if kind == "quick" else 1)
    _, run = only_run(tmp_path)
    assert run.data.tags["speechtrain.test_run"] == kind
    data = {entry.dataset.name + "/" + entry.tags[0].value: json.loads(entry.dataset.profile) for entry in run.inputs.dataset_inputs}
    assert max(profile["utterances"] for profile in data.values()) == (16 if kind == "fast_dev_run" else 20)


def test_limits_can_be_set_one_by_one_without_a_mark(tmp_path: Path) -> None:
    options = [*WORDS, "tracking=[]", "report.enabled=false", "trainer.limit_epochs=2", "trainer.limit_train_batches=1"]
    assert len(speechtrain.train(speechtrain.compose(options, output_dir=tmp_path / "run")).history) == 2


@pytest.mark.parametrize("backend", thinned(["torch", "keras"], 2))
def test_the_fourth_task_of_the_how_to_page_trains(command: Command, tmp_path: Path, backend: str) -> None:
    if backend == "keras":
        pytest.importorskip("keras")
    text = (REPOSITORY / "docs" / "tasks.md").read_text()
    code = re.findall(r"```python\n(# my_task.py\n.*?)```", text, flags=re.DOTALL)
    assert len(code) == 1
    (tmp_path / "my_task.py").write_text(code[0])
    line = next(line for line in text.splitlines() if "task._target_=my_task.Tagging" in line)
    given = line.partition("python -m speechtrain ")[2].split()
    small = ["features=logmel_8k", "data.alphabet=abcd", "data.train_size=80", "data.val_size=16", "data.test_size=16", "augment=none"]
    done = command(*given, *small, f"backend={backend}", "trainer.epochs=4", "backend.threads=1", "tracking=[]", "data.batch_size=8")
    assert done.returncode == 0, done.stderr
    history = [json.loads(line) for line in next(tmp_path.glob("outputs/*/*/history.jsonl")).read_text().splitlines()]
    assert history[-1]["val/tag_accuracy"] > 0.9
    assert history[-1]["train/loss"] < history[0]["train/loss"] / 2
    assert f"val/tag_accuracy {history[-1]['val/tag_accuracy']:.4f}" in done.stdout
    wrong = command(*given, *small, "+task.poool=mean")
    assert wrong.returncode == 2
    assert "did you mean 'task.pool'" in wrong.stderr


@pytest.mark.slow
@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no recorded speech beside the checkout")
def test_recorded_digits_are_told_apart(tmp_path: Path) -> None:
    options = ["experiment=fsdd_keywords", f"data.root={SHARED_DATA / 'fsdd'}", "data.limit_utterances=240", "trainer.epochs=8"]
    quiet = ["tracking=[]", "report.enabled=false", "backend.threads=1"]
    result = speechtrain.train(speechtrain.compose([*options, *quiet], output_dir=tmp_path))
    assert result.metrics["train/loss"] < 1.2


def test_the_keyword_model_fits_a_microcontroller(command: Command) -> None:
    cfg = speechtrain.compose(["experiment=keywords"])
    from speechtrain.backends.torch.backend import TorchBackend
    from speechtrain.data.text.tokenizers import LabelTokenizer
    from speechtrain.tasks.classification import Classification

    task = Classification(LabelTokenizer(vocabulary=[*map(str, range(10)), "_unknown_", "_silence_"]))
    model = TorchBackend(threads=1).build(component_of("model", cfg.model), task, input_size=cfg.features.n_mels, seed=0)
    assert TorchBackend(threads=1).describe(model).parameters <= 80_000
