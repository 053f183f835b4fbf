"""`data=shar`: a corpus in Lhotse's Shar format with an index, in a folder, on an HTTP server or in a bucket of S3.

`python -m speechtrain.shard` makes one:

    ROOT/index.jsonl.gz                    what is listed here; compressed JSON, a value a line
    ROOT/train/cuts.000000.jsonl.gz        Lhotse's own list, which is not read here
    ROOT/train/recording.000000.tar        the recordings

The first line of the index is `{"shar_index": 1}`. Then comes a line for each tar file, and behind it one for each utterance in it:

    {"shard": "train/recording.000000.tar", "split": "train", "size": 10240000}
    {"id": "a", "text": "seven", "speaker": "theo", "duration": 1.25, "sample_rate": 16000, "offset": 512, "size": 23061, "crc32": 276650}

Utterances are planned by the index, and each is read from its place, so their order is the one that they would have as files of their own.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from speechtrain.data.audio import MOST_SAMPLES, Audio, check_rate, read_recording
from speechtrain.data.corpus import NO_CUSTOM, SPLITS, Corpus, Cut, check_name, check_text
from speechtrain.data.cut_table import Columns, CutsById, CutTable, Places, TableWriter
from speechtrain.data.features.store import content_of
from speechtrain.data.read_ahead import ReadAhead
from speechtrain.data.splits import complete_splits
from speechtrain.data.storage import Part, StorageError, open_storage
from speechtrain.data.table_cache import KeepsTables, StoredTable
from speechtrain.data.text.lines import lines_of, parse_json
from speechtrain.errors import DataError

INDEX = "index.jsonl.gz"
VERSION = 1
_READING = 1
"""Raised whenever lines are read differently, so that what was kept before is not used."""
_WORTH_KEEPING = 10_000
"""Lines from which on what was read is kept."""
_LARGEST_FILE = 1 << 50  # bytes
_LARGEST_RECORDING = (1 << 31) - 1  # bytes
_FIX = "make the folder anew with python -m speechtrain.shard"


class Shar(KeepsTables):
    """A corpus in Shar format, whose audio is read in parts of the tar files while training.

    Args:
        root: folder, or address, of the index and of what it names.
        split: `by`, `val`, `test`, `seed`, as `split_cuts` takes them, for splits that the index lists nothing of.
        connections: utterances that are fetched at the same time by each process that makes batches.
        retries: how often a request that failed is repeated, after 0.1 s, 0.2 s and so on up to 10 s.
        timeout: s without an answer after which a request has failed.
    """

    def __init__(self, root: str, split: dict[str, Any], connections: int, retries: int, timeout: float) -> None:
        self.split = split
        self._storage = open_storage(root, retries=retries, timeout=timeout)
        self._ahead = ReadAhead(self._storage, connections)
        self._listing: _Listing | None = None
        self._by_id: CutsById | None = None

    def load(self, limit: int | None) -> Corpus:
        """Read the index, and open no tar file.

        Raises:
            DataError: it is damaged, or lists nothing for training.
            StorageError: it cannot be read.
        """
        with self._storage.local(INDEX) as path:
            listing = self._listing = self._read(path)
        self._by_id = CutsById(CutTable(listing.columns))
        cuts: dict[str, Sequence[Cut]] = {
            name: CutTable(listing.columns, np.flatnonzero(listing.split == n)) for n, name in enumerate(SPLITS)
        }
        if not len(cuts["train"]):
            raise DataError(f"{self._storage.address(INDEX)}: lists no utterance for training\n    -> {_FIX}")
        missing = [name for name in ("val", "test") if not len(cuts[name])]
        return Corpus(complete_splits(cuts, missing, self.split, limit), read=self.read, prefetch=self.prefetch)

    def read(self, cut: Cut, rate: int) -> Audio:
        """Read the samples (N,) of an utterance at `rate` Hz.

        Raises:
            DataError: they cannot be decoded.
            StorageError: they cannot be fetched.
        """
        part = self._part(cut)
        try:
            content = self._ahead.take(part)
        except StorageError as error:
            reason, arrow, fix = str(error).partition("\n    -> ")
            raise StorageError(f"utterance '{cut.id}': {reason}{arrow}{fix}") from None
        name = f"{self._storage.address(part.name)}, '{cut.id}'"
        return read_recording(content, rate, duration=cut.duration, channel=cut.channel, name=name)

    def prefetch(self, cuts: Sequence[Cut], owner: object) -> None:
        """Fetch utterances ahead, which `owner` reads next."""
        self._ahead.prefetch(map(self._part, cuts), owner)

    def _part(self, cut: Cut) -> Part:
        """Return where an utterance lies."""
        assert self._listing is not None
        assert self._by_id is not None
        return self._listing.part(self._by_id.place_of(cut.id))

    def _read(self, path: Path) -> _Listing:
        """Return what the index lists, which is read from its lines unless it is kept."""
        made_of = (_READING, content_of(path))
        key = hashlib.blake2b(repr(made_of).encode(), digest_size=16).hexdigest()
        stored = self.table_cache.read(key) if self.table_cache is not None else None
        if stored is not None and stored.facts.get("shar_index") == VERSION:
            return _Listing.stored(stored)
        listing = _IndexReader(self._storage.address(INDEX)).read(path)
        if self.table_cache is not None and len(listing.size) >= _WORTH_KEEPING and self.table_cache.write(key, listing.to_store()):
            stored = self.table_cache.read(key)
            listing = _Listing.stored(stored) if stored is not None else listing  # on the file's pages, not in memory
        return listing


@dataclass(frozen=True, eq=False)
class _Listing:
    """What an index lists: N utterances in their order.

    Attributes:
        shards: name and size in bytes of each tar file.
        split: number of each utterance's split in `SPLITS` (N,).
        shard: number of each utterance's tar file (N,).
        offset: where each recording begins in its tar file, in bytes (N,).
        size: bytes of each recording (N,).
        checksum: CRC-32 of each recording (N,).
    """

    columns: Columns
    shards: Sequence[Sequence[Any]]
    split: npt.NDArray[np.int8]
    shard: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int32]
    checksum: npt.NDArray[np.uint32]

    def part(self, place: int) -> Part:
        """Return where the recording of an utterance lies."""
        name, file_size = self.shards[self.shard[place]]
        return Part(name, int(self.offset[place]), int(self.size[place]), file_size, int(self.checksum[place]))

    def to_store(self) -> StoredTable:
        """Return it as a table cache keeps it."""
        own: dict[str, Places] = {name: getattr(self, name) for name in _NUMBERS}
        return StoredTable({"shar_index": VERSION, "shards": self.shards}, {**self.columns.as_arrays(), **own})

    @classmethod
    def stored(cls, table: StoredTable) -> _Listing:
        """Return what `to_store` made."""
        return cls(Columns.from_arrays(table.arrays), table.facts["shards"], **{name: table.arrays[name] for name in _NUMBERS})


_NUMBERS = {"split": "b", "shard": "i", "offset": "q", "size": "i", "checksum": "I"}
"""The columns of a listing, with their types as arrays have them."""


class _IndexReader:
    """Reads the lines of an index.

    Args:
        name: address of the index, for messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._writer = TableWriter()
        self._numbers = {key: array(kind) for key, kind in _NUMBERS.items()}
        self._shards: list[tuple[str, int]] = []
        self._split = 0

    def read(self, path: Path) -> _Listing:
        """Read all lines.

        Raises:
            DataError: one of them is not what an index holds.
        """
        number = 0
        try:
            for number, line in lines_of(path, _FIX):
                self._add(parse_json(line), number)
        except DataError as error:
            reason = str(error).replace(str(path), self._name)
            where = "" if reason.startswith(self._name) else f"{self._name}:{number}: "
            raise DataError(f"{where}{reason}" + ("" if "\n    -> " in reason else f"\n    -> {_FIX}")) from None
        if not number:
            raise DataError(f"{self._name}: is empty\n    -> {_FIX}")
        numbers = {key: np.frombuffer(column, dtype=column.typecode) for key, column in self._numbers.items()}
        return _Listing(self._writer.columns(), self._shards, **numbers)

    def _add(self, value: Any, number: int) -> None:
        if not isinstance(value, dict):
            raise DataError(f"must be a JSON object, received {value!r:.60}")
        if number == 1:
            if value.get("shar_index") != VERSION:
                raise DataError(f'is no index that this version reads: the first line must be {{"shar_index": {VERSION}}}')
        elif "shard" in value:
            self._add_shard(value)
        else:
            self._add_utterance(value)

    def _add_shard(self, value: Mapping[str, Any]) -> None:
        name, split = value["shard"], value.get("split")
        if not isinstance(name, str) or not _is_inside(name):
            raise DataError(f"'shard' must be the path of a file in the corpus' folder, received {name!r:.60}")
        if split not in SPLITS:
            raise DataError(f"'split' must be {', '.join(SPLITS)}, received {split!r:.60}")
        self._shards.append((name, _whole(value, "size", 1, _LARGEST_FILE)))
        self._split = SPLITS.index(split)

    def _add_utterance(self, value: Mapping[str, Any]) -> None:
        if not self._shards:
            raise DataError("an utterance stands before the first tar file")
        offset, size = _whole(value, "offset", 0, _LARGEST_FILE), _whole(value, "size", 1, _LARGEST_RECORDING)
        if offset + size > self._shards[-1][1]:
            raise DataError(f"lies from {offset} to {offset + size}, behind the end of {self._shards[-1][0]}")
        row = (self._split, len(self._shards) - 1, offset, size, _whole(value, "crc32", 0, (1 << 32) - 1))
        self._writer.append(_cut(value))
        for column, each in zip(self._numbers.values(), row, strict=True):
            column.append(each)


