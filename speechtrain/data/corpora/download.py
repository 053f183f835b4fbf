"""Fetching a corpus: resumable, checked, unpacked into place and marked as complete only at the end."""

from __future__ import annotations

import hashlib
import logging
import tarfile
import urllib.error
from dataclasses import dataclass
from pathlib import Path

from lhotse.utils import resumable_download
from rich.progress import Progress

from speechtrain.console import console
from speechtrain.errors import DataError

log = logging.getLogger(__name__)

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Archive:
    """A packed part of a corpus.

    Attributes:
        url: of a tar file, packed or not.
        digest: `sha256:...` or `md5:...` of it; None: nobody has published one, and only the packing's own check is made.
        size: about, in GB, for messages.
    """

    url: str
    digest: str | None
    size: float


def fetch(archive: Archive, folder: Path) -> None:
    """Put the content of an archive into a folder, unless that was done before.

    What was fetched of it by a run that was cut off is gone on with. The archive is removed once it is unpacked.

    Raises:
        DataError: the network or the disk fails, or what came is not what was published.
    """
    name = archive.url.rsplit("/", 1)[-1]
    mark = folder / f".{name}.complete"
    if mark.is_file():
        return
    packed = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        log.info("fetching %s (%.1f GB) to %s", archive.url, archive.size, folder)
        resumable_download(archive.url, filename=packed)
        _check(packed, archive)
        _unpack(packed, folder)
        mark.touch()
        packed.unlink()
    except (OSError, urllib.error.URLError, tarfile.TarError, EOFError) as error:
        fix = f"look at the network and at the room on the disk, or put {archive.url} into {folder} yourself"
        raise DataError(f"{name}: could not be fetched from {archive.url} ({error})\n    -> {fix}") from error


def _check(packed: Path, archive: Archive) -> None:
    if archive.digest is None:
        return
    kind, _, wanted = archive.digest.partition(":")
    found = hashlib.new(kind, usedforsecurity=False)
    with packed.open("rb") as file, _bar(f"checking {packed.name}", packed.stat().st_size) as advance:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
            advance(len(chunk))
    if found.hexdigest() != wanted:
        packed.unlink()  # going on with it would give the same again
        raise DataError(
            f"{packed.name}: {kind} is {found.hexdigest()}, published is {wanted}; what came from {archive.url} was removed\n"
            "    -> try again; if it stays so, the file was changed there"
        )


def _unpack(packed: Path, folder: Path) -> None:
    with tarfile.open(packed) as tar, _bar(f"unpacking {packed.name}", packed.stat().st_size) as advance:
        before = 0
        for member in tar:
            tar.extract(member, folder, filter="data")
            position = tar.offset
            advance(position - before)
            before = position


class _bar:  # noqa: N801 # used as a function
    """A progress bar over bytes."""

    def __init__(self, title: str, total: int) -> None:
        self._progress = Progress(console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task(title, total=total)

    def __enter__(self):  # type: ignore[no-untyped-def]
        self._progress.start()
        return lambda count: self._progress.advance(self._task, count)

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()
