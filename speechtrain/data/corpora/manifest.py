"""`data=manifest`: manifests of JSON lines as NeMo writes them, one utterance a line.

    {"audio_filepath": "audio/a.flac", "duration": 1.25, "text": "seven", "utt_id": "a", "speaker": "theo"}

`utt_id` and `speaker` are optional. Paths are absolute or relative to the manifest, and stay inside `root`. With an `offset` in seconds an
utterance is the part of its file from there on: for `duration`, or without one to the next offset in the same file, or to its end.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
import zlib
from array import array
from bisect import bisect_right, insort
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import soundfile

from speechtrain.data.audio import samples_in
from speechtrain.data.corpus import Corpus, Cut, NoTextError, Skip, clean_text, make_cut, read_header
from speechtrain.data.cut_table import Columns, CutTable, TableWriter
from speechtrain.data.features.store import content_of
from speechtrain.data.headers import Header
from speechtrain.data.splits import complete_splits
from speechtrain.data.table_cache import KeepsTables, StoredTable
from speechtrain.data.text.lines import lines_of, numbered_lines, parse_json
from speechtrain.errors import DataError, nearest
from speechtrain.files import is_file, user_path

_REQUIRED = ("audio_filepath", "text")
_LONGEST = 1e9
"""Seconds that a line may state: 30 years, so that no arithmetic overflows."""
_NAMES = ("utt_id", "speaker")
_MP3_PADDING = 3 * 576
"""Samples that encoders add to an MP3; where its header does not say how many, the file is so much longer than what was encoded."""
_REMEMBERED = 50_000
"""Files whose headers are remembered while a manifest is read."""
_WORTH_KEEPING = 10_000
"""Lines from which on what was read is kept; fewer are read in a fraction of a second."""
_READING = 1
"""Raised whenever lines are read differently, so that what was kept before is not used."""
_READ = frozenset(("utt_id", "audio_filepath", "offset", "duration", "text", "speaker"))
"""Keys with a meaning; `words` gives word times, and the error report is divided by all others."""


class Manifest(KeepsTables):
    """A corpus described by manifests of JSON lines.

    Args:
        root: folder of the manifests; audio outside of it is refused.
        train: manifest or manifests, relative to `root`.
        val, test: the same for those splits; None takes them from `train` as `split` says.
        split: `by`, `val`, `test`, `seed`, as `split_cuts` takes them.
        sample_rate: rate in Hz that every file must have; None: any.
        duration_tolerance: s that a stated duration may differ from the file's.
        trust_durations: take every line's `duration` as it is and open no file; `sample_rate` must be given.
    """

    def __init__(
        self,
        root: str,
        train: str | Sequence[str],
        val: str | Sequence[str] | None,
        test: str | Sequence[str] | None,
        split: dict[str, Any],
        sample_rate: int | None = None,
        duration_tolerance: float = 0.1,
        trust_durations: bool = False,
    ) -> None:
        self.root = _absolute(user_path(root))
        self.files = {"train": _as_list(train), "val": _as_list(val), "test": _as_list(test)}
        self.split = split
        self.sample_rate = sample_rate
        self.duration_tolerance = duration_tolerance
        self.trust_durations = trust_durations
        self._inside = _with_separator(str(self.root))
        self._headers: dict[str, tuple[Header, _Stamp]] = {}  # of the files that were read last, for many lines may name one
        self._offsets: dict[Path, dict[str, list[float]]] = {}
        self._parts: dict[str, tuple[float, float]] = {}  # start and end, s, of parts by their ids

    def load(self, limit: int | None) -> Corpus:
        """Read every manifest, and the header of every audio file unless the manifests are trusted.

        Raises:
            DataError: a manifest holds no usable utterance.
        """
        listing = self._listing()
        cuts: dict[str, Sequence[Cut]] = {
            name: CutTable(listing.columns, np.arange(*span, dtype=np.int64)) for name, span in listing.spans.items()
        }
        missing = [part for part in ("val", "test") if not self.files[part]]
        return Corpus(complete_splits(cuts, missing, self.split, limit), list(listing.skipped))

    def _listing(self) -> _Listing:
        """Return what the manifests list, which is read again unless it is kept and all files are as they were."""
        key = self._key() if self.table_cache is not None else None
        if self.table_cache is None or key is None:
            return self._read_all()
        stored = self.table_cache.read(key)
        listing = _Listing.stored(stored) if stored is not None else None
        if listing is not None and self._is_unchanged(listing):
            return listing
        listing = self._read_all()
        if listing.length >= _WORTH_KEEPING and key == self._key() and self.table_cache.write(key, listing.to_store()):
            stored = self.table_cache.read(key)
            listing = (_Listing.stored(stored) if stored is not None else None) or listing  # on the file's pages, not in memory
        return listing

    def _key(self) -> str | None:
        """Return a digest of all that decides what is read, but for the audio; None: a manifest cannot be read."""
        try:
            contents = {name: [(file, content_of(self.root / file)) for file in files] for name, files in self.files.items()}
        except OSError:
            return None
        options = (self.sample_rate, self.duration_tolerance, self.trust_durations)
        made_of = (_READING, soundfile.__libsndfile_version__, str(self.root), contents, options)
        return hashlib.blake2b(repr(made_of).encode(errors="surrogatepass"), digest_size=16).hexdigest()

    def _is_unchanged(self, listing: _Listing) -> bool:
        """Return whether the audio files of a listing that was kept are those that were read, and what was wrong still is."""
        stamps = array("q")
        for path in listing.columns.files:
            stamps.extend(self._stamp_of(path))
        if not np.array_equal(_as_stamps(stamps), listing.stamps):
            return False
        self._forget()
        for skip, (file, line) in zip(listing.skipped, listing.skipped_lines, strict=True):
            try:
                self._cut(_parse(line), _Place.of(_absolute(self.root / file)))
            except DataError as error:
                if (str(error), isinstance(error, NoTextError)) != (skip.reason, skip.cut is not None):
                    return False
            else:
                return False
        return True

    def _read_all(self) -> _Listing:
        """Read every manifest, and the header of every audio file unless the manifests are trusted."""
        self._forget()
        writer, stamps, spans = TableWriter(), array("q"), {}
        skipped: list[Skip] = []
        lines: list[tuple[str, str]] = []
        for name, files in self.files.items():
            begin = len(writer)
            for file in files:
                before, usable = len(skipped), len(writer)
                self._read(file, name, writer, stamps, skipped, lines)
                if len(writer) == usable and not any(skip.cut for skip in skipped[before:]):
                    raise DataError(_nothing_usable(self.root / file, skipped))
            spans[name] = (begin, len(writer))
        return _Listing(writer.columns(), spans, _as_stamps(stamps), skipped, lines)

    def _forget(self) -> None:
        """Forget what was read before."""
        self._headers, self._offsets, self._parts = {}, {}, {}

    def _read(
        self, file: str, split: str, writer: TableWriter, stamps: array[int], skipped: list[Skip], lines: list[tuple[str, str]]
    ) -> None:
        """Write the utterances of a manifest, with stamps of the audio files, and note those that cannot be used, with their lines."""
        place = _Place.of(_absolute(self.root / file))
        for number, line in lines_of(self.root / file):
            if not line.strip():
                continue
            try:
                cut = self._cut(_parse(line), place)
            except DataError as error:
                skipped.append(Skip.of(split, f"{self.root / file}:{number}", error))
                lines.append((file, line))
                continue
            before = writer.files
            writer.append(cut)
            if writer.files > before:
                assert cut.path is not None
                stamps.extend(self._stamp_of(cut.path) if self.trust_durations else self._read_header(cut.path)[1])

    def _cut(self, entry: dict[str, Any], manifest: _Place) -> Cut:
        """Return the utterance of a line in a manifest."""
        path = _audio_path(entry, manifest.folder)
        stated = entry.get("utt_id")
        inside = self._inside_root(path, entry["audio_filepath"], manifest.path)
        header, start, end = self._part(entry, path, manifest.path)
        name = ""
        if start or end is not None:
            last = header.samples / header.rate if end is None else end
            name = self._part_name(_without_ending(inside), start, last)
        elif not stated:
            name = _without_ending(inside)
        speaker = entry.get("speaker")
        cut = make_cut(
            str(stated or name),
            path,
            num_samples=header.samples,
            sample_rate=header.rate,
            text=clean_text(entry["text"]),
            speaker=None if speaker is None else sys.intern(str(speaker)),
            custom=None if entry.keys() <= _READ else _custom(entry),
            start=start,
            end=end,
            channels=header.channels,
        )
        if not cut.text:
            raise NoTextError("'text'", cut)
        return cut

    def _part_name(self, name: str, start: float, end: float) -> str:
        """Return the id of a part of a file from start to end in milliseconds, or in nanoseconds where another part has that one."""
        short = f"{name}-{samples_in(start, 1000):07d}-{samples_in(end, 1000):07d}"
        if self._parts.setdefault(short, (start, end)) == (start, end):
            return short
        return f"{name}-{start * 1000:014.6f}-{end * 1000:014.6f}"

    def _inside_root(self, path: str, stated: str, manifest: Path) -> str:
        """Return the path of an audio file in the data folder."""
        inside = self._inside
        if not path.startswith(inside):  # as it is written; one of both may go through a link
            path, inside = os.path.realpath(path), _with_separator(os.path.realpath(self.root))
        if not path.startswith(inside):
            fix = "there is no such file: give paths relative to the manifest"
            if is_file(Path(path)):
                common = os.path.commonpath([path, manifest])
                fix = f"set data.root={common}, and name the manifest from there: {os.path.relpath(manifest, common)}"
            raise DataError(f"audio_filepath {stated!r} leaves the data folder {self.root}\n    -> {fix}")
        return path[len(inside) :]

    def _part(self, entry: dict[str, Any], path: str, manifest: Path) -> tuple[Header, float, float | None]:
        """Return the header of the file that a line names, and start and end of the part in seconds; None: the end of the file."""
        offset, duration = _seconds(entry, "offset"), _seconds(entry, "duration")
        if offset is None:
            return self._checked_header(duration, path), 0.0, None
        if offset < 0:
            raise DataError(f"'offset' must be 0 s or more, received {offset!r}")
        if duration is not None and duration <= 0:
            raise DataError(f"'duration' must be above 0 s, received {duration!r}")
        end = offset + duration if duration is not None else self._next_offset(offset, path, manifest)
        if self.trust_durations:
            return self._checked_header(end, path), offset, None
        header = self._read_header(path)[0]
        behind = 0.0 if end is None else end - header.samples / header.rate
        whole = offset == 0 and abs(behind) <= self.duration_tolerance
        return header, offset, None if whole or 0 < behind <= self.duration_tolerance else end

    def _next_offset(self, offset: float, path: str, manifest: Path) -> float | None:
        """Return the next offset, s, that a manifest lists in a file; None: there is none."""
        if manifest not in self._offsets:
            self._offsets[manifest] = _list_offsets(manifest)
        offsets = self._offsets[manifest][path]
        following = bisect_right(offsets, offset)
        return offsets[following] if following < len(offsets) else None

    def _checked_header(self, stated: float | None, path: str) -> Header:
        """Return the header of a file, whose line states a duration in seconds or none."""
        if self.trust_durations:
            assert self.sample_rate is not None
            if stated is None or stated <= 0:
                raise DataError(f"'duration' must be above 0 s, received {stated!r}; data.trust_durations=true goes by it")
            return Header(self.sample_rate, round(stated * self.sample_rate), 1)
        header = self._read_header(path)[0]
        lasts = header.samples / header.rate
        if stated is None or -self.duration_tolerance <= lasts - stated <= self.duration_tolerance:
            return header
        more = _MP3_PADDING / header.rate if path.lower().endswith(".mp3") else 0.0
        if not -self.duration_tolerance <= lasts - stated <= self.duration_tolerance + more:
            raise DataError(f"'duration' is {stated} s, but {Path(path).name} lasts {lasts:.3f} s")
        return header

    def _read_header(self, path: str) -> tuple[Header, _Stamp]:
        known = self._headers.get(path)
        if known is None:
            stamp = self._stamp_of(path)  # before it is read: a file that changes meanwhile is read again next time
            if len(self._headers) >= _REMEMBERED:
                self._headers.clear()
            known = self._headers[path] = (read_header(Path(path), self.sample_rate), stamp)
        return known

    def _stamp_of(self, path: str) -> _Stamp:
        """Return what changes whenever a file does; of trusted manifests nothing but where it lies."""
        place = 0 if path.startswith(self._inside) else zlib.crc32(os.fsencode(os.path.realpath(path) + os.path.realpath(self.root)))
        if self.trust_durations:
            return 0, 0, 0, place
        try:
            status = os.stat(path)  # noqa: PTH116 # millions of files
        except (OSError, ValueError):
            return time.time_ns(), 0, 0, place  # like no other
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns, place


_Stamp = tuple[int, int, int, int]
"""Size of a file in bytes, when its content and its name or rights were changed last, in ns, and a checksum of its place behind a link."""


def _as_stamps(values: array[int]) -> npt.NDArray[np.int64]:
    """Return stamps as an array (F, 4)."""
    return np.frombuffer(values, dtype=np.int64).reshape(-1, 4)


class _Place(NamedTuple):
    """A manifest, and the folder that its paths are relative to, with a separator at its end."""

    path: Path
    folder: str

    @classmethod
    def of(cls, path: Path) -> _Place:
        return cls(path, _with_separator(str(path.parent)))


@dataclass(frozen=True)
class _Listing:
    """What manifests list.

    Attributes:
        spans: for each split its first utterance, and the first one behind it.
        stamps: of each audio file (F, 4), see `_Stamp`.
        skipped_lines: manifest and line of each utterance in `skipped`.
    """

    columns: Columns
    spans: Mapping[str, Sequence[int]]
    stamps: npt.NDArray[np.int64]
    skipped: Sequence[Skip]
    skipped_lines: Sequence[Sequence[str]]

    @property
    def length(self) -> int:
        """Return the number of lines with an utterance, good or bad."""
        return len(self.columns.duration) + len(self.skipped)

    def to_store(self) -> StoredTable:
        """Return it as a table cache keeps it."""
        skips = [{**vars(skip), "cut": None if skip.cut is None else asdict(skip.cut)} for skip in self.skipped]
        facts = {"spans": self.spans, "skipped": skips, "skipped_lines": self.skipped_lines}
        return StoredTable(facts, {**self.columns.as_arrays(), "stamps": self.stamps})

    @classmethod
    def stored(cls, table: StoredTable) -> _Listing:
        """Return what `to_store` made."""
        skips = [Skip(**{**each, "cut": None if each["cut"] is None else Cut(**each["cut"])}) for each in table.facts["skipped"]]
        return cls(Columns.from_arrays(table.arrays), table.facts["spans"], table.arrays["stamps"], skips, table.facts["skipped_lines"])


def _parse(line: str) -> dict[str, Any]:
    """Return the JSON object of a line, with texts under the keys that are required."""
    entry = parse_json(line)
    if not isinstance(entry, dict):
        raise DataError(f"must be a JSON object, received {line[:60]!r}")
    if type(entry.get("audio_filepath")) is type(entry.get("text")) is type(entry.get("utt_id")) is type(entry.get("speaker")) is str:
        return entry  # as most have them
    for key in _REQUIRED:
        if key not in entry:
            raise DataError(f"key '{key}' is missing; there is: {nearest(key, list(map(str, entry)))}")
        if not isinstance(entry[key], str):
            raise DataError(f"'{key}' must be a text, received {entry[key]!r:.60}")
    for key in _NAMES:
        if isinstance(entry.get(key), (bool, list, dict)):
            raise DataError(f"'{key}' must be a text or a number, received {entry[key]!r:.60}")
    return entry


def _seconds(entry: Mapping[str, Any], key: str) -> float | None:
    """Return the number of seconds under a key; None: there is none."""
    stated = entry.get(key)
    if stated is not None and (isinstance(stated, bool) or not isinstance(stated, (int, float)) or not abs(stated) <= _LONGEST):
        raise DataError(f"'{key}' must be a number of seconds, received {stated!r:.60}")
    return None if stated is None else float(stated)


def _audio_path(entry: Mapping[str, Any], folder: str) -> str:
    stated: str = entry["audio_filepath"]
    return os.path.normpath(stated if stated.startswith("/") else folder + stated)  # a Path takes ten times as long


def _custom(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in _READ and (key != "words" or isinstance(value, list))}


def _without_ending(path: str) -> str:
    return PurePath(path).with_suffix("").as_posix()


def _list_offsets(manifest: Path) -> dict[str, list[float]]:
    """Return the offsets, s, that a manifest lists in each file, in order."""
    offsets: dict[str, list[float]] = {}
    for _, line in numbered_lines(manifest):
        with suppress(DataError):  # reported when the line itself is read
            entry = _parse(line)
            if (offset := _seconds(entry, "offset")) is not None:
                insort(offsets.setdefault(_audio_path(entry, _with_separator(str(manifest.parent))), []), offset)
    return offsets


def _with_separator(folder: str) -> str:
    return folder if folder.endswith(os.sep) else f"{folder}{os.sep}"


def _absolute(path: Path) -> Path:
    """Make a path absolute and resolve `..`; links are left alone, so that a folder of the corpus may be a link to a larger disk."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _as_list(names: str | Sequence[str] | None) -> list[str]:
    return [] if names is None else [names] if isinstance(names, str) else list(names)


def _nothing_usable(path: Path, skipped: Sequence[Skip]) -> str:
    first = next((skip for skip in skipped if skip.where.startswith(f"{path}:")), None)
    if first is None:
        return f"{path} is empty: no line, no utterance\n    -> give a manifest with one JSON object a line"
    count = sum(skip.where.startswith(f"{path}:") for skip in skipped)
    return f"{path}: none of its {count} lines can be used; the first:\n  {first.where}: {first.reason}"