def _cut(value: Mapping[str, Any]) -> Cut:
    """Return the utterance of a line."""
    name, text, speaker, custom = value.get("id"), value.get("text"), value.get("speaker"), value.get("custom")
    if not isinstance(name, str) or not isinstance(text, str) or not isinstance(speaker, (str, type(None))) or not name:
        raise DataError(f"'id' and 'text' must be texts, and 'speaker' if it is known, received {dict(value)!r:.120}")
    check_name(name)
    check_text(text)
    if speaker is not None:
        check_name(speaker)
        speaker = sys.intern(speaker)
    rate = _whole(value, "sample_rate", 1, 1 << 30)
    check_rate(rate, f"'{name}'")
    duration = value.get("duration")
    if isinstance(duration, bool) or not isinstance(duration, (int, float)) or not 0 < duration <= MOST_SAMPLES / rate:
        raise DataError(f"'duration' must be a number of seconds above 0, of at most {MOST_SAMPLES} samples, received {duration!r:.60}")
    channel = None if value.get("channel") is None else _whole(value, "channel", 0, 1024)
    channels = _whole(value, "channels", 1, 1024) if "channels" in value else 1
    if not isinstance(custom, (Mapping, type(None))):
        raise DataError(f"'custom' must be a JSON object, received {custom!r:.60}")
    return Cut(name, text, float(duration), rate, speaker, channel=channel, channels=channels, custom=custom or NO_CUSTOM)


def _whole(value: Mapping[str, Any], key: str, least: int, most: int) -> int:
    number = value.get(key)
    if isinstance(number, bool) or not isinstance(number, int) or not least <= number <= most:
        raise DataError(f"'{key}' must be a whole number from {least} to {most}, received {number!r:.60}")
    return number


def _is_inside(name: str) -> bool:
    """Return whether a path with slashes leads to a file below the folder that it is relative to."""
    path = PurePosixPath(name)
    plain = bool(name) and str(path) == name and name.isprintable() and "\\" not in name
    return plain and not path.is_absolute() and ".." not in path.parts and name != "."
