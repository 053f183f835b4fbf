"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import pickle
import resource
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from speechtrain.errors import DataError, DiskError, unwritable
from speechtrain.files import absolute_sqlite_address, append, atomically, numbered, remove_unfinished, user_path, write_json, write_text
from speechtrain.tracking.mlflow.location import tracking_address


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

    with pytest.raises(DiskError, match=r"run\.json: cannot be written \(No space left on device\)\n    -> make room"):
        half()
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_library_that_hides_why_it_could_not_write_is_seen_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write() -> None:
        with atomically(tmp_path / "model.bin"):
            raise RuntimeError("write failed")

    with pytest.raises(RuntimeError, match="write failed"):
        write()
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(DiskError, match=r"model\.bin: cannot be written \(No space left on device\)"):
        write()


def full(*_: object) -> NoReturn:
    raise OSError(28, "No space left on device")


def test_a_file_that_could_not_be_read_is_not_taken_for_one_that_could_not_be_written(tmp_path: Path) -> None:
    def copy() -> None:
        with atomically(tmp_path / "copy") as temporary:
            shutil.copyfile(tmp_path / "source", temporary)

    with pytest.raises(FileNotFoundError) as raised:
        copy()
    assert not isinstance(raised.value, DiskError)


def test_an_error_of_the_disk_can_be_sent_to_another_process() -> None:
    error = DiskError(28, "No space left on device", "/full/file")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert "/full/file: cannot be written (No space left on device)" in str(error)


def test_what_is_appended_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    append(path, b"one\n")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6, before[1]))
    try:
        with pytest.raises(DiskError, match=r"history\.jsonl: cannot be written"):
            append(path, b"two\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"one\n"


def test_what_killed_processes_have_left_is_removed_and_what_is_being_written_stays(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = [tmp_path / f".last.{gone.pid}.tmp.ckpt", tmp_path / "checkpoints" / f".best-epoch=001.{gone.pid}.tmp.ckpt"]
    kept = [tmp_path / f".run.{os.getpid()}.tmp.json", tmp_path / ".notes.tmp", tmp_path / "last.1.tmp.ckpt"]
    for path in (*left, *kept):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    remove_unfinished(tmp_path)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)


def test_text_and_json_make_the_folder_they_are_written_to(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "b" / "facts.json", {"word": "größe"})
    assert (tmp_path / "a" / "b" / "facts.json").read_text(encoding="utf-8") == '{\n  "word": "größe"\n}'


def test_names_that_are_used_get_the_next_number() -> None:
    used: set[str] = set()
    assert [numbered(name, used) for name in ("a", "a", "a_2", "b")] == ["a", "a_2", "a_2_2", "b"]


def test_an_unwritable_folder_is_named_with_the_key_that_chooses_another() -> None:
    full = unwritable(Path("/x"), OSError(28, "No space left on device"), "out")
    assert str(full) == "/x: cannot be written (No space left on device)\n    -> make room, or set out to a folder on another disk"
    error = unwritable(Path("/proc/x"), PermissionError(13, "Permission denied"), "data.save_to", DataError)
    assert isinstance(error, DataError)
    assert str(error) == "/proc/x: cannot be written (Permission denied)\n    -> set data.save_to to a folder that can be written"


def test_a_job_in_a_folder_of_its_own_finds_files_where_the_command_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert user_path("a.jsonl") == Path("a.jsonl")
    (tmp_path / "job").mkdir()
    monkeypatch.chdir(tmp_path / "job")
    monkeypatch.setattr(HydraConfig.instance(), "cfg", OmegaConf.create({"hydra": {"runtime": {"cwd": str(tmp_path)}}}))
    assert user_path("a.jsonl") == tmp_path / "a.jsonl"
    assert user_path("/a.jsonl") == Path("/a.jsonl")
    assert absolute_sqlite_address("sqlite:///a.db?timeout=3") == f"sqlite:///{tmp_path}/a.db?timeout=3"
    assert tracking_address(None) == f"sqlite:///{tmp_path}/mlflow.db"
