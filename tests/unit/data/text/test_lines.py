"""Text files that users give, whatever their line ends and their bytes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fuzzing import peak_megabytes, refused

from speechtrain.data.text.lines import numbered_lines, parse_json, read_lines, read_text
from speechtrain.errors import DataError


def test_only_line_feeds_end_a_line_with_or_without_a_carriage_return(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("\ufeffone\u2028two\x85three\r\n\r\nfour\x0cfive\rsix\n".encode())
    assert read_lines(path) == ["one\u2028two\x85three", "", "four\x0cfive\rsix"]
    assert list(numbered_lines(path)) == [
        (f"{path}:1", "one\u2028two\x85three"),
        (f"{path}:3", "four\x0cfive\rsix"),
    ]


def test_a_file_without_a_last_line_end_or_without_anything_is_read(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("one\ntwo")
    assert read_lines(path) == ["one", "two"]
    path.write_text("")
    assert read_lines(path) == []


def test_a_file_that_cannot_be_read_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt: cannot be read(?s:.*)give a list"):
        read_text(tmp_path / "none.txt", "give a list")
    path = tmp_path / "latin.txt"
    path.write_bytes("one\ncafé au lait\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.txt:2: byte 0xe9, number 4 of the line, is not UTF-8(?s:.*)iconv"):
        read_lines(path)


def test_a_pipe_and_a_name_that_no_file_can_have_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "text")
    for name, reason in {
        "text": "is no regular file",
        "a" * 300: "File name too long",
        "a\0b": "no file can have such a name",
        ".": "is a folder",
    }.items():
        with pytest.raises(DataError, match=reason):
            read_lines(tmp_path / name)


def test_an_endless_line_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "endless.jsonl"
    with path.open("wb") as file:
        file.write(b"{}\n")
        file.truncate(3 << 30)  # zeros that take no place on the disk
    message, peak = peak_megabytes(lambda: refused(lambda: list(numbered_lines(path)), path))
    assert "endless.jsonl:2: is longer than 16 MiB" in message
    assert peak < 100


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"words": ' + "[" * 40 + "]" * 40 + "}", "nested more than 32 deep"),
        (r'{"text": "a\ud800"}', r"half a surrogate pair, \\ud800"),
        (r'{"\udc80": 1}', r"half a surrogate pair, \\udc80"),
        ("1" * 5000, "not JSON"),
        ("{", "not JSON"),
    ],
)
def test_json_that_would_break_a_later_step_is_refused(text: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        parse_json(text)
    assert parse_json(r'{"text": "\ud83d\ude00", "words": [[1], [2]]}') == {"text": "\U0001f600", "words": [[1], [2]]}


@pytest.mark.parametrize(
    ("encoding", "told"),
    [
        ("utf-16", r"a\.txt:1: is in UTF-16\n"),
        ("utf-16-le", r"a\.txt:1: is in UTF-16LE\n"),
        ("utf-16-be", r"a\.txt:1: is in UTF-16BE\n"),
        ("utf-32", r"a\.txt:1: is in UTF-32\n"),
        ("cp1252", r"a\.txt:2: byte 0x93, number 1 of the line, is not UTF-8 .*\n.*iconv -f CP1252 -t UTF-8 FILE"),
        ("latin-1", r"a\.txt:3: byte 0xe9, number 4 of the line, is not UTF-8 .*\n.*iconv -f LATIN1 -t UTF-8 FILE"),
    ],
)
def test_other_encodings_are_refused_by_their_names(tmp_path: Path, encoding: str, told: str) -> None:
    path = tmp_path / "a.txt"
    quoted = "\u201cone\u201d" if encoding != "latin-1" else "one"
    path.write_bytes(f"one\n{quoted}\ncaf\u00e9\n".encode(encoding))
    with pytest.raises(DataError, match=told):
        read_text(path)
