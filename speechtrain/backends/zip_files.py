"""Opens zip files of any origin, as which checkpoints of both backends and archives are stored: damage and bombs are found before use."""

from __future__ import annotations

import os
import pickle
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

UNREADABLE = (
    *(OSError, zipfile.BadZipFile, zlib.error, EOFError, pickle.UnpicklingError, StopIteration),
    *(LookupError, ValueError, TypeError, AttributeError, RuntimeError, MemoryError, RecursionError),
)
"""The errors of reading a zip that is damaged or of another program, and what is in it."""

MOST_TEXT = 64 << 20
"""The bytes of a text inside, such as an index, a config or the structure of a checkpoint."""

_MOST_DIRECTORY = 8 << 20
_FREE = 64 << 20
_MOST_RATIO = 100
_END, _END_SIZE = b"PK\5\6", 22
_LOCATOR, _LOCATOR_SIZE = b"PK\6\7", 20
_END64, _END64_SIZE = b"PK\6\6", 56


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip to read from; what is inside has still to be compared with its checksums, which `verify` does, and reading a file.

    Raises:
        zipfile.BadZipFile: it is damaged or no zip, is encrypted, compressed by a method that neither backend uses, names a file twice, or
            comes to more than a hundred times its size.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        _check_directory(file)
        with zipfile.ZipFile(file) as archive:
            _check_entries(archive, file.seek(0, os.SEEK_END))
            yield archive


def verify(archive: zipfile.ZipFile) -> None:
    """Compare each file of a zip with its checksum.

    Raises:
        zipfile.BadZipFile: one of them is damaged.
    """
    if (damaged := archive.testzip()) is not None:
        raise zipfile.BadZipFile(f"{damaged!r} is damaged: its content does not have the checksum that it was written with")


def read_text(archive: zipfile.ZipFile, name: str) -> bytes:
    """Read a file of a zip that is held in memory as a whole.

    Raises:
        KeyError: there is no such file.
        zipfile.BadZipFile: it is damaged, or longer than such a file ever is.
    """
    if (size := archive.getinfo(name).file_size) > MOST_TEXT:
        raise zipfile.BadZipFile(f"{name!r} has {size:,} bytes")
    return archive.read(name)


def _check_directory(file: BinaryIO) -> None:
    """Check the size of the directory, which Python reads as a whole when it opens a zip."""
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - _END_SIZE - 0xFFFF - _LOCATOR_SIZE)
    file.seek(start)
    tail = file.read()
    end = tail.rfind(_END)
    if end < 0 or len(tail) - end < _END_SIZE:
        raise zipfile.BadZipFile("it is no zip file, or cut off")
    directory = struct.unpack_from("<L", tail, end + 12)[0]
    locator = tail[max(0, end - _LOCATOR_SIZE) : end]
    if locator.startswith(_LOCATOR) and len(locator) == _LOCATOR_SIZE:
        # as Python does, where the record lies before the locator; what the locator says counts from where the zip begins
        file.seek(max(0, start + end - _LOCATOR_SIZE - _END64_SIZE))
        record = file.read(_END64_SIZE)
        if record.startswith(_END64):
            directory = struct.unpack_from("<Q", record, 40)[0]
    if directory > _MOST_DIRECTORY:
        raise zipfile.BadZipFile(f"its directory has {directory:,} bytes")
    file.seek(0)


def _check_entries(archive: zipfile.ZipFile, size: int) -> None:
    """Check what the directory says of each file, and of all together, against the size of the zip in bytes."""
    names = set()
    compressed = content = 0
    for entry in archive.infolist():
        name = f"its file {entry.filename[:80]!r}"
        if entry.filename in names:
            raise zipfile.BadZipFile(f"{name} is in it twice")
        if entry.flag_bits & 0x41:
            raise zipfile.BadZipFile(f"{name} is encrypted")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise zipfile.BadZipFile(f"{name} is compressed by method {entry.compress_type}, which speechtrain does not use")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise zipfile.BadZipFile(f"{name} is a link")
        names.add(entry.filename)
        compressed += entry.compress_size
        content += entry.file_size
    if compressed > size:
        raise zipfile.BadZipFile(f"its files take {compressed:,} bytes of {size:,}")
    if content > max(_FREE, _MOST_RATIO * size):
        raise zipfile.BadZipFile(f"its files come to {content:,} bytes, from {size:,}")
