"""Speech Commands in miniature: one word a file, split by lists, and background noise for silence."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest
from conftest import prepared
from corpora import speech_commands

from speechtrain.data.corpora import speech_commands as speech_commands_data
from speechtrain.data.corpora.speech_commands import SILENCE
from speechtrain.data.corpus import SPLITS
from speechtrain.data.task_data import TaskData
from speechtrain.errors import DataError

QUIET = ["tracking=[]", "report.enabled=false", "features=logmel_8k", "backend.threads=1"]


def texts(data: TaskData, split: str) -> list[str]:
    return sorted(cut.text for cut in data.corpus.splits[split])


def test_speech_commands_are_split_by_their_lists_with_silence_that_no_two_parts_share(tmp_path: Path) -> None:
    root = speech_commands(tmp_path / "sc")
    given = ["data=speech_commands", f"data.root={root}", "task=classification", "data.silence=0.34", *QUIET]
    data = prepared([*given, "tokenizer.classes=[yes,no,_silence_]", "tokenizer.unknown=_unknown_"])
    assert data.tokenizer.vocabulary == ["yes", "no", SILENCE, "_unknown_"]
    assert texts(data, "train") == [SILENCE] * 6 + ["no"] * 6 + ["tree"] * 6 + ["yes"] * 6
    assert texts(data, "val") == texts(data, "test") == [SILENCE, "no", "tree", "yes"]
    speakers = [{cut.speaker for cut in data.corpus.splits[name]} - {None} for name in SPLITS]
    assert not speakers[0] & speakers[1]
    assert not speakers[0] & speakers[2]
    ends = {}
    for name in SPLITS:
        quiet = [cut for cut in data.corpus.splits[name] if cut.text == SILENCE]
        assert all(cut.duration == 1.0 for cut in quiet)
        ends[name] = min(cut.start for cut in quiet), max(cut.start + cut.duration for cut in quiet)
    assert ends["train"][1] <= 16 <= ends["val"][0]
    assert ends["val"][1] <= 18 <= ends["test"][0]
    assert sorted(label for batch in data.loader("val") for label in batch.targets[:, 0].tolist()) == [0, 1, 2, 3]
    some = prepared([*given, "data.words=[yes,no]", "data.limit_utterances=4"])
    assert texts(some, "train") == [SILENCE] + [each for each in texts(some, "train") if each != SILENCE]
    assert len(some.corpus.splits["train"]) == 5
    assert set(texts(some, "train")) == {SILENCE, "yes", "no"}


def test_speech_commands_that_are_not_there_say_both_ways_to_get_them(tmp_path: Path, served, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=r"is not Speech Commands[\s\S]*set data.root[\s\S]*data.download=true"):
        prepared(["data=speech_commands", f"data.root={tmp_path}", *QUIET])

    speech_commands(tmp_path / "there")
    mirror, packed = served(tmp_path / "there", "speech_commands_v0.02.tar.gz", inside=".")
    new = tmp_path / "new"
    given = ["data=speech_commands", f"data.root={new}", "data.download=true", "data.silence=0", *QUIET]
    with pytest.raises(DataError, match=r"speech_commands_v0\.02\.tar\.gz: sha256 is .*, published is af14739ee7"):
        prepared([*given, f"data.mirror={mirror}"])
    released = dataclasses.replace(speech_commands_data.RELEASED, digest=f"sha256:{hashlib.sha256(packed).hexdigest()}")
    monkeypatch.setattr(speech_commands_data, "RELEASED", released)
    assert len(prepared([*given, f"data.mirror={mirror}"]).corpus.splits["train"]) == 18
    assert len(prepared([*given, "data.mirror=http://127.0.0.1:1"]).corpus.splits["train"]) == 18  # it is there now
    inside = new / "SpeechCommands" / "speech_commands_v0.02"
    (inside / released.name).write_bytes(packed[:100])  # the unpacking was cut off
    with pytest.raises(DataError, match="is not Speech Commands"):
        prepared([item for item in given if not item.startswith("data.download")])
    (inside / released.name).unlink()
    with pytest.raises(DataError, match=r"data.words: .* has no folder for maybe; there is: no, tree, yes"):
        prepared([*given, "data.words=[yes,maybe]"])
