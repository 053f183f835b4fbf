"""Spectra on disk, by what they were made of: computed once, shared by all runs, trials and worker processes through the page cache.

    FOLDER/<features>/<pack>.bin      arrays, one behind the other
    FOLDER/<features>/<pack>.json     where each begins; written after the arrays, so that an entry without its data cannot be seen

A key is a digest of the encoded audio and of the part of it that is used; `<features>` is a digest of how spectra are computed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import filelock
import numpy as np
import numpy.typing as npt
import torch

from speechtrain.errors import first_line
from speechtrain.files import atomically, open_regular, user_path

log = logging.getLogger(__name__)

_PACK_BYTES = 256_000_000
_OURS = re.compile(r"[0-9a-f]{16}/\.?[0-9a-f]{32}\..*")
"""The files that a store writes; the folder may be one of the user's, and nothing else in it is deleted."""


class StoredSpectrum(NamedTuple):
    """A spectrum that lies in a store.

    Attributes:
        packed: (T, K) as `Features.pack` made it, on the file's own pages until it is written to.
        checksum: CRC-32 of the samples that it was computed from.
    """

    packed: torch.Tensor
    checksum: int


class SpectrumStore:
    """The spectra on disk for one way of computing them.

    Args:
        folder: the folder that holds a folder for each way of computing spectra.
        identity: names this one, see `Features.identity`.
        gigabytes: size limit in GB of all folders together; what was used least recently is deleted first.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, folder: Path, identity: str, gigabytes: float) -> None:
        self._root = user_path(folder).absolute()
        self._folder = self._root / hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()
        self._max_bytes = gigabytes * 1e9
        self._entries: dict[str, tuple[Path, int, list[int], str, int]] = {}  # file, offset, shape, type, checksum
        self._maps: dict[Path, npt.NDArray[np.uint8]] = {}
        self._folder.mkdir(parents=True, exist_ok=True)
        readme = self._folder / "README"
        if not readme.is_file():
            readme.write_text(f"Spectra: {identity}\nMay be deleted when nothing runs.\n", encoding="utf-8")
        self._read()

    def get(self, key: str) -> StoredSpectrum | None:
        """Look up a spectrum by its key; None if it is not there."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        path, offset, shape, dtype, checksum = entry
        if path not in self._maps:
            try:
                self._maps[path] = np.memmap(path, mode="c", dtype=np.uint8)
            except OSError:  # another process made room
                self._entries = {name: other for name, other in self._entries.items() if other[0] != path}
                return None
            with suppress(OSError):  # a cache that others own can still be read
                os.utime(path.with_suffix(".json"))
        array = np.frombuffer(self._maps[path].data, dtype=dtype, count=math.prod(shape), offset=offset)
        return StoredSpectrum(torch.from_numpy(array.reshape(shape)), checksum)

    @contextmanager
    def writing(self) -> Iterator[PackWriter]:
        """Add spectra, as the only process that does; others wait and find then what was added.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        lock = filelock.FileLock(self._root / ".lock")
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            log.info("another run computes spectra for %s; waiting for it", self._root)
            lock.acquire()
        try:
            self._read()
            self._delete_unfinished()
            writer = PackWriter(self._folder)
            try:
                yield writer
            finally:
                writer.close()
            self._read()
            self._make_room()
        finally:
            lock.release()

    def _read(self) -> None:
        for index in self._folder.glob("[!.]*.json"):
            path = index.with_suffix(".bin")
            try:
                content = json.loads(index.read_text(encoding="utf-8"))
                if path.stat().st_size != content["bytes"]:
                    continue
                for key, (offset, shape, dtype, checksum) in content["entries"].items():
                    self._entries[key] = (path, offset, shape, dtype, checksum)
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.warning("%s is ignored (%s)", index, first_line(error, most=80))

    def _delete_unfinished(self) -> None:
        """Delete what killed processes left half written; the lock must be held."""
        for path in self._root.glob("*/*"):
            if _OURS.fullmatch(f"{path.parent.name}/{path.name}") is None:
                continue
            if ".tmp" in path.suffixes or (path.suffix == ".bin" and not path.with_suffix(".json").is_file()):
                path.unlink(missing_ok=True)

    def _make_room(self) -> None:
        """Delete the packs that were used least recently until the rest is within the limit."""
        ours = [path for path in self._root.glob("*/[!.]*.json") if _OURS.fullmatch(f"{path.parent.name}/{path.name}") is not None]
        packs = sorted(ours, key=lambda path: path.stat().st_mtime)
        sizes = {path: path.with_suffix(".bin").stat().st_size for path in packs if path.with_suffix(".bin").is_file()}
        total = sum(sizes.values())
        for path in packs:
            if total <= self._max_bytes:
                break
            total -= sizes.get(path, 0)
            path.unlink(missing_ok=True)  # first: an entry without data must not be seen; who has it open keeps it
            path.with_suffix(".bin").unlink(missing_ok=True)


class PackWriter:
    """Appends spectra to a pack, under a temporary name until the pack is full or the writer is closed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: BinaryIO | None = None
        self._entries: dict[str, tuple[int, list[int], str, int]] = {}
        self._offset = 0

    def add(self, key: str, packed: torch.Tensor, checksum: int) -> None:
        """Write a packed spectrum (T, K), unless the key was added before."""
        if self._file is not None and key in self._entries:
            return
        if self._file is None:
            self._name = uuid.uuid4().hex
            self._file = (self._folder / f"{self._name}.bin.tmp").open("wb")
            self._entries, self._offset = {}, 0
        array = packed.contiguous().numpy()
        self._entries[key] = (self._offset, list(array.shape), array.dtype.str, checksum)
        self._file.write(array.data)
        padding = -array.nbytes % 64
        self._file.write(b"\0" * padding)
        self._offset += array.nbytes + padding
        if self._offset >= _PACK_BYTES:
            self.close()

    def close(self) -> None:
        """Give the pack its final name, which makes it visible to other processes."""
        if self._file is None:
            return
        file, self._file = self._file, None
        file.flush()
        os.fsync(file.fileno())
        file.close()
        place = self._folder / f"{self._name}.bin"
        Path(file.name).replace(place)
        with atomically(place.with_suffix(".json")) as index:
            index.write_text(json.dumps({"bytes": self._offset, "entries": self._entries}), encoding="utf-8")


_READING = 3  # raised whenever recordings are read differently, so that spectra of before are not used


def content_of(path: Path) -> str:
    """Digest the content of an audio file.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    with open_regular(path) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def key_of(content: str, channel: int | None, start: float, duration: float) -> str:
    """Return the key of an utterance.

    Args:
        content: digest of its file.
        channel: counted from 0; None: the mean of all.
        start: start of the part in the file, s.
        duration: duration of the part, s.
    """
    return hashlib.blake2b(f"{content}:{_READING}:{channel}:{start:.6f}+{duration:.6f}".encode(), digest_size=16).hexdigest()
