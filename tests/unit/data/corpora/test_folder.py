"""Corpora whose folders, or files beside the audio, say what is spoken."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import prepared
from corpora import tone

from speechtrain import compose
from speechtrain.data.corpus import SPLITS
from speechtrain.data.task_data import TaskData
from speechtrain.errors import ConfigError, DataError

QUIET = ["tracking=[]", "report.enabled=false", "features=logmel_8k", "backend.threads=1"]


def texts(data: TaskData, split: str) -> list[str]:
    return sorted(cut.text for cut in data.corpus.splits[split])


def test_a_folder_a_class(tmp_path: Path) -> None:
    for word in ("yes", "no"):
        for index in range(10):
            tone(tmp_path / word / f"anna{index % 2}_{index}.wav")
    tone(tmp_path / "yes" / "deeper" / "x_1.wav")
    tone(tmp_path / ".hidden" / "y.wav")
    given = ["data=folder", f"data.root={tmp_path}", "task=classification", *QUIET]
    data = prepared([*given, "data.split.val=20", "data.split.test=0", r"data.speaker='(?P<speaker>[^_/]+)_[^/]*$'"])
    assert data.tokenizer.vocabulary == ["no", "yes"]
    assert [len(data.corpus.splits[name]) for name in SPLITS] == [17, 4, 0]
    assert {cut.speaker for cut in data.corpus.splits["train"]} == {"anna0", "anna1", "x"}
    again = prepared([*given, "data.split.test=[anna1]", "data.split.val=0", "data.split.by=speaker", r"data.speaker='(?P<speaker>\w+?)_'"])
    assert {cut.speaker for cut in again.corpus.splits["test"]} == {"anna1"}


def test_texts_beside_the_audio(tmp_path: Path) -> None:
    for index in range(6):
        tone(tmp_path / "part" / f"{index}.wav").with_suffix(".lab" if index % 2 else ".txt").write_text(f"word{index}  spoken\n")
    tone(tmp_path / "part" / "bare.wav")
    tone(tmp_path / "part" / "empty.wav").with_suffix(".txt").write_text(" \n")
    data = prepared(["data=folder", f"data.root={tmp_path}", "data.split.val=0", "data.split.test=0", *QUIET])
    assert texts(data, "train") == [f"word{index} spoken" for index in range(6)]
    reasons = {Path(item.where).name: item.reason for item in data.corpus.skipped}
    assert "no bare.txt or bare.lab" in reasons["bare.wav"]
    assert "empty.txt is empty" in reasons["empty.wav"]


def test_folders_for_the_parts(tmp_path: Path) -> None:
    for part, count in (("train", 4), ("dev", 2), ("eval", 3)):
        for word in ("a", "b"):
            for index in range(count):
                tone(tmp_path / part / word / f"{index}.wav")
    given = ["data=folder", f"data.root={tmp_path}", "data.train=train", "data.val=dev", "data.test=eval", *QUIET]
    data = prepared(given)
    assert [texts(data, name) for name in SPLITS] == [["a"] * 4 + ["b"] * 4, ["a"] * 2 + ["b"] * 2, ["a"] * 3 + ["b"] * 3]
    (tmp_path / "dev").rename(tmp_path / "train" / "dev")
    inside = prepared(["data=folder", f"data.root={tmp_path}", "data.train=train", "data.val=train/dev", "data.test=eval", *QUIET])
    assert [len(inside.corpus.splits[name]) for name in SPLITS] == [8, 4, 6]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.speaker='('"], "data.speaker: is no regular expression"),
        (["data.speaker='(.)'"], "data.speaker: has no group named speaker"),
        (["data.val=dev"], "data.val: no such folder"),
        (["data.root=/no/such"], "data.root: no such folder: /no/such"),
    ],
)
def test_mistakes_in_the_config_are_told_at_once(tmp_path: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        compose(["data=folder", f"data.root={tmp_path}", *overrides])


def test_folders_without_use_are_refused_and_bad_files_named(tmp_path: Path) -> None:
    given = ["data=folder", f"data.root={tmp_path}", "data.split.val=0", "data.split.test=0", *QUIET]
    with pytest.raises(DataError, match=r"holds no audio \(.wav, .flac, .ogg, "):
        prepared(given)
    tone(tmp_path / "alone.wav")
    with pytest.raises(DataError, match=r"none of its 1 files can be used[\s\S]*no folder says what it is"):
        prepared(given)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "broken.wav").write_text("no audio")
    tone(tmp_path / "a" / "good.wav")
    data = prepared(given)
    assert texts(data, "train") == ["a"]
    assert sorted(Path(item.where).name for item in data.corpus.skipped) == ["alone.wav", "broken.wav"]
    (tmp_path / "a" / "broken.wav").unlink()
    with pytest.raises(DataError, match=r"finds no group 'speaker' in 'a/good.wav'"):
        prepared([*given, "data.speaker='(?P<speaker>zzz)'"])
