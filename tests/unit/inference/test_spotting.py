"""Keywords in audio that goes on: what is averaged, reported, held back and counted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import TINY

from speechtrain.backends.torch.backend import TorchBackend
from speechtrain.config.build import build
from speechtrain.config.compose import compose, compose_command
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.config.schemas.commands import SpotConfig
from speechtrain.data.prepare import prepare_split
from speechtrain.data.text.base import build_tokenizer
from speechtrain.errors import ConfigError, UserError
from speechtrain.inference.recognizer import Recognizer
from speechtrain.inference.recordings import find_recordings
from speechtrain.inference.spotting import Spotter, read_background, read_keywords, write_curve
from speechtrain.spot import run
from speechtrain.tasks.build import build_task

NAMES = ["yes", "no", "_unknown_"]


@pytest.fixture(scope="module")
def recognizer() -> Recognizer:
    """A classifier of random weights."""
    cfg = ExperimentConfig.of(compose([*TINY, "task=classification", "model=mlp", "model.hidden_sizes=[16]"]))
    tokenizer = build_tokenizer(cfg.tokenizer, vocabulary=NAMES)
    features, task, backend = build("features", cfg.features), build_task(cfg, tokenizer=tokenizer, input_size=40), TorchBackend(threads=1)
    return Recognizer(backend, backend.build(cfg.model, task, input_size=features.size, seed=1), task, features, tokenizer, cfg)


def config(*words: str) -> SpotConfig:
    return compose_command(SpotConfig, ["background=talk", *words])


def test_probabilities_are_those_of_windows_averaged(recognizer: Recognizer) -> None:
    samples = np.random.default_rng(0).standard_normal(12000).astype(np.float32) * 0.1
    single = Spotter(recognizer, config("window=0.5", "step=0.25", "smooth=1")).probabilities(samples)
    averaged = Spotter(recognizer, config("window=0.5", "step=0.25", "smooth=3")).probabilities(samples)
    assert single.shape == (6, 3)
    np.testing.assert_allclose(single.sum(1), 1, rtol=1e-5)
    window = samples[4000:8000]  # behind 0.25 s of silence the fourth window ends at 1 s
    features = recognizer.features.finish(recognizer.features.mel(recognizer.features.spectrum(window)))
    values, _ = recognizer.backend.infer(recognizer.model, features.numpy()[None], np.array([len(features)]))
    np.testing.assert_allclose(single[3], np.exp(values[0, 0]), rtol=1e-4)
    np.testing.assert_allclose(averaged[4], single[2:5].mean(0), rtol=1e-4)
    np.testing.assert_allclose(averaged[0], single[0], rtol=1e-4)


def test_a_keyword_is_reported_once_and_ignored_classes_never(recognizer: Recognizer) -> None:
    spotter = Spotter(recognizer, config("step=0.1", "hold=0.5"))
    probabilities = np.zeros((20, 3), dtype=np.float32)
    probabilities[:, 2] = 0.95
    probabilities[3:6] = [0.9, 0.1, 0.0]
    probabilities[15] = [0.2, 0.7, 0.1]
    assert [(each.label, round(each.seconds, 1)) for each in spotter.found(probabilities, 0.6)] == [(0, 0.4), (1, 1.6)]
    assert [each.label for each in spotter.found(probabilities, 0.8)] == [0]
    with pytest.raises(UserError, match="names all classes"):
        Spotter(recognizer, config("ignore=[yes,no,_unknown_]"))


def test_the_curve_counts_alarms_in_the_background_and_misses_of_the_keywords(recognizer: Recognizer, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", rng.standard_normal(36000) * 0.1, 8000)
    spotter = Spotter(recognizer, config("window=0.5", "step=0.5", "smooth=1", "hold=0", "thresholds=[0.01,1]"))
    files = [file for file in find_recordings([str(tmp_path)]) if file is not None]
    points, hours = spotter.curve(read_background(recognizer, files), [(0, np.zeros(4000, dtype=np.float32))])
    assert hours == pytest.approx(9 / 3600)
    assert [point.false_alarms for point in points] == [18, 0]
    assert points[0].false_alarms_per_hour == pytest.approx(7200)
    assert points[1].missed == 1
    lines = write_curve(points, hours, tmp_path / "out").read_text().splitlines()
    assert lines[0].split("\t") == ["threshold", "false_alarms_per_hour", "missed", "wrong"]
    assert lines[2] == "1\t0\t1.0000\t0.0000"


def test_keywords_are_the_utterances_of_classes_that_are_not_ignored(tmp_path: Path) -> None:
    words = ["data=keyword_windows", "+data@data.corpora.digits=synthetic", "data.corpora.digits.test_size=6", "tracking=[]"]
    more = ["data.silence=1", "task=classification", "model=mlp", "features=logmel_8k", "tokenizer.unknown=_unknown_"]
    cfg = ExperimentConfig.of(compose([*words, *more]))
    data = prepare_split(cfg, "test", build_tokenizer(cfg.tokenizer, vocabulary=["a"]), threads=1)
    names = sorted({cut.text for cut in data.corpus.splits["test"]})
    tokenizer = build_tokenizer(cfg.tokenizer, vocabulary=names)
    features, task, backend = build("features", cfg.features), build_task(cfg, tokenizer=tokenizer, input_size=40), TorchBackend(threads=1)
    model = Recognizer(backend, backend.build(cfg.model, task, input_size=features.size, seed=1), task, features, tokenizer, cfg)
    counts = Counter(cut.text for cut in data.corpus.splits["test"])
    found = [len(read_keywords(model, "test", ignore)) for ignore in ([], ["_silence_"], ["_silence_", "_unknown_"])]
    assert found == [sum(counts.values()), sum(counts.values()) - counts["_silence_"], 6]
    with pytest.raises(ConfigError, match="test has no utterances of the model's keywords"):
        read_keywords(model, "test", names)


def test_what_cannot_be_measured_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="background: names no recordings"):
        compose_command(SpotConfig, [])
    with pytest.raises(ConfigError, match="step: is 2 s, longer than the window"):
        config("step=2")
    soundfile.write(tmp_path / "a.wav", np.zeros(8000), 8000)
    with pytest.raises(UserError, match="found by models of task=classification, received Ctc"):
        run([f"from={trained}", f"background={tmp_path / 'a.wav'}"])
