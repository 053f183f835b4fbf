"""What an export to the form of the hub does with a folder that is there."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from speechtrain.errors import UserError
from speechtrain.inference.hub_folder import put_in_place


def exported(folder: Path, content: str, *more: str) -> Path:
    """Return a new folder with the files of an export, all of which hold `content`."""
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "README.md", *more):
        (folder / name).write_text(content)
    return folder


def contents(folder: Path) -> dict[str, str]:
    """Return the contents of a folder's files, but for the list of what an export wrote."""
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file() and path.name != ".speechtrain"}


def test_a_model_card_that_was_completed_and_a_clone_outlive_the_next_export(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "huggingface"
    put_in_place(exported(tmp_path / "1", "one", "vocab.json"), path)
    put_in_place(exported(tmp_path / "2", "two"), path)
    assert contents(path) == {"config.json": "two", "model.safetensors": "two", "README.md": "two"}
    (path / ".git").mkdir()
    (path / ".git" / "HEAD").write_text("main")
    (path / "README.md").write_text("license: mit")
    for number in ("3", "4"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            put_in_place(exported(tmp_path / number, number), path)
        assert contents(path) == {"config.json": number, "model.safetensors": number, "README.md": "license: mit"}
        assert caplog.messages == [f"{path / 'README.md'} was changed, or not written by an earlier export, and stays as it is"]
    assert (path / ".git" / "HEAD").read_text() == "main"


def test_a_model_is_not_put_beside_files_that_belong_to_another(tmp_path: Path) -> None:
    path = exported(tmp_path / "huggingface", "of another")
    with pytest.raises(UserError, match=r"not written by an earlier export: config.json, model.safetensors\n.*set out to another"):
        put_in_place(exported(tmp_path / "1", "one"), path)
    assert set(contents(path).values()) == {"of another"}


def test_the_earlier_export_is_back_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "huggingface"
    put_in_place(exported(tmp_path / "1", "one"), path)
    replace = Path.replace

    def broken(self: Path, target: Path) -> Path:
        if self == tmp_path / "2" / "model.safetensors":
            raise OSError(5, "Input/output error", str(target))
        return replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", broken)
        with pytest.raises(OSError, match="Input/output"):
            put_in_place(exported(tmp_path / "2", "two"), path)
    assert set(contents(path).values()) == {"one"}
    assert [each.name for each in path.iterdir() if each.is_dir()] == []
    put_in_place(exported(tmp_path / "3", "three"), path)
    assert set(contents(path).values()) == {"three"}
