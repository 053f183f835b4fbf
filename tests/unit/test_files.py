"""Files that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechtrain.errors import DataError, unwritable
from speechtrain.files import atomically, numbered, write_json, write_text


def test_a_file_keeps_its_old_content_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "weights.ckpt"
    path.write_text("old", encoding="utf-8")
    with atomically(path, durable=True) as temporary:
        temporary.write_text("new", encoding="utf-8")
        assert path.read_text(encoding="utf-8") == "old"
        assert temporary.suffix == ".ckpt"
        assert temporary.name.startswith(".")
    assert path.read_text(encoding="utf-8") == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_text(path, "old")

    def half() -> None:
        with atomically(path) as temporary:
            temporary.write_text("ne", encoding="utf-8")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        half()
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_text_and_json_make_the_folder_they_are_written_to(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "b" / "facts.json", {"word": "größe"})
    assert (tmp_path / "a" / "b" / "facts.json").read_text(encoding="utf-8") == '{\n  "word": "größe"\n}'


def test_names_that_are_used_get_the_next_number() -> None:
    used: set[str] = set()
    assert [numbered(name, used) for name in ("a", "a", "a_2", "b")] == ["a", "a_2", "a_2_2", "b"]


def test_an_unwritable_folder_is_named_with_the_key_that_chooses_another() -> None:
    error = unwritable(Path("/proc/x"), PermissionError(13, "Permission denied"), "data.save_to", DataError)
    assert isinstance(error, DataError)
    assert str(error) == "/proc/x: cannot be written (Permission denied)\n    -> set data.save_to to a folder that can be written"
