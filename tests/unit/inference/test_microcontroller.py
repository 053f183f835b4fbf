"""What is written for a microcontroller: arrays, operators and the front end in C++, compiled and run here."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from speechtrain.data.features.features import LogMel
from speechtrain.errors import UserError
from speechtrain.inference.archive import write_archive
from speechtrain.inference.archive_summary import archive_lines
from speechtrain.inference.bounds import check_bound
from speechtrain.inference.export import exported_files
from speechtrain.inference.microcontroller import cpp, interpreters, trial
from speechtrain.inference.microcontroller.interpreters import Memory
from speechtrain.inference.microcontroller.operators import Graph, resolver_method
from speechtrain.inference.microcontroller.windows import Window, features_of, most_samples
from speechtrain.inference.scales import Scale

RATE = 8000
FRAMES = 60
CLASSES = ["yes", 'quo"te', "größer", "é1"]
DRIVER = """
#include <cstdio>
#include "front_end.h"
#include "model_data.h"
#include "recording.h"
float features[kFrames * kBands];
int main() {
  for (int i = 0; i < kClasses; ++i) std::printf("%s\\n", kClassNames[i]);
  std::printf("%s\\n", kRecordedClass);
  for (unsigned int i = 0; i < kModelBytes; ++i) std::printf("%d ", kModelData[i]);
  const int frames = ComputeFeatures(kRecording, kRecordingSamples, features);
  std::printf("\\n%d\\n", frames);
  for (int i = 0; i < frames * kBands; ++i) std::printf("%.9g ", features[i]);
}
"""


def logmel(**options: float | str | bool | None) -> LogMel:
    given = {"n_mels": 24, "window": 0.025, "hop": 0.01, "f_min": 20, "f_max": None, "preemphasis": 0.97, "normalize": "utterance"}
    return LogMel(RATE, **{**given, **options})  # type: ignore[arg-type]


def speech() -> np.ndarray:
    """A loud part with an offset between two faint ones, and digital silence at the end."""
    rng = np.random.default_rng(0)
    loud = np.concatenate([np.full(1200, 0.003), np.hanning(1600), np.full(700, 0.001)])
    samples = 9000 * loud * rng.standard_normal(len(loud)) + 300
    return np.concatenate([samples, np.zeros(800)]).round().astype(np.int16)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler")
@pytest.mark.parametrize(
    "options",
    [
        {"silence_db": 60, "speech_db": 25, "remove_dc": True},
        pytest.param({"normalize": "band", "top_db": 40, "silence_db": 30}, marks=pytest.mark.slow),
        pytest.param({"normalize": "none", "preemphasis": 0, "n_mels": 40, "f_max": 3000}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_front_end_in_c_has_the_features_of_training(tmp_path: Path, options: dict[str, float | str | bool]) -> None:
    features, samples, model = logmel(**options), speech(), bytes(range(256)) * 3
    texts = {
        **cpp.model_files(model),
        **cpp.recording_files(samples, CLASSES[2]),
        **cpp.front_end_files(features),
        "settings.h": cpp.settings_file(
            {"kSampleRate": RATE, "kMaxSamples": most_samples(features, FRAMES), "kFrames": FRAMES, "kBands": features.size}, CLASSES
        ),
        "driver.cc": DRIVER,
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    sources = [str(path) for path in tmp_path.glob("*.cc")]
    subprocess.run(["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", *sources, "-o", str(tmp_path / "driver")], check=True)
    lines = subprocess.run([tmp_path / "driver"], check=True, capture_output=True).stdout.decode().splitlines()
    assert lines[:5] == [*CLASSES, CLASSES[2]]
    assert bytes(map(int, lines[5].split())) == model
    expected = features_of(features, samples.astype(np.float32) / 32768)
    assert int(lines[6]) == len(expected)
    found = np.array(lines[7].split(), dtype=np.float32).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_each_operator_has_the_librarys_name_of_its_method() -> None:
    names = {"CONV_2D": "AddConv2D", "FULLY_CONNECTED": "AddFullyConnected", "MEAN": "AddMean", "REVERSE_V2": "AddReverseV2"}
    assert {name: resolver_method(name) for name in names} == names
    assert "MicroMutableOpResolver<2>" in cpp.operators_file(["SOFTMAX", "CONV_2D"])


def test_whole_numbers_stand_for_the_nearest_values_and_keep_within_bounds() -> None:
    scale = Scale(0.1, -10)
    numbers = scale.quantised(np.array([0.0, 0.26, -0.24, 99, -99], dtype=np.float32))
    assert numbers.tolist() == [-10, -7, -12, 127, -128]
    np.testing.assert_allclose(scale.values(numbers[:3]), [0.0, 0.3, -0.2], atol=1e-6)


def test_what_exceeds_a_bound_fails_with_both_numbers() -> None:
    check_bound("tflite_micro", "max_bytes", 20_000, None)
    check_bound("tflite_micro", "max_bytes", 20_000, 20_000)
    with pytest.raises(UserError, match=r"tflite_micro: 20,001 is more than tflite\.max_bytes, which allows 20,000"):
        check_bound("tflite_micro", "max_bytes", 20_001, 20_000)


def test_an_archive_is_told_by_its_training_evaluations_and_exports(tmp_path: Path) -> None:
    facts = {"format": "tflite_micro", "arena_bytes": 37840, "int8_accuracy": 0.96, "classes": ["a"], "operators": {"ADD": 3, "SOFTMAX": 1}}
    files = {
        "history.jsonl": '{"train/loss": 2.0, "val/accuracy": 0.5}\n{"train/loss": 1.0, "val/accuracy": 0.75}\n',
        "run.json": '{"metrics": {"test/accuracy": 0.7, "train/lr": 1.0}}',
        "evaluation-2/evaluation.json": '{"accuracy": 0.8, "split": "test"}',
        "exports/tflite_micro/model.json": json.dumps(facts),
    }
    write_archive(tmp_path / "model.zip", files, {"weights": "weights.ckpt", "backend": "torch"})
    lines = list(archive_lines(tmp_path / "model.zip"))
    assert "4 files" in lines[0]
    assert lines[1:] == [
        "tested      test/accuracy 70.00 %",
        "history     first of 2 epochs: train/loss 2.0000, val/accuracy 50.00 %",
        "history     last of 2 epochs: train/loss 1.0000, val/accuracy 75.00 %",
        "evaluation  evaluation-2: accuracy 80.00 %",
        "export      tflite_micro: arena_bytes 37,840, int8_accuracy 0.9600",
        "operators   ADD 3, SOFTMAX 1",
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("history.jsonl", "[1, 2]\n"),
        ("history.jsonl", "{not json\n"),
        ("run.json", '{"metrics": {"test/a": ' + "[" * 100_000 + "}}"),
        ("exports/tflite/model.json", '{"arena_bytes": 1' + "0" * 5000 + "}"),
        ("evaluation-2/evaluation.json", "\xff"),
    ],
    ids=["no epoch", "no json", "nested", "huge number", "other text"],
)
def test_what_is_wrong_in_an_archive_is_a_message(tmp_path: Path, name: str, content: str) -> None:
    write_archive(tmp_path / "model.zip", {name: content}, {"weights": "weights.ckpt"})
    with pytest.raises(UserError, match=r"model\.zip: what is in the archive cannot be told"):
        list(archive_lines(tmp_path / "model.zip"))


def test_nothing_in_an_archive_reaches_the_terminal_as_an_escape(tmp_path: Path) -> None:
    facts = {"format": "\x1b[2J", "arena\x1b]0;x\x07": 1, "operators": {"ADD\r\n": "\x1b[31m", "\ud800": 1}}
    files = {"exports/a/model.json": json.dumps(facts), "run.json": '{"metrics": {"test/\\u001b": 0.5}}'}
    write_archive(tmp_path / "model.zip", files, {"weights": "weights.ckpt", "backend": "\x1b[1m"})
    lines = list(archive_lines(tmp_path / "model.zip"))
    assert len(lines) == 4
    assert all(line.isprintable() for line in lines)
    assert "<U+001B>[2J" in lines[2]


def test_an_archive_has_the_recording_of_a_folder_for_microcontrollers_only_if_it_is_asked_for(tmp_path: Path) -> None:
    for name in ("model.tflite", "main.cc", "recording.cc", "recording.h", ".speechtrain"):
        (tmp_path / name).write_text("")
    given_on = {name for name, _ in exported_files(tmp_path, recording=False)}
    assert given_on == {f"{tmp_path.name}/main.cc", f"{tmp_path.name}/model.tflite"}
    everything = {name for name, _ in exported_files(tmp_path, recording=True)}
    assert everything - given_on == {f"{tmp_path.name}/recording.cc", f"{tmp_path.name}/recording.h"}


@pytest.mark.skipif(shutil.which("g++") is None or shutil.which("size") is None, reason="needs a compiler")
def test_the_static_buffers_of_the_front_end_are_counted(tmp_path: Path) -> None:
    features = logmel(silence_db=60)
    texts = {
        **cpp.front_end_files(features),
        "settings.h": cpp.settings_file(
            {"kSampleRate": RATE, "kMaxSamples": most_samples(features, FRAMES), "kFrames": FRAMES, "kBands": features.size}, CLASSES
        ),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    subprocess.run(["g++", "-std=c++17", "-c", "front_end.cc"], check=True, cwd=tmp_path)
    sections = subprocess.run(["size", "-A", "front_end.o"], check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    taken = sum(int(line.split()[1]) for line in sections.splitlines() if line.startswith((".bss", ".data ")))
    counted = cpp.front_end_bytes(features, most_samples(features, FRAMES), FRAMES)
    assert counted <= taken <= counted + 256  # numbers alone, and gaps


class Interpreter:
    """Gives whole numbers that are known, in place of an interpreter."""

    input = output = Scale(1 / 256, -128)
    place = 0

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = np.array(numbers, dtype=np.int8)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        return self.numbers


@pytest.mark.parametrize(("difference", "passes"), [(0, True), (3, True), (4, False)])
def test_another_class_than_in_litert_is_allowed_within_three_steps(monkeypatch: pytest.MonkeyPatch, difference: int, passes: bool) -> None:
    monkeypatch.setattr(trial, "read_graph", lambda model: Graph(Counter({"ADD": 1}), 7))
    monkeypatch.setattr(trial, "measure_memory", lambda model: Memory(1000, 2000))
    monkeypatch.setattr(trial, "MicroInterpreter", lambda model, arena: Interpreter([-6, -5, -117]))
    monkeypatch.setattr(trial, "LiteRtInterpreter", lambda model: Interpreter([-6 + difference, -6, -116]))
    windows = [Window("a", "yes", np.zeros(9, dtype=np.int16), np.zeros((2, 3), dtype=np.float32))]
    if not passes:
        with pytest.raises(UserError, match="another class than LiteRT, such as a, which is more probable in LiteRT by more than 3 steps"):
            trial.try_model(b"", windows, np.zeros((1, 3), dtype=np.float32))
        return
    found = trial.try_model(b"", windows, np.zeros((1, 3), dtype=np.float32))
    assert (found.equal, found.steps) == (0, max(1, difference))
    steps = "1 step" if found.steps == 1 else f"{found.steps} steps"
    assert found.compared == f"gives another class to 1 of 1 recordings; the outputs differ by {steps} of 0.003906 at most"


@pytest.mark.parametrize(("needed", "arena"), [(100_000, 112_512), (130_000, 156_256), (150_000, 156_256), (200_000, 206_256)])
def test_an_arena_has_a_reserve_in_proportion_beyond_one_in_which_the_model_ran(
    monkeypatch: pytest.MonkeyPatch, needed: int, arena: int
) -> None:
    monkeypatch.setattr(interpreters.fresh, "call", lambda *_, **__: 100_000)
    monkeypatch.setattr(interpreters, "_runs", lambda model, size: size >= needed)
    memory = interpreters.measure_memory(b"")
    assert memory.used == 100_000
    assert arena <= memory.arena < arena + 32
    monkeypatch.setattr(interpreters, "_runs", lambda model, size: False)
    with pytest.raises(UserError, match="uses 100,000 bytes of its arena, and cannot run the model in one of twice the size"):
        interpreters.measure_memory(b"")


def test_one_of_a_thousand_recordings_may_have_quite_another_class(monkeypatch: pytest.MonkeyPatch) -> None:
    lite = iter([Interpreter([20, -20, -117])] + 999 * [Interpreter([-20, 20, -117])])
    monkeypatch.setattr(trial, "read_graph", lambda model: Graph(Counter({"ADD": 1}), 7))
    monkeypatch.setattr(trial, "measure_memory", lambda model: Memory(1000, 2000))
    monkeypatch.setattr(trial, "MicroInterpreter", lambda model, arena: Interpreter([-20, 20, -117]))
    monkeypatch.setattr(trial, "LiteRtInterpreter", lambda model: lambda features: next(lite)(features))
    window = Window("a", "yes", np.zeros(9, dtype=np.int16), np.zeros((2, 3), dtype=np.float32))
    found = trial.try_model(b"", 1000 * [window], np.zeros((1000, 3), dtype=np.float32))
    assert (found.equal, found.far, found.steps) == (999, 1, 40)
    assert "another class to 1 of 1000 recordings, 1 of them by more than 3 steps; the outputs differ by 40 steps" in found.compared
