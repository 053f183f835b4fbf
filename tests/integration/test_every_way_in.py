"""A recording of any rate is the same samples, log-probabilities and text, whichever way it comes in."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import soundfile
from checkpoints import Make
from conftest import prepared

import speechtrain
from speechtrain.config.build import build
from speechtrain.config.checkpoint_values import with_checkpoint_files
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.inference.recognizer import Recognizer
from speechtrain.tasks.build import build_task

RATES = [8000, 11025, 22050, 44100, 48000]
VOCABULARY = ["<blank>", " ", "a", "b", "c"]


@pytest.fixture(scope="module", params=["tdnn", pytest.param("pretrained", marks=pytest.mark.slow)])
def options(request: pytest.FixtureRequest, made: Make) -> list[str]:
    """The model, and its features."""
    if request.param == "tdnn":
        return ["features=logmel", "model=tdnn"]
    return ["model=pretrained", f"model.path={made('wav2vec2')}"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, options: list[str]) -> Path:
    """A checkpoint of a CTC model for 16 kHz with random weights."""
    path = tmp_path_factory.mktemp("model") / "model.ckpt"
    cfg = with_checkpoint_files(
        ExperimentConfig.of(speechtrain.compose(["data=synthetic", *options, "tokenizer=char", "backend.threads=1"]))
    )
    backend = build("backend", cfg.backend)
    features = build("features", cfg.features)
    tokenizer = build("tokenizer", cfg.tokenizer, vocabulary=VOCABULARY)
    task = build_task(cfg, tokenizer=tokenizer, input_size=features.size)
    made = backend.build(cfg.model, task, input_size=features.size, seed=1)
    import torch

    torch.nn.init.normal_(made.head.weight, std=1.0)
    backend.save(made, path, {"config": cfg.as_dict(), "vocabulary": VOCABULARY})
    return path


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recording of two channels at each rate, and a manifest of them."""
    folder = tmp_path_factory.mktemp("recordings")
    lines = []
    for rate in RATES:
        rng = np.random.default_rng(rate)
        time = np.arange(round(2.0 * rate)) / rate
        sweep = np.sin(2 * np.pi * (200 + 1000 * time) * time)
        samples = np.stack([0.3 * sweep, 0.1 * np.repeat(rng.standard_normal(40), -(-len(time) // 40))[: len(time)]], axis=1)
        soundfile.write(folder / f"at{rate}.wav", samples, rate)
        lines.append(json.dumps({"audio_filepath": f"at{rate}.wav", "text": "ab ca", "utt_id": f"at{rate}"}))
    (folder / "all.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "other.jsonl").write_text(lines[0].replace('"utt_id": "', '"utt_id": "other-'))
    return folder


@pytest.fixture(scope="module")
def expected(model: Path, recordings: Path) -> dict[str, str]:
    """The text of each recording, by `speechtrain.load`."""
    recognizer = speechtrain.load(str(model))
    texts = {f"at{rate}": recognizer.transcribe(recordings / f"at{rate}.wav").text for rate in RATES}
    assert len(set(texts.values())) == len(RATES)
    assert all(len(text) > 3 for text in texts.values())
    return texts


def run(module: str, *arguments: str) -> str:
    """What a command writes to the standard output."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert importlib.import_module(f"speechtrain.{module}").run(list(arguments)) == 0
    return output.getvalue()


def test_samples_and_contents_have_the_log_probabilities_of_their_file(model: Path, recordings: Path) -> None:
    recognizer = speechtrain.load(str(model))
    for rate in RATES:
        path = recordings / f"at{rate}.wav"
        samples, _ = soundfile.read(path, dtype="float32")
        log_probs = recognizer.log_probs(path)
        np.testing.assert_array_equal(recognizer.log_probs(samples, rate), log_probs)
        np.testing.assert_array_equal(recognizer.log_probs(path.read_bytes()), log_probs)


@pytest.mark.parametrize("rate", RATES)
def test_the_command_gives_the_text_that_python_gives(model: Path, recordings: Path, expected: dict[str, str], rate: int) -> None:
    assert run("transcribe", f"from={model}", str(recordings / f"at{rate}.wav")).strip() == expected[f"at{rate}"]


def test_an_evaluation_of_a_manifest_gives_the_same_texts(model: Path, recordings: Path, expected: dict[str, str], tmp_path: Path) -> None:
    run("evaluate", f"from={model}", *manifest(recordings), "report=false", f"out={tmp_path}")
    rows = [line.split("\t") for line in (tmp_path / "predictions.tsv").read_text().splitlines()]
    assert {utterance: hypothesis.strip() for _, hypothesis, utterance in rows} == expected


def test_training_sees_the_features_of_the_same_samples(model: Path, recordings: Path, options: list[str]) -> None:
    recognizer = speechtrain.load(str(model))
    tokens = [*options, "tokenizer=char", "backend.threads=1", "augment=none", "data.num_workers=0", "data.feature_cache=null"]
    data = prepared([*manifest(recordings, train="all.jsonl", test="other.jsonl"), *tokens, "data.split.by=utterance"])
    seen = {}
    for batch in data.loader("train"):
        for row, utterance in enumerate(batch.ids):
            seen[utterance] = batch.features[row, : batch.feature_lengths[row]]
    assert set(seen) == {f"at{rate}" for rate in RATES}
    for utterance, features in seen.items():
        samples = recognizer.read(recordings / f"{utterance}.wav")
        np.testing.assert_array_equal(features, recognizer.feature_frames(samples).numpy())


def test_alignments_of_files_and_of_a_manifest_are_those_of_python(model: Path, recordings: Path, tmp_path: Path) -> None:
    recognizer = speechtrain.load(str(model))
    run("align", f"from={model}", *manifest(recordings), "format=[json]", f"out={tmp_path / 'all'}")
    listed = {each["id"]: each for each in map(json.loads, (tmp_path / "all/alignments.jsonl").read_text().splitlines())}
    for rate in RATES:
        path = recordings / f"at{rate}.wav"
        run("align", f"from={model}", f"audio={path}", "text=ab ca", "format=[json]", f"out={tmp_path / str(rate)}")
        (alone,) = map(json.loads, (tmp_path / str(rate) / "alignments.jsonl").read_text().splitlines())
        score = round(recognizer.align(path, "ab ca").score, 4)
        assert alone["score"] == score
        assert listed[path.stem]["score"] == pytest.approx(score, abs=2e-4)  # computed in a batch
        assert [(each["text"], each["start"]) for each in listed[path.stem]["words"]] == [
            (each["text"], each["start"]) for each in alone["words"]
        ]


def test_a_service_gives_the_same_texts(model: Path, recordings: Path, expected: dict[str, str]) -> None:
    from starlette.testclient import TestClient

    from speechtrain.config.compose import compose_command
    from speechtrain.config.schemas.commands import ServeConfig
    from speechtrain.inference.service.application import application
    from speechtrain.inference.service.service import Service

    with TestClient(application(Service({"tones": speechtrain.load(str(model))}, compose_command(ServeConfig, [])))) as client:
        for name, text in expected.items():
            assert client.post("/transcribe", content=(recordings / f"{name}.wav").read_bytes()).json()["text"] == text


def test_a_model_of_mlflow_gives_the_same_texts(model: Path, recordings: Path, expected: dict[str, str]) -> None:
    from speechtrain.inference.mlflow_model import TranscribingModel

    served = TranscribingModel()
    served.load_context(SimpleNamespace(artifacts={"weights": str(model)}))
    assert isinstance(served._recognizer, Recognizer)
    paths = [str(recordings / f"{name}.wav") for name in expected]
    contents = [Path(path).read_bytes() for path in paths]
    for audio in (paths, contents):
        assert list(served.predict(None, pd.DataFrame({"audio": audio}))["text"]) == list(expected.values())


@pytest.mark.cold
def test_transcribing_a_clip_imports_no_more_than_it_needs(
    model: Path, recordings: Path, expected: dict[str, str], options: list[str]
) -> None:
    code = """
import runpy, sys
try:
    runpy.run_module("speechtrain.transcribe", run_name="__main__", alter_sys=True)
finally:
    print(*sorted({name.partition(".")[0] for name in sys.modules} | ({"torch._dynamo"} & set(sys.modules))), file=sys.stderr)
"""
    command = [sys.executable, "-c", code, f"from={model}", str(recordings / "at8000.wav")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, expected["at8000"]), done.stderr
    needless = {
        "jiwer",
        "lhotse",
        "lightning",
        "matplotlib",
        "mlflow",
        "optuna",
        "pandas",
        "scipy",
        "sklearn",
        "sympy",
        "torch._dynamo",
        "triton",
    }
    by_transformers = {"scipy", "sympy", "torch._dynamo", "triton"} if "model=pretrained" in options else set()
    assert needless & set(done.stderr.split()) <= by_transformers


def manifest(folder: Path, **parts: str) -> list[str]:
    splits = {"train": "other.jsonl", "val": "null", "test": "all.jsonl", **parts}
    return ["data=manifest", f"data.root={folder}", *(f"data.{name}={part}" for name, part in splits.items())]
