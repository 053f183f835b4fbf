"""Tar files of others, Lhotse's Shar and WebDataset, get an index, and are read as they are."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

from speechtrain import shard
from speechtrain.data.corpora.shar import Shar
from speechtrain.data.corpus import Corpus
from speechtrain.errors import ConfigError, DataError


def noise(number: int) -> np.ndarray:
    return np.round(np.random.default_rng(number).uniform(-0.5, 0.5, 1600) * 2**15).astype(np.float32) / 2**15


def flac(number: int) -> bytes:
    stored = io.BytesIO()
    soundfile.write(stored, noise(number), 8000, format="FLAC")
    return stored.getvalue()


def pack(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def indexed(root: Path) -> Corpus:
    assert shard.run([f"tars={root}"]) == 0
    return Shar(str(root), {"by": "utterance", "val": 0, "test": 0, "seed": 0}, 2, 0, 1.0).load(None)


def as_json(**values: Any) -> bytes:
    return json.dumps(values).encode()


def test_webdataset_is_read_with_its_texts_speakers_and_other_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = {"a.flac": flac(0), "a.txt": b"one  two\n", "a.json": as_json(text="other", speaker=7, mood="calm")}
    pack(tmp_path / "train-000.tar", {**first, "sub/b.json": as_json(text="grüße"), "sub/b.cls": b"3", "sub/b.flac": flac(1)})
    pack(tmp_path / "train-001.tar", {"c.flac": flac(2), "c.txt": b"three"})
    pack(tmp_path / "dev" / "000.tar", {"d.flac": flac(3), "d.txt": b"four"})
    corpus = indexed(tmp_path)
    assert "utterances  train 3, val 1, test 0" in capsys.readouterr().out
    listed = [(cut.id, cut.text, cut.speaker, dict(cut.custom)) for cut in corpus.splits["train"]]
    assert listed == [("a", "one two", "7", {"mood": "calm"}), ("sub/b", "grüße", None, {}), ("c", "three", None, {})]
    for number, cut in enumerate([*corpus.splits["train"], *corpus.splits["val"]]):
        np.testing.assert_array_equal(corpus.read(cut, 8000), noise(number))


def test_shar_of_lhotse_is_read_with_the_texts_of_its_lists(tmp_path: Path) -> None:
    cuts = []
    for number in range(5):
        soundfile.write(tmp_path / f"{number}.wav", noise(number), 8000)
        recording = Recording.from_file(tmp_path / f"{number}.wav", recording_id=f"r{number}")
        said = SupervisionSegment(f"s{number}", f"r{number}", 0.0, 0.2, text=f"word {number}", speaker="ann")
        cuts.append(MonoCut(f"x.{number}", 0.0, 0.2, 0, supervisions=[said], recording=recording, custom={"mood": "calm"}))
    (tmp_path / "tars" / "train").mkdir(parents=True)
    CutSet.from_cuts(cuts).to_shar(tmp_path / "tars" / "train", {"recording": "flac"}, shard_size=2)
    corpus = indexed(tmp_path / "tars")
    assert [(cut.id, cut.text, cut.speaker) for cut in corpus.splits["train"]] == [(f"x.{n}", f"word {n}", "ann") for n in range(5)]
    for number, cut in enumerate(corpus.splits["train"]):
        np.testing.assert_allclose(corpus.read(cut, 8000), noise(number), atol=2**-14)
    (tmp_path / "tars" / "train" / "cuts.000001.jsonl.gz").unlink()
    with pytest.raises(DataError, match=r"recording.000001.tar: there is no cuts.000001.jsonl.gz beside it"):
        shard.run([f"tars={tmp_path / 'tars'}"])


def test_what_cannot_be_used_is_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = {
        "silent.txt": b"no audio",
        "mute.flac": flac(1),
        "list.json": b"[1]",
        "list.flac": flac(2),
        "broken.flac": b"no audio at all",
        "broken.txt": b"a",
        "latin.txt": b"\xe9",
        "latin.flac": flac(4),
        "empty.txt": b" ",
        "empty.flac": flac(5),
        "good.flac": flac(0),
        "good.txt": b"good",
    }
    pack(tmp_path / "a.tar", bad)
    corpus = indexed(tmp_path)
    assert [cut.id for cut in corpus.splits["train"]] == ["good"]
    for name, reason in {
        "silent": "holds no recording",
        "mute": "has no text",
        "list": "its JSON must be an object",
        "broken": "cannot be read as audio",
        "latin": "is not UTF-8",
        "empty": "its text is empty",
    }.items():
        assert any(f"a.tar, '{name}': " in line and reason in line for line in caplog.text.splitlines()), name


def test_a_folder_without_tar_files_or_with_a_damaged_one_is_refused_and_keeps_its_index(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no tar file"):
        shard.run([f"tars={tmp_path}"])
    with pytest.raises(DataError, match=r"no such folder"):
        shard.run([f"tars={tmp_path / 'absent'}"])
    pack(tmp_path / "a.tar", {"good.flac": flac(0), "good.txt": b"good", "more.flac": flac(1), "more.txt": b"more"})
    indexed(tmp_path)
    before = (tmp_path / "index.jsonl.gz").read_bytes()
    content = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(content[:700])
    with pytest.raises(DataError, match=r"a.tar: cannot be read as a tar file"):
        shard.run([f"tars={tmp_path}"])
    assert [path.name for path in tmp_path.iterdir() if path.name != "a.tar"] == ["index.jsonl.gz"]
    assert (tmp_path / "index.jsonl.gz").read_bytes() == before
    with pytest.raises(ConfigError, match=r"'data=manifest' is not accepted beside tars"):
        shard.run([f"tars={tmp_path}", "data=manifest"])


def test_the_split_is_told_by_whole_words(tmp_path: Path) -> None:
    folders = {"testimony": "train", "Development": "val", "valley": "train", "devotion": "train", "test1": "test", "valid-x": "val"}
    for number, folder in enumerate(folders):
        pack(tmp_path / folder / "000.tar", {f"{folder}.flac": flac(number), f"{folder}.txt": b"one"})
    splits = indexed(tmp_path).splits
    assert {cut.id: split for split, cuts in splits.items() for cut in cuts} == folders


def test_an_utterance_that_occurs_in_two_tar_files_is_named_before_the_index_is_written(tmp_path: Path) -> None:
    for name in ("train-0", "train-1"):
        pack(tmp_path / f"{name}.tar", {"000.flac": flac(0), "000.txt": b"one"})
    with pytest.raises(DataError, match=r"utterance id '000' occurs twice \(.*train-0.tar and .*train-1.tar\)\n    -> give each") as raised:
        shard.run([f"tars={tmp_path}"])
    assert not (tmp_path / "index.jsonl.gz").exists(), raised.value


def test_what_is_not_read_is_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = {"a.flac": flac(0), "a.wav": flac(1), "a.txt": b"one", "a.cls": b"3", "README": b"x"}
    pack(tmp_path / "a.tar", {**first, "b.flac": flac(1), "b.txt": b"two", "b.cls": b"4"})
    corpus = indexed(tmp_path)
    np.testing.assert_array_equal(corpus.read(corpus.splits["train"][0], 8000), noise(0))
    assert f"2 files not read: .cls (the first: 'a.cls' in {tmp_path / 'a.tar'})" in caplog.text
    assert "1 file not read: .wav beside another recording (the first: 'a.wav' in" in caplog.text
    assert "1 file not read: no ending (the first: 'README' in" in caplog.text
