"""Windows with keywords in other speech and in noise."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import SHARED_DATA, prepared

import speechtrain
from speechtrain import compose
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.data.corpora.keyword_windows import KeywordWindows
from speechtrain.data.corpora.manifest import Manifest
from speechtrain.data.corpus import Corpus
from speechtrain.errors import ConfigError, DataError

RATE = 8000
SPLIT = {"by": "speaker", "val": 0, "test": 0, "seed": 0}


def record(folder: Path) -> None:
    """A string of two tones with their times, and talk of two sentences, in the second of which a keyword stands."""
    tone = np.sin(2 * np.pi * 500 * np.arange(2400) / RATE)
    string = np.concatenate([0.5 * tone, np.zeros(800), 0.25 * tone])
    talk = 0.05 * np.random.default_rng(0).standard_normal(int(3.5 * RATE))
    words = [{"word": "yes", "start": 0.0, "end": 0.3}, {"word": "no", "start": 0.4, "end": 0.7}]
    words += [{"word": "later", "start": 0.7, "end": 0.9}, {"start": 0.1}]  # behind the end, and without a word: left out
    for name, samples, text, more in (
        ("string", string, "yes no", {"words": words}),
        ("a", talk, "good evening", {}),
        ("b", talk[::-1], "he said yes", {}),
    ):
        soundfile.write(folder / f"{name}.wav", samples, RATE)
        line = {"audio_filepath": f"{name}.wav", "text": text, "duration": len(samples) / RATE, "utt_id": name, **more}
        with (folder / f"{'strings' if more else 'talk'}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


def windows(folder: Path, **options: object) -> tuple[KeywordWindows, Corpus]:
    strings, talk = (
        Manifest(str(folder), f"{name}.jsonl", None, None, SPLIT, None, 0.1, False)  # type: ignore[arg-type]
        for name in ("strings", "talk")
    )
    given = {"context": 1.0, "partial": 1.0, "silence": 0.5, "snr_db": [60, 60], "seed": 0, "weights": {}, **options}
    source = KeywordWindows({"strings": strings, "talk": talk}, background=["talk"], window=1.0, **given)  # type: ignore[arg-type]
    return source, source.load(None)


def test_a_string_is_divided_into_its_words_and_talk_into_windows_without_keywords(tmp_path: Path) -> None:
    record(tmp_path)
    _, corpus = windows(tmp_path, weights={"strings": 2})
    cuts = corpus.splits["train"]
    talk = [cut.id for cut in cuts if cut.id.startswith("talk")]
    assert talk in (["talk/a@0", "talk/a@1"], ["talk/a@0", "talk/a@1", "talk/a@2"])
    assert Counter(cut.text for cut in cuts) == {"yes": 2, "no": 2, "_unknown_": 4 + len(talk), "_silence_": round((8 + len(talk)) / 2)}
    assert {cut.duration for cut in cuts} == {1.0}
    assert len({cut.id for cut in cuts}) == len(cuts)


def test_a_window_holds_the_whole_keyword_at_a_place_of_its_own_or_less_than_half(tmp_path: Path) -> None:
    record(tmp_path)
    _, corpus = windows(tmp_path, context=0.0, weights={"strings": 8})
    whole, parts = [], []
    for cut in corpus.splits["train"]:
        if cut.id.startswith("strings"):
            samples = corpus.read(cut, RATE)
            assert samples.shape == (RATE,)
            assert samples.dtype == np.float32
            np.testing.assert_array_equal(samples, corpus.read(cut, RATE))
            heard = np.flatnonzero(np.abs(samples) > 0.05)
            (parts if cut.id.endswith("/part") else whole).append((heard[0], heard[-1] - heard[0]))
    assert all(2300 < length <= 2400 for _, length in whole)
    assert len({start for start, _ in whole}) == len(whole)
    assert all(length < 0.41 * 2400 and (start < 100 or start + length > RATE - 100) for start, length in parts)


def test_other_speech_stands_beside_a_keyword_and_not_under_it(tmp_path: Path) -> None:
    record(tmp_path)
    _, corpus = windows(tmp_path)
    cut = next(cut for cut in corpus.splits["train"] if cut.text == "yes")
    samples = corpus.read(cut, RATE)
    heard = np.flatnonzero(np.abs(np.convolve(samples**2, np.ones(200) / 200, "same")) > 0.1)
    word = samples[heard[0] + 200 : heard[-1] - 200]
    crossings = np.count_nonzero(np.diff(np.sign(word)))
    assert crossings / len(word) * RATE == pytest.approx(1000, rel=0.02)  # of 500 Hz alone
    beside = np.concatenate([samples[: max(0, heard[0] - 400)], samples[heard[-1] + 400 :]])
    assert np.sqrt(np.mean(beside**2)) > 0.02
    _, alone = windows(tmp_path, context=0.0)
    assert np.abs(np.concatenate([alone.read(cut, RATE)[:1], alone.read(cut, RATE)[-1:]])).max() < 0.01


def test_windows_are_trained_on(tmp_path: Path) -> None:
    record(tmp_path)
    corpora = []
    for name in ("strings", "talk"):
        corpora += [
            f"+data@data.corpora.{name}=manifest",
            f"data.corpora.{name}.root={tmp_path}",
            f"data.corpora.{name}.train={name}.jsonl",
        ]
    words = ["data=keyword_windows", "data.background=[talk]", *corpora, "task=classification", "tracking=[]", "features=logmel_8k"]
    data = prepared([*words, "tokenizer.classes=[yes,_silence_]", "tokenizer.unknown=_unknown_"])
    assert data.tokenizer.vocabulary == ["yes", "_silence_", "_unknown_"]
    batches = list(data.loader("train", shuffle=True))
    assert {tuple(batch.features.shape[1:]) for batch in batches} == {(101, 40)}
    with pytest.raises(ConfigError, match=r"data\.background: there is no corpus news in data\.corpora"):
        compose([*words, "data.background=[news]"])
    with pytest.raises(ConfigError, match=r"data\.background: names all corpora"):
        compose([*words, "data.background=[strings,talk]"])


@pytest.mark.slow
@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no recorded speech beside the checkout")
def test_the_recipe_of_a_spotter_trains(tmp_path: Path) -> None:
    names = {"strings": "fsdd_strings", "books": "librispeech_tc100", "more_books": "librispeech_devclean10_mp3", "reader": "kathleen_en"}
    roots = [f"data.corpora.{name}.root={SHARED_DATA / folder}" for name, folder in names.items()]
    small = ["data.limit_utterances=20", "trainer.epochs=2", "data.corpora.spoken.train_size=20", "data.corpora.spoken.val_size=10"]
    quiet = ["tracking=[]", "report.enabled=false", "backend.threads=1"]
    result = speechtrain.train(compose(["experiment=spotting", *roots, *small, *quiet], output_dir=tmp_path))
    assert result.metrics["train/loss"] < 1.5


def test_speech_that_is_made_on_the_spot_is_not_cut_into_windows() -> None:
    words = ["data=keyword_windows", "+data@data.corpora.tones=synthetic", "+data@data.corpora.talk=synthetic", "data.background=[talk]"]
    with pytest.raises(DataError, match=r"data\.background: talk does not consist of audio files"):
        prepared([*words, "task=classification", "tracking=[]", "features=logmel_8k"])


def test_a_stored_config_of_windows_is_read_again(tmp_path: Path) -> None:
    record(tmp_path)
    corpora = [f"+data@data.corpora.{name}=manifest" for name in ("strings", "talk")]
    corpora += [f"data.corpora.{name}.root={tmp_path}" for name in ("strings", "talk")]
    corpora += [f"data.corpora.{name}.train={name}.jsonl" for name in ("strings", "talk")]
    cfg = ExperimentConfig.of(compose(["data=keyword_windows", "data.background=[talk]", *corpora]))
    assert ExperimentConfig.stored(cfg.as_dict(), "here", trust=False).corpus == cfg.corpus
