"""Fetching a corpus: continued where it was cut off, checked, unpacked into place, and marked as complete only at the end."""

from __future__ import annotations

import hashlib
import logging
import tarfile
import urllib.error
from dataclasses import dataclass, replace
from pathlib import Path

from speechtrain.console import progress_bar
from speechtrain.errors import DataError

log = logging.getLogger(__name__)

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Archive:
    """A packed part of a corpus.

    Attributes:
        url: URL of a tar file, compressed or not.
        digest: `sha256:...` or `md5:...` of it; None: none is published, and only the check of the packing itself is made.
        size: about, in GB, for messages.
    """

    url: str
    digest: str | None
    size: float

    @property
    def name(self) -> str:
        """Name of the tar file."""
        return self.url.rsplit("/", 1)[-1]

    def at(self, mirror: str) -> Archive:
        """Return the same archive under the address of a mirror."""
        return replace(self, url=f"{mirror.rstrip('/')}/{self.name}")


def fetch(archive: Archive, folder: Path) -> None:
    """Fetch an archive and unpack it into a folder, unless that was done before.

    A download that was cut off is continued. The archive is removed once it is unpacked.

    Raises:
        DataError: the network or the disk fails, or the archive is not the one that was published.
    """
    from lhotse.utils import resumable_download

    complete = folder / f".{archive.name}.complete"
    if complete.is_file():
        return
    packed = folder / archive.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        log.info("fetching %s (%.1f GB) to %s", archive.url, archive.size, folder)
        resumable_download(archive.url, filename=packed)
        _check(packed, archive)
        _unpack(packed, folder)
        complete.touch()
        packed.unlink()
    except (OSError, urllib.error.URLError, tarfile.TarError, EOFError) as error:
        fix = f"check the network and the free space on the disk, or put {archive.url} into {folder} yourself"
        raise DataError(f"{archive.name}: could not be fetched from {archive.url} ({error})\n    -> {fix}") from error


def _check(packed: Path, archive: Archive) -> None:
    if archive.digest is None:
        return
    kind, _, published = archive.digest.partition(":")
    received = hashlib.new(kind, usedforsecurity=False)
    with packed.open("rb") as file, progress_bar(f"checking {packed.name}", packed.stat().st_size) as advance:
        while chunk := file.read(_CHUNK):
            received.update(chunk)
            advance(len(chunk))
    if received.hexdigest() != published:
        packed.unlink()  # continuing it would give the same again
        raise DataError(
            f"{packed.name}: {kind} is {received.hexdigest()}, published is {published}; what came from {archive.url} was removed\n"
            "    -> try again; if the digest stays the same, the file was changed there"
        )


def _unpack(packed: Path, folder: Path) -> None:
    with tarfile.open(packed) as tar, progress_bar(f"unpacking {packed.name}", packed.stat().st_size) as advance:
        before = 0
        for member in tar:
            tar.extract(member, folder, filter="data")
            position = tar.offset
            advance(position - before)
            before = position
