"""Corpora whose folders, or files beside the audio, say what is spoken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import prepared

from speechtrain import compose
from speechtrain.data.corpora.folder import SILENCE
from speechtrain.data.corpus import SPLITS
from speechtrain.data.prepare import Data
from speechtrain.errors import ConfigError, DataError

QUIET = ["tracking=[]", "report.enabled=false", "features=logmel_8k", "backend.threads=1"]


def tone(path: Path, seconds: float = 0.3, rate: int = 8000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    number = sum(map(ord, path.name))
    samples = 0.1 * np.sin(2 * np.pi * (200 + number) * np.arange(round(seconds * rate)) / rate)
    soundfile.write(path, samples.astype(np.float32), rate)
    return path


def texts(data: Data, split: str) -> list[str]:
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


def speech_commands(root: Path) -> Path:
    """The real shape in miniature: words, lists, background noise."""
    lists: dict[str, list[str]] = {"validation_list.txt": [], "testing_list.txt": []}
    for word in ("yes", "no", "tree"):
        for speaker in range(8):
            name = f"{word}/{speaker:08x}_nohash_0.wav"
            tone(root / name, rate=16000)
            if speaker >= 6:
                lists["testing_list.txt" if speaker == 7 else "validation_list.txt"].append(name)
    tone(root / "_background_noise_" / "hum.wav", seconds=20, rate=16000)
    for name, lines in lists.items():
        (root / name).write_text("\n".join(lines) + "\n")
    return root


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


def test_speech_commands_that_are_not_there_say_both_ways_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchaudio

    with pytest.raises(DataError, match=r"is not Speech Commands[\s\S]*set data.root[\s\S]*data.download=true"):
        prepared(["data=speech_commands", f"data.root={tmp_path}", *QUIET])

    def download(root: Path, *, download: bool) -> None:
        assert download
        speech_commands(Path(root) / "SpeechCommands" / "speech_commands_v0.02")

    monkeypatch.setattr(torchaudio.datasets, "SPEECHCOMMANDS", download)
    given = ["data=speech_commands", f"data.root={tmp_path / 'new'}", "data.download=true", "data.silence=0", *QUIET]
    assert len(prepared(given).corpus.splits["train"]) == 18
    monkeypatch.setattr(torchaudio.datasets, "SPEECHCOMMANDS", None)  # it is there now
    assert len(prepared(given).corpus.splits["train"]) == 18
    with pytest.raises(DataError, match=r"data.words: .* has no folder for maybe; there is: no, tree, yes"):
        prepared([*given, "data.words=[yes,maybe]"])
