"""A trained classifier of either backend for TensorFlow Lite Micro, run in its own interpreter."""

from __future__ import annotations

import json
import re
import wave
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY

import speechtrain
from speechtrain.export import run
from speechtrain.inference.microcontroller.interpreters import MicroInterpreter

pytestmark = pytest.mark.slow

KEYWORDS = [
    *(item for item in TINY if not item.startswith(("data", "features"))),
    *("task=classification", "data=manifest", "data.root=.", "data.train=train.jsonl", "data.val=val.jsonl", "data.test=test.jsonl"),
    *("data.batch_size=4", "augment=none", "trainer.epochs=6"),
]
PITCHES = {"low": 300, "middle": 900, "high": 2500}


def record(folder: Path) -> None:
    """Three kinds of noisy tones, of different lengths."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 6), ("test", 24)):
        lines = []
        for number in range(count):
            name, pitch = list(PITCHES.items())[number % 3]
            times = np.arange(3000 + 150 * number) / 8000
            samples = 8000 * np.sin(2 * np.pi * pitch * times) + 400 * rng.standard_normal(len(times))
            with wave.open(str(folder / f"{split}{number}.wav"), "wb") as file:
                file.setparams((1, 2, 8000, 0, "NONE", ""))
                file.writeframes(samples.astype(np.int16).tobytes())
            lines.append(json.dumps({"audio_filepath": f"{split}{number}.wav", "text": name, "duration": len(times) / 8000}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    "options",
    [
        ["backend=torch", "model=matchboxnet", "model.channels=[16,16,16]"],
        ["backend=keras", "model=tdnn", "model.channels=16"],
        ["backend=torch", "model=lstm", "model.hidden_size=16", "task.pool=last"],
        [
            "backend=keras",
            "model=crdnn",
            "model.rnn_size=8",
            "model.rnn_layers=1",
            "model.conv_channels=[4,4]",
            "model.conv_time_strides=[2,2]",
        ],
        [
            "backend=torch",
            "model=matchboxnet",
            "model.channels=[16,16,16]",
            "features=microfrontend",
            "features.sample_rate=8000",
            "features.f_max=3750",
        ],
    ],
    ids=["matchboxnet of Torch", "tdnn of Keras", "lstm of Torch", "crdnn of Keras", "the front end of the device"],
)
def test_a_classifier_runs_in_the_interpreter_of_microcontrollers(
    tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path)
    features = [] if "features=microfrontend" in options else ["features=logmel_8k"]
    speechtrain.train(speechtrain.compose([*KEYWORDS, *features, *options], output_dir=tmp_path / "run"))
    capsys.readouterr()
    assert run([f"from={tmp_path / 'run'}", "format=[tflite_micro]", "out=files"]) == 0
    out = capsys.readouterr().out
    folder = tmp_path / "files/tflite_micro"
    facts = json.loads((folder / "model.json").read_text())
    assert facts["classes"] == ["high", "low", "middle"]
    assert facts["recordings"] == 24
    assert facts["same_class_as_litert"] >= 22
    assert (facts["longer_left_out"], facts["unreadable_left_out"]) == (0, 0)
    assert facts["arena_bytes"] >= 1.1 * facts["arena_used_bytes"]
    assert facts["int8_accuracy"] >= facts["accuracy"] - 0.05 > 0.6
    assert f"{facts['arena_bytes']:,} bytes, {facts['arena_used_bytes']:,} of them used" in out
    assert f"kArenaBytes = {facts['arena_bytes']};" in (folder / "settings.h").read_text()
    MicroInterpreter((folder / "model.tflite").read_bytes(), facts["arena_bytes"])  # in one that is too small it may crash
    if "features=microfrontend" in options:
        assert (facts["features"]["scale"], facts["features"]["zero"]) == (1 / 32, 0)
    assert run([f"from={tmp_path / 'run'}", "format=[tflite_micro]", "out=small", "tflite.max_arena_bytes=1000"]) == 1
    err = capsys.readouterr().err
    assert re.search(r"[1-9]\d*,\d{3} is more than tflite\.max_arena_bytes, which allows 1,000", " ".join(err.split()))
    assert [path.name for path in (tmp_path / "small").iterdir()] == ["bad_tflite_micro.tflite"]
    names = {path.name for path in folder.iterdir()}
    assert names >= {"main.cc", "model_data.cc", "model_data.h", "operators.h", "settings.h", "front_end.cc", "recording.cc", "README.md"}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["backend=torch", "model=jasper", "model.channels=16"], "Jasper is a model of Torch alone"),
        (["backend=keras", "model=conformer"], "Conformer computes with lengths"),
        (["backend=keras", "model=tdnn", "task.pool=max"], "task.pool=max has no counterpart"),
    ],
)
def test_a_model_that_no_microcontroller_runs_is_refused_with_the_reason(
    tmp_path: Path, options: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path)
    speechtrain.train(speechtrain.compose([*KEYWORDS, "features=logmel_8k", *options, "trainer.epochs=1"], output_dir=tmp_path / "run"))
    capsys.readouterr()
    assert run([f"from={tmp_path / 'run'}", "format=[tflite_micro]", "out=files", "frames=100"]) == 1
    assert reason in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "files/tflite_micro").exists()
