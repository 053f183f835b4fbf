"""Digits are spoken the same way whoever asks, whenever, and in however many processes."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile

from speechtrain.data.corpora.digits import VOICES, Digits
from speechtrain.errors import DataError


def digits(folder: Path, **changes: Any) -> Digits:
    keys = {"cache_dir": str(folder), "seed": 1, "train_size": 12, "val_size": 3, "test_size": 3, "min_words": 1, "max_words": 3}
    return Digits(**{**keys, "sample_rate": 16000, "processes": 1, **changes})


def content(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("digits/*/[!.]*.flac")}


def test_audio_is_bit_identical_in_any_order_and_number_of_processes(tmp_path: Path) -> None:
    digits(tmp_path / "one").load(None)
    other = digits(tmp_path / "two", processes=3)
    jobs = [other.job(split, index) for split, size in (("test", 3), ("val", 3), ("train", 12)) for index in reversed(range(size))]
    other._make(jobs)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert len(content(tmp_path / "one")) == 18


def test_another_seed_speaks_otherwise(tmp_path: Path) -> None:
    texts = [[digits(tmp_path, seed=seed).job("train", index)["text"] for index in range(20)] for seed in (1, 2)]
    assert texts[0] != texts[1]


def test_what_is_in_the_cache_is_not_made_again_and_a_lost_file_is(tmp_path: Path) -> None:
    source = digits(tmp_path)
    corpus = source.load(None)
    before = content(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("digits/*/*.flac")}
    lost = Path(source.job("train", 5)["path"])
    lost.unlink()
    source.load(None)
    assert content(tmp_path) == before
    assert [path for path, time in times.items() if path.stat().st_mtime_ns != time] == [lost]
    for cut in corpus.splits["train"]:
        assert cut.num_samples == soundfile.info(cut.path).frames


def test_no_unfinished_file_is_left_when_a_worker_dies(tmp_path: Path) -> None:
    source = digits(tmp_path)
    job = source.job("train", 0)
    Path(job["path"]).parent.mkdir(parents=True)
    code = (
        "import json, os, sys, soundfile\n"
        "from speechtrain.data.corpora import espeak\n"
        "soundfile.write = lambda path, *rest, **named: (open(path, 'wb').write(b'half'), os._exit(9))\n"
        "espeak.make(json.loads(sys.argv[1]))"
    )
    assert subprocess.run([sys.executable, "-c", code, json.dumps(job)], check=False).returncode == 9
    assert not content(tmp_path)
    assert len(list(tmp_path.glob("digits/*/.*"))) == 1
    source.load(None)
    assert len(content(tmp_path)) == 18
    assert not list(tmp_path.glob("digits/*/.*"))


def test_a_limit_makes_only_the_first_utterances(tmp_path: Path) -> None:
    corpus = digits(tmp_path).load(2)
    assert [len(corpus.splits[name]) for name in ("train", "val", "test")] == [2, 2, 2]
    assert len(content(tmp_path)) == 6


def test_no_voice_is_in_two_splits_and_every_voice_exists() -> None:
    import espeakng_loader

    everyone = [voice for voices in VOICES.values() for voice in voices]
    assert len(everyone) == len(set(everyone))
    variants = Path(espeakng_loader.get_data_path()) / "voices" / "!v"
    assert all((variants / voice).is_file() for voice in everyone)


def test_a_voice_that_does_not_exist_is_refused() -> None:
    from speechtrain.data.corpora.espeak import speak

    with pytest.raises(ValueError, match="no voice variant 'nobody'"):
        speak("one", "en-us+nobody", 150, 50, 50)
    with pytest.raises(ValueError, match="no voice 'xx-yy"):
        speak("one", "xx-yy+f1", 150, 50, 50)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"data\.cache_dir"):
        digits(tmp_path / "file").load(None)
