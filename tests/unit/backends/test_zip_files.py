"""Zip files of any origin: what is damaged, or comes to more than it weighs, is refused before it is read."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
from pathlib import Path

import pytest

from speechtrain.backends import zip_files


def zip_of(path: Path, method: int = zipfile.ZIP_STORED, **files: bytes) -> bytearray:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return bytearray(path.read_bytes())


def opened(path: Path) -> dict[str, bytes]:
    with zip_files.opened(path) as archive:
        zip_files.verify(archive)
        return {name: zip_files.read_text(archive, name) for name in archive.namelist()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.zip"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_what_is_whole_is_read(method: int, path: Path) -> None:
    zip_of(path, method, a=b"x" * 1000, b=b"")
    assert opened(path) == {"a": b"x" * 1000, "b": b""}


def test_a_directory_in_the_form_for_large_files_is_read(path: Path) -> None:
    import torch

    torch.save({"a": torch.ones(2)}, path)
    assert "archive/data.pkl" in opened(path) or "a/data.pkl" in opened(path)
    content = bytearray(path.read_bytes())
    at = content.rfind(b"PK\6\6")
    struct.pack_into("<Q", content, at + 40, 1 << 30)
    path.write_bytes(content)
    with pytest.raises(zipfile.BadZipFile, match="its directory has 1,073,741,824 bytes"):
        opened(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_unpack_without_a_limit_are_refused(method: int, path: Path) -> None:
    zip_of(path, method, a=b"x" * 1000)
    with pytest.raises(zipfile.BadZipFile, match=r"'a' is compressed by method 1[24]"):
        opened(path)


@pytest.mark.parametrize(
    ("offset", "value", "told"),
    [
        (8, struct.pack("<H", 1), "is encrypted"),
        (8, struct.pack("<H", 64), "is encrypted"),
        (24, struct.pack("<L", 1 << 30), "come to 1,073,741,824 bytes, from"),
        (20, struct.pack("<L", 1 << 20), "take 1,048,576 bytes of"),
        (38, struct.pack("<L", (stat.S_IFLNK | 0o777) << 16), "is a link"),
        (16, struct.pack("<L", 7), "is damaged"),
    ],
)
def test_a_directory_that_says_something_else_is_refused(offset: int, value: bytes, told: str, path: Path) -> None:
    content = zip_of(path, a=b"x" * 1000)
    at = content.find(b"PK\1\2") + offset
    content[at : at + len(value)] = value
    path.write_bytes(content)
    with pytest.raises(zipfile.BadZipFile, match=told):
        opened(path)


def test_a_bomb_is_refused_before_it_is_unpacked(path: Path) -> None:
    zip_of(path, zipfile.ZIP_DEFLATED, a=bytes(80_000_000))
    assert path.stat().st_size < 100_000
    with pytest.raises(zipfile.BadZipFile, match="its files come to 80,000,000 bytes"):
        opened(path)


def test_a_text_has_a_limit_of_its_own(path: Path) -> None:
    zip_of(path, a=bytes(zip_files.MOST_TEXT + 1))
    with pytest.raises(zipfile.BadZipFile, match="'a' has 67,108,865 bytes"):
        opened(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_stands_for_one_file(path: Path) -> None:
    zip_of(path, a=b"1")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a", b"2")
    with pytest.raises(zipfile.BadZipFile, match="'a' is in it twice"):
        opened(path)


def test_a_directory_of_a_gigabyte_is_not_read(path: Path) -> None:
    content = zip_of(path, a=b"1")
    struct.pack_into("<L", content, content.rfind(b"PK\5\6") + 12, 1 << 30)
    path.write_bytes(content)
    with pytest.raises(zipfile.BadZipFile, match="its directory has 1,073,741,824 bytes"):
        opened(path)


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\5\6", b"x" * 100, b"PK\5\6" + bytes(17)])
def test_what_is_no_zip_is_told(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(zipfile.BadZipFile, match="no zip file, or cut off"):
        opened(path)


def test_each_flipped_bit_of_a_content_is_found(path: Path) -> None:
    whole = zip_of(path, weights=bytes(range(64)))
    start = whole.find(bytes(range(64)))
    for bit in range(8 * 64):
        damaged = bytearray(whole)
        damaged[start + bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(zipfile.BadZipFile, match="'weights' is damaged"):
            opened(path)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        assert archive.testzip() is None
