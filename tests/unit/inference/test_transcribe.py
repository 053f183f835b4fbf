"""Texts as people and programs read them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from speechtrain.config.compose import compose_command
from speechtrain.config.schemas.commands import TranscribeConfig
from speechtrain.decode.align import Word
from speechtrain.errors import ConfigError
from speechtrain.inference.formats import FORMATS, in_a_field, lines
from speechtrain.inference.long_audio import quiet_place
from speechtrain.inference.recordings import find_recordings, transcript_path
from speechtrain.tasks.base import Transcription

SAID = [
    Transcription("a & b", 0.9, (Word("a", 0.5, 1.0, 0.8), Word("&", 1.0, 1.2, 1.0), Word("b", 1.25, 2.0, 0.9)), (("a b", -1.5),)),
    Transcription("", 1.0),
    Transcription("later <on>", 0.5, (Word("later", 3661.25, 3662.0, 0.5), Word("<on>", 3664.0, 3664.5, 0.5))),
]


def test_subrip_numbers_its_lines_and_ends_them_at_pauses() -> None:
    assert "".join(FORMATS["srt"]("x.wav", SAID)) == (
        "1\n00:00:00,500 --> 00:00:02,000\na & b\n\n2\n01:01:01,250 --> 01:01:02,000\nlater\n\n3\n01:01:04,000 --> 01:01:04,500\n<on>\n\n"
    )


def test_webvtt_says_what_it_is_and_quotes_what_has_a_meaning_there() -> None:
    found = "".join(FORMATS["vtt"]("x.wav", SAID))
    assert found.startswith("WEBVTT\n\n00:00:00.500 --> 00:00:02.000\na &amp; b\n\n")
    assert "&lt;on&gt;" in found


def test_json_has_the_text_its_pieces_and_their_words() -> None:
    (line,) = FORMATS["json"]("x.wav", SAID)
    found = json.loads(line)
    assert (found["file"], found["text"]) == ("x.wav", "a & b later <on>")
    first, silent, _ = found["segments"]
    assert first["words"][1] == {"text": "&", "start": 1.0, "end": 1.2, "confidence": 1.0}
    assert first["alternatives"] == [{"text": "a b", "score": -1.5}]
    assert (first["start"], first["end"], silent["start"]) == (0.5, 2.0, None)


def test_any_name_of_a_file_stays_in_its_field_and_in_utf_8() -> None:
    assert in_a_field("talks/é b.wav") == "talks/é b.wav"
    assert in_a_field("a\tb\nc\u2028.wav") == r"a\tb\nc\u2028.wav"
    (line,) = FORMATS["json"](os.fsdecode(b"caf\xe9.wav"), SAID)
    assert json.loads(line.encode())["file"] == r"caf\udce9.wav" == in_a_field(os.fsdecode(b"caf\xe9.wav"))


def test_a_line_of_subtitles_can_be_read_in_time() -> None:
    words = [Word("word", 0.4 * place, 0.4 * place + 0.4, 1.0) for place in range(60)]
    found = list(lines(words))
    assert [word for line in found for word in line] == words
    assert all(line[-1].end - line[0].start <= 7 for line in found)
    assert all(len(" ".join(word.text for word in line)) <= 84 for line in found)
    long = [Word("x" * 30, place, place + 0.9, 1.0) for place in range(6)]
    assert [len(line) for line in lines(long)] == [2, 2, 2]


def test_a_long_text_is_cut_in_a_pause_and_otherwise_where_a_blank_is_likeliest() -> None:
    log_probs = np.full((100, 3), -5.0, dtype=np.float32)
    log_probs[:, 1] = 0
    log_probs[60:80, 0] = 1
    assert 60 < quiet_place(log_probs, 100, pause=10) < 80
    log_probs[60:80, 0] = -5
    log_probs[70, 0] = -1
    assert quiet_place(log_probs, 100, pause=10) == 70


def test_folders_hold_their_audio_at_any_depth_and_what_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "none").mkdir()
    for name in ("deep/b.WAV", "deep/er/a.flac", "deep/notes.txt"):
        (tmp_path / name).touch()
    assert find_recordings(["deep", "-"]) == [Path("deep/b.WAV"), Path("deep/er/a.flac"), None]
    with pytest.raises(ConfigError, match="2 problems"):
        find_recordings(["none", "missing.wav"])
    with pytest.raises(ConfigError, match="nothing to transcribe"):
        find_recordings([])


def test_files_of_the_same_name_stay_apart(tmp_path: Path) -> None:
    files: list[Path | None] = [tmp_path / "a/x.wav", tmp_path / "b/x.wav", tmp_path / "b/y.wav"]
    targets = {transcript_path(Path("out"), path, files, "text") for path in files}
    assert len(targets) == 3
    assert transcript_path(Path("out"), files[2], files, "text") == Path("out/y.txt")
    assert transcript_path(Path("out"), None, files, "srt") == Path("out/stdin.srt")


@pytest.mark.parametrize(
    ("words", "key"),
    [(["format=doc"], "format"), (["window=1"], "window"), (["raw_rate=fast"], "raw_rate"), (["colour=red"], "colour")],
)
def test_keys_of_the_command_are_checked(words: list[str], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        compose_command(TranscribeConfig, words)
