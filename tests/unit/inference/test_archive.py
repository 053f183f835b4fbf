"""Archives: whole, honest, and kept inside their folder."""

from __future__ import annotations

import json
import stat
import zipfile
from pathlib import Path

import pytest

from speechtrain.errors import UserError
from speechtrain.inference.archive import extract, read_index, weights_of, write_archive


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    (tmp_path / "w.ckpt").write_bytes(b"weights")
    write_archive(tmp_path / "a.zip", {"weights.ckpt": tmp_path / "w.ckpt", "exports/note.txt": "hello"}, {"weights": "weights.ckpt"})
    return tmp_path / "a.zip"


def test_what_was_put_in_comes_out(archive: Path, tmp_path: Path) -> None:
    found = extract(archive, tmp_path / "out")
    assert [path.relative_to(tmp_path / "out").as_posix() for path in found] == ["weights.ckpt", "exports/note.txt"]
    assert (tmp_path / "out/exports/note.txt").read_text() == "hello"
    with weights_of(archive) as weights:
        assert weights.read_bytes() == b"weights"
    assert not weights.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "out", "w.ckpt"]


def test_any_other_file_is_given_as_it_is(tmp_path: Path) -> None:
    with weights_of(tmp_path / "last.ckpt") as weights:
        assert weights == tmp_path / "last.ckpt"


def rewritten(archive: Path, change: dict[str, bytes | None]) -> Path:
    """A copy with some files in place of others; None leaves one out."""
    other = archive.with_name("b.zip")
    with zipfile.ZipFile(archive) as before, zipfile.ZipFile(other, "w") as after:
        for name in before.namelist():
            if name not in change:
                after.writestr(name, before.read(name))
        for name, content in change.items():
            if content is not None:
                after.writestr(name, content)
    return other


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "a/../../evil.txt", "C:evil.txt", "a\\..\\evil.txt"])
def test_a_path_that_leaves_the_folder_is_refused(name: str, archive: Path, tmp_path: Path) -> None:
    index = read_index(archive)
    index["files"][name] = "0"
    bad = rewritten(archive, {"archive.json": json.dumps(index).encode(), name: b"evil"})
    with pytest.raises(UserError, match="outside of the folder"):
        extract(bad, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "evil.txt").exists()


def test_a_link_is_refused(archive: Path, tmp_path: Path) -> None:
    index = read_index(archive)
    index["files"]["link"] = "0"
    bad = rewritten(archive, {"archive.json": json.dumps(index).encode()})
    with zipfile.ZipFile(bad, "a") as file:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(info, "/etc/passwd")
    with pytest.raises(UserError, match="is a link"):
        read_index(bad)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"weights.ckpt": b"others"}, "is not what the index says"),
        ({"weights.ckpt": None}, "is not in it once"),
        ({"more.txt": b"stowaway"}, "is not in it once"),
        ({"archive.json": None}, "no archive.json in it"),
        ({"archive.json": b"{}"}, "no archive.json in it"),
        ({"archive.json": b'{"kind": "speechtrain archive", "version": 9, "files": {}}'}, "is of version 9"),
    ],
)
def test_an_archive_that_is_not_what_it_says_is_refused(change: dict[str, bytes | None], told: str, archive: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        extract(rewritten(archive, change), tmp_path / "out")


def test_a_file_that_is_no_zip_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_text("no zip")
    with pytest.raises(UserError, match="is no archive of speechtrain"):
        read_index(tmp_path / "a.zip")
