"""A manifest's bad lines are named by file and line; the rest goes on, or nothing does."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import SHARED_DATA

from speechtrain import compose
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.data.corpora.manifest import Manifest
from speechtrain.data.corpus import Cut
from speechtrain.data.prepare import prepare
from speechtrain.errors import DataError

Write = Callable[..., Path]
NO_SPLIT = {"by": "speaker", "val": 0, "test": 0, "seed": 0}


def load(root: Path, **changes: Any) -> Any:
    return Manifest(**{"root": str(root), "train": "train.jsonl", "val": None, "test": None, "split": NO_SPLIT, **changes}).load(None)


def ids(cuts: list[Cut]) -> list[str]:
    return [cut.id for cut in cuts]


def test_utterances_are_read_with_their_ids_texts_and_speakers(corpus: Write) -> None:
    root = corpus(["seven", "  two \t one "], at_1={"utt_id": None, "speaker": None, "duration": None})
    cuts = list(load(root).splits["train"])
    assert [(cut.id, cut.text, cut.speaker) for cut in cuts] == [
        ("train-0", "seven", "s0"),
        ("audio/train-1", "two one", None),
    ]
    assert cuts[0].duration == 1.0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"audio_filepath": None}, "key 'audio_filepath' is missing"),
        ({"text": None}, "key 'text' is missing"),
        ({"text": " \t"}, "'text' is empty"),
        ({"text": 7}, "'text' must be a text, received 7"),
        ({"duration": 3.0}, "'duration' is 3.0 s, but train-1.wav lasts 1.000 s"),
        ({"duration": "long"}, "'duration' must be a number of seconds, received 'long'"),
        ({"audio_filepath": "../../elsewhere.wav"}, "leaves the data folder"),
        ({"audio_filepath": "/etc/passwd"}, "leaves the data folder"),
        ({"audio_filepath": "audio/absent.wav"}, "no such file"),
        ({"audio_filepath": f"audio/{'a' * 300}.wav"}, "File name too long"),
        ({"audio_filepath": "audio/a\0.wav"}, "no file can have such a name"),
        ({"audio_filepath": "audio"}, "is a folder"),
        ({"audio_filepath": "audio/\ud800.wav"}, "half a surrogate pair"),
        ({"text": "seven\udc80"}, "half a surrogate pair"),
        ({"text": "sev\0en"}, "holds a zero byte"),
        ({"utt_id": "a\ud800"}, "half a surrogate pair"),
        ({"utt_id": "a\tb"}, "line ends or control characters"),
        ({"utt_id": ["a"]}, "'utt_id' must be a text or a number"),
        ({"speaker": {}}, "'speaker' must be a text or a number"),
        ({"duration": 10**400}, "'duration' must be a number of seconds, received 1000"),
        ({"duration": float("inf")}, "'duration' must be a number of seconds, received inf"),
        ({"duration": float("nan")}, "'duration' must be a number of seconds, received nan"),
    ],
)
def test_a_bad_entry_is_named_by_file_and_line_and_skipped(corpus: Write, change: dict[str, Any], reason: str) -> None:
    root = corpus(["a", "b", "c"], at_1=change)
    found = load(root)
    assert ids(found.splits["train"]) == ["train-0", "train-2"]
    assert found.skipped[0].where == f"{root / 'train.jsonl'}:2"
    assert reason in found.skipped[0].reason


def test_a_manifest_in_latin_1_is_refused_with_the_byte_and_the_line(corpus: Write) -> None:
    root = corpus(["one", "café"])
    manifest = root / "train.jsonl"
    manifest.write_bytes(json.dumps(json.loads(manifest.read_text().splitlines()[1]), ensure_ascii=False).encode("latin-1"))
    with pytest.raises(DataError, match=r"train\.jsonl:1: byte 0xe9, number \d+ of the line, is not UTF-8"):
        load(root)


def test_a_pipe_that_is_named_as_a_recording_is_skipped_without_waiting(corpus: Write) -> None:
    root = corpus(["a", "b"])
    (root / "audio" / "train-1.wav").unlink()
    os.mkfifo(root / "audio" / "train-1.wav")
    assert "is no regular file" in load(root).skipped[0].reason


def test_a_linked_audio_folder_is_inside(corpus: Write, tmp_path: Path) -> None:
    root = corpus(["a"])
    (root / "audio").rename(tmp_path / "elsewhere")
    (root / "audio").symlink_to(tmp_path / "elsewhere")
    assert ids(load(root).splits["train"]) == ["train-0"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty (0 bytes)"),
        (b"this is a text, not audio\n" * 10, "cannot be read as audio"),
        (b"RIFF\x24\x00\x00\x00WAVE", "audio"),
    ],
)
def test_a_file_that_is_not_audio_is_named(corpus: Write, content: bytes, reason: str) -> None:
    root = corpus(["a", "b"])
    (root / "audio" / "train-1.wav").write_bytes(content)
    found = load(root)
    assert ids(found.splits["train"]) == ["train-0"]
    assert "train-1.wav" in found.skipped[0].reason
    assert reason in found.skipped[0].reason


def test_a_header_without_samples_is_named(corpus: Write) -> None:
    root = corpus(["a", "b"])
    soundfile.write(root / "audio" / "train-1.wav", np.zeros(0, np.float32), 8000)
    assert "holds no samples" in load(root).skipped[0].reason


@pytest.mark.parametrize("line", ["[" * 100_000, "{not json", "[1, 2]", '"text"', '{"audio_filepath": "audio/train-0.wav"'])
def test_a_line_that_is_no_json_object_is_named(corpus: Write, line: str) -> None:
    root = corpus(["a"])
    with (root / "train.jsonl").open("a") as file:
        file.write(f"\n{line}\n")
    found = load(root)
    assert len(found.splits["train"]) == 1
    assert found.skipped[0].where.endswith("train.jsonl:3")
    assert "JSON" in found.skipped[0].reason


def test_an_empty_manifest_and_one_without_any_usable_line_are_refused(corpus: Write) -> None:
    root = corpus(["a"], at_0={"text": None})
    with pytest.raises(DataError, match="none of its 1 lines can be used"):
        load(root)
    (root / "train.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="is empty: no line"):
        load(root)


def test_a_percentage_by_speaker_never_parts_a_speaker(corpus: Write) -> None:
    root = corpus([f"word {i}" for i in range(20)])
    splits = load(root, split={"by": "speaker", "val": 20, "test": 20, "seed": 1}).splits
    speakers = [{cut.speaker for cut in splits[name]} for name in ("train", "val", "test")]
    assert [len(splits[name]) for name in ("train", "val", "test")] == [10, 5, 5]
    assert not speakers[0] & speakers[1]
    assert not speakers[0] & speakers[2]
    assert not speakers[1] & speakers[2]


def test_named_speakers_are_set_apart_and_unknown_ones_refused(corpus: Write) -> None:
    root = corpus([f"word {i}" for i in range(8)])
    splits = load(root, split={"by": "utterance", "val": 50, "test": ["s2"], "seed": 1}).splits
    assert {cut.speaker for cut in splits["test"]} == {"s2"}
    assert len(splits["test"]) == 2
    assert len(splits["val"]) == 4
    with pytest.raises(DataError, match=r"no speaker s9; there is: s0, s1, s2, s3"):
        load(root, split={"by": "speaker", "val": 0, "test": ["s9"], "seed": 1})


def test_files_of_several_formats_and_rates_are_resampled(corpus: Write) -> None:
    root = corpus(["a"] * 4)
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000).astype(np.float32)
    lines = []
    for kind, rate in (("wav", 16000), ("flac", 16000), ("ogg", 16000), ("mp3", 16000)):
        soundfile.write(root / "audio" / f"x.{kind}", tone, rate)
        lines.append(json.dumps({"audio_filepath": f"audio/x.{kind}", "text": "la", "utt_id": kind}))
    (root / "train.jsonl").write_text("\n".join(lines))
    found = load(root)
    assert not found.skipped
    for cut in found.splits["train"]:
        samples = found.read(cut, 8000)
        assert abs(len(samples) - 8000) < 1200  # MP3 pads
        spectrum = np.abs(np.fft.rfft(samples[:8000]))
        assert abs(int(spectrum.argmax()) * 8000 / len(samples[:8000]) - 440) < 5


def test_samples_of_nan_and_a_truncated_file_are_found_when_they_are_read(corpus: Write, caplog: pytest.LogCaptureFixture) -> None:
    root = corpus(["ab"] * 6)
    broken = np.zeros(8000, np.float32)
    broken[100] = np.nan
    soundfile.write(root / "audio" / "train-1.wav", broken, 8000, subtype="FLOAT")
    noise = np.random.default_rng(0).normal(0, 0.1, 8000)
    soundfile.write(root / "audio" / "train-2.flac", noise, 8000)
    whole = (root / "audio" / "train-2.flac").read_bytes()
    (root / "audio" / "train-2.flac").write_bytes(whole[: len(whole) // 2])
    text = (root / "train.jsonl").read_text().replace("train-2.wav", "train-2.flac")
    (root / "train.jsonl").write_text(text)
    overrides = ["data=manifest", f"data.root={root}", "features=logmel_8k", "tracking=[]"]
    with caplog.at_level(logging.WARNING):
        data = prepare(ExperimentConfig.of(compose(overrides)), threads=2)
    assert data.skipped == 2
    assert ids(data.corpus.splits["train"]) == ["train-0", "train-3", "train-4", "train-5"]
    assert "train-1" in caplog.text
    assert "1 samples that are NaN" in caplog.text
    assert "train-2.flac: cannot be read as audio" in caplog.text
    with pytest.raises(DataError, match=r"(?s)2 bad utterances, and data.on_bad=error.*train-1"):
        prepare(ExperimentConfig.of(compose([*overrides, "data.on_bad=error"])), threads=2)


def test_a_character_seen_only_in_validation_is_reported_and_not_learnt(corpus: Write, caplog: pytest.LogCaptureFixture) -> None:
    root = corpus(["abc", "cab"])
    corpus(["abz", "cc"], name="valid.jsonl")
    overrides = ["data=manifest", f"data.root={root}", "data.val=valid.jsonl", "features=logmel_8k", "tracking=[]"]
    with caplog.at_level(logging.WARNING):
        data = prepare(ExperimentConfig.of(compose(overrides)), threads=1)
    assert data.tokenizer.vocabulary == ["", "a", "b", "c"]
    assert "val holds tokens" in caplog.text
    assert "'z' (1x)" in caplog.text


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no recorded speech beside the checkout")
@pytest.mark.parametrize(("name", "train", "count"), [("fsdd", "train_full.jsonl", 2700), ("librispeech_devclean10_mp3", "all.jsonl", 665)])
def test_recorded_corpora_are_read_whole(name: str, train: str, count: int) -> None:
    found = load(SHARED_DATA / name, train=train)
    assert len(found.splits["train"]) == count
    assert not found.skipped
    cut = next(iter(found.splits["train"]))
    assert abs(len(found.read(cut, 16000)) / 16000 - cut.duration) < 0.01


def test_a_text_may_hold_characters_that_end_lines_elsewhere(corpus: Write) -> None:
    root = corpus(["a\u2028b", "c\x85d"])
    manifest = root / "train.jsonl"
    lines = [json.loads(line) for line in manifest.read_text(encoding="utf-8").split("\n") if line]
    manifest.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    assert [cut.text for cut in load(root).splits["train"]] == ["a b", "c d"]


def long_file(root: Path, lines: list[dict[str, Any]]) -> Path:
    """A manifest of parts of a file of 3 s, in which each second has a loudness of its own."""
    (root / "audio").mkdir()
    soundfile.write(root / "audio" / "long.wav", np.repeat([0.1, 0.2, 0.3], 8000).astype(np.float32), 8000, subtype="FLOAT")
    written = [json.dumps({"audio_filepath": "audio/long.wav", "text": f"part {number}", **line}) for number, line in enumerate(lines)]
    (root / "train.jsonl").write_text("\n".join(written))
    return root


@pytest.mark.parametrize("durations", [(1.0, 1.0, 1.0), (None, None, None)])
def test_lines_with_an_offset_are_parts_of_a_file_that_end_at_the_next_one_or_after_their_duration(
    tmp_path: Path, durations: tuple[float | None, ...]
) -> None:
    stated = [{} if duration is None else {"duration": duration} for duration in durations]
    found = load(long_file(tmp_path, [{"offset": place, **line} for place, line in zip((1.0, 0, 2), stated, strict=True)]))
    assert not found.skipped
    assert ids(found.splits["train"]) == ["audio/long-0001000-0002000", "audio/long-0000000-0001000", "audio/long-0002000-0003000"]
    assert [cut.text for cut in found.splits["train"]] == ["part 0", "part 1", "part 2"]
    for cut, loudness in zip(found.splits["train"], (0.2, 0.1, 0.3), strict=True):
        np.testing.assert_array_equal(found.read(cut, 8000), np.full(8000, loudness, np.float32))


def test_parts_that_begin_within_one_millisecond_have_ids_of_their_own(tmp_path: Path) -> None:
    lines = [{"offset": 1.0001, "duration": 0.5}, {"offset": 1.0004, "duration": 0.5}, {"offset": 1.0004, "duration": 0.5}]
    names = ids(load(long_file(tmp_path, lines)).splits["train"])
    assert names[:2] == ["audio/long-0001000-0001500", "audio/long-0001000.400000-0001500.400000"]
    assert names[2] == names[1]  # the same part twice


def test_a_line_with_an_offset_of_0_and_the_whole_duration_is_the_whole_file(tmp_path: Path) -> None:
    cut = load(long_file(tmp_path, [{"offset": 0, "duration": 3.05}])).splits["train"][0]
    assert (cut.id, cut.start, cut.duration) == ("audio/long", 0.0, 3.0)


def test_parts_of_trusted_manifests_open_no_file(tmp_path: Path) -> None:
    root = long_file(tmp_path, [{"offset": 1, "duration": 1}])
    (root / "audio" / "long.wav").unlink()
    cut = load(root, trust_durations=True, sample_rate=8000).splits["train"][0]
    assert (cut.id, cut.start, cut.duration) == ("audio/long-0001000-0002000", 1.0, 1.0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"offset": -1, "duration": 1}, "'offset' must be 0 s or more, received -1"),
        ({"offset": "one"}, "'offset' must be a number of seconds, received 'one'"),
        ({"offset": 2, "duration": 0}, "'duration' must be above 0 s, received 0"),
        ({"offset": 2, "duration": 2}, "lies from 2 to 4 s, but long.wav lasts 3.000 s"),
        ({"offset": 3}, "lies from 3 to 3 s, but long.wav lasts 3.000 s"),
    ],
)
def test_a_part_that_is_none_is_named(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    found = load(long_file(tmp_path, [{"offset": 0, "duration": 1}, change]))
    assert reason in found.skipped[0].reason


def test_absolute_paths_are_read_inside_of_the_data_folder_also_through_links_and_from_the_root(corpus: Write, tmp_path: Path) -> None:
    root = corpus(["a"])
    audio = (root / "audio" / "train-0.wav").resolve()
    (root / "train.jsonl").write_text(json.dumps({"audio_filepath": str(audio), "text": "a"}))
    link = tmp_path / "link"
    link.symlink_to(root.resolve())
    assert ids(load(link).splits["train"]) == ["audio/train-0"]
    from_above = load(Path("/"), train=str(root / "train.jsonl"))
    assert ids(from_above.splits["train"]) == [str(audio.with_suffix("")).removeprefix("/")]


@pytest.mark.parametrize("stated", ["../outside/a.wav", "{folder}/outside/a.wav"])
def test_audio_outside_of_the_data_folder_is_refused_with_the_folder_to_give(corpus: Write, tmp_path: Path, stated: str) -> None:
    (tmp_path / "outside").mkdir()
    soundfile.write(tmp_path / "outside" / "a.wav", np.ones(8000), 8000)
    manifest = tmp_path / "inside" / "train.jsonl"
    manifest.parent.mkdir()
    manifest.write_text(json.dumps({"audio_filepath": stated.format(folder=tmp_path), "text": "a"}))
    with pytest.raises(DataError, match="leaves the data folder") as caught:
        load(manifest.parent)
    assert f"set data.root={tmp_path}, and name the manifest from there: inside/train.jsonl" in str(caught.value)
    assert ids(load(tmp_path, train="inside/train.jsonl").splits["train"]) == ["outside/a"]
