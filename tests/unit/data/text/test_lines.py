"""Text files that users give, whatever their line ends and their bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechtrain.data.text.lines import numbered_lines, read_lines, read_text
from speechtrain.errors import DataError


def test_only_line_feeds_and_carriage_returns_end_a_line(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("\ufeffone\u2028two\x85three\r\n\r\nfour\x0cfive\rsix\n".encode())
    assert read_lines(path) == ["one\u2028two\x85three", "", "four\x0cfive", "six"]
    assert list(numbered_lines(path)) == [
        (f"{path}:1", "one\u2028two\x85three"),
        (f"{path}:3", "four\x0cfive"),
        (f"{path}:4", "six"),
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
    path.write_bytes("é".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.txt: cannot be read(?s:.*)UTF-8"):
        read_lines(path)
    assert read_lines(path, errors="replace") == ["\ufffd"]
