"""Utterances in columns: a million of them take the memory of their texts, where an object for each would take a kilobyte more.

A `CutTable` is a sequence of `Cut` that makes each when it is asked for. What has to be known of all utterances is asked of a column; the
functions at the end do so for tables and for lists of cuts alike.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from speechtrain.data.audio import samples_in
from speechtrain.data.corpus import NO_CUSTOM, Cut
from speechtrain.errors import DataError

Places = npt.NDArray[np.int64]
"""Places of utterances in a table or a list, (N,)."""

_TOGETHER = 4096  # texts that are decoded together
_REMEMBERED = 50_000  # names of files whose number is remembered while a table is written; of more, some are listed twice
_NEAR_HALF = 1e-6  # samples within which it is `samples_in` that decides where to round to
CONTENT = ".content"
"""Ends the names of the arrays that hold texts."""
_NONE = -1  # a column of whole numbers has no other way to say that a value is missing


class FileBytes:
    """A part of a file that is read piece by piece, so that it takes no memory of the process, also not as mapped pages do.

    Args:
        path: the file; it may be deleted afterwards.
        begin: where the part begins, in bytes.
        size: bytes of the part.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path, begin: int, size: int) -> None:
        self._file = path.open("rb")
        self._begin = begin
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, span: slice) -> npt.NDArray[np.uint8]:
        start, stop, _ = span.indices(self._size)
        pieces = []
        while start < stop:
            piece = os.pread(self._file.fileno(), min(stop - start, 1 << 30), self._begin + start)
            if not piece:
                raise DataError(f"{self._file.name} was cut off while it was in use\n    -> start again")
            pieces.append(piece)
            start += len(piece)
        return np.frombuffer(b"".join(pieces), dtype=np.uint8)

    def __reduce__(self) -> tuple[Any, ...]:
        return np.array, (self[:],)  # another process may not find the file any more


class Strings(Sequence[str]):
    """Texts that lie one behind the other.

    Args:
        content: all texts in UTF-8, halves of surrogate pairs included (U,) uint8, in memory or in a file.
        bounds: where each begins, and where the last one ends (N + 1,) int64.
    """

    def __init__(self, content: npt.NDArray[np.uint8] | FileBytes, bounds: npt.NDArray[np.int64]) -> None:
        self.content = content
        self.bounds = bounds

    @classmethod
    def of(cls, texts: Iterable[str]) -> Strings:
        """Store texts one behind the other in memory."""
        content, bounds, left = bytearray(), array("q", [0]), iter(texts)
        while some := list(itertools.islice(left, _TOGETHER)):
            _add(content, bounds, some)
        return cls(np.frombuffer(content, dtype=np.uint8), np.frombuffer(bounds, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, index: Any) -> Any:  # a number or a slice
        if isinstance(index, slice):
            return list(self.at(np.arange(len(self))[index]))
        place = range(len(self))[index]
        return self.content[self.bounds[place] : self.bounds[place + 1]].tobytes().decode(errors="surrogatepass")

    def __iter__(self) -> Iterator[str]:
        return self.at(np.arange(len(self)))

    def at(self, places: Places) -> Iterator[str]:
        """Yield the texts at some places, in their order."""
        for begin in range(0, len(places), _TOGETHER):
            some = places[begin : begin + _TOGETHER]
            first, last = int(some.min()), int(some.max())
            if last - first > 4 * _TOGETHER:
                yield from map(self.__getitem__, some.tolist())
                continue
            low = self.bounds[first]
            content = self.content[low : self.bounds[last + 1]].tobytes()
            spans = zip((self.bounds[some] - low).tolist(), (self.bounds[some + 1] - low).tolist(), strict=True)
            if content.isascii():
                text = content.decode()
                yield from [text[start:end] for start, end in spans]
            else:
                yield from [content[start:end].decode(errors="surrogatepass") for start, end in spans]


class Chosen(Sequence[str]):
    """Some of many texts, in an order of their own, without a copy of them."""

    def __init__(self, strings: Strings, places: Places) -> None:
        self._strings = strings
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return Chosen(self._strings, self._places[index])
        string: str = self._strings[int(self._places[index])]
        return string

    def __iter__(self) -> Iterator[str]:
        return self._strings.at(self._places)


@dataclass(frozen=True, eq=False)
class Columns:
    """The columns of a table of utterances, see `Cut`; -1 stands for None.

    Attributes:
        customs: what else is known, as JSON; empty: nothing.
        files: names of the recordings' files.
        file: number of each utterance's file in `files` (N,).
        speakers: names of the speakers.
        speaker: number of each utterance's speaker in `speakers` (N,).
    """

    ids: Strings
    texts: Strings
    customs: Strings
    files: Strings
    speakers: Strings
    file: npt.NDArray[np.int32]
    speaker: npt.NDArray[np.int32]
    duration: npt.NDArray[np.float64]
    start: npt.NDArray[np.float64]
    sample_rate: npt.NDArray[np.int32]
    channel: npt.NDArray[np.int32]
    channels: npt.NDArray[np.int32]

    @cached_property
    def speaker_names(self) -> list[str]:
        """Return the names of the speakers as one object each."""
        return list(self.speakers)

    def as_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return all columns as arrays by name."""
        arrays: dict[str, npt.NDArray[Any]] = {}
        for each in fields(self):
            column = getattr(self, each.name)
            if isinstance(column, Strings):
                arrays |= {f"{each.name}{CONTENT}": column.content[:], f"{each.name}.bounds": column.bounds}
            else:
                arrays[each.name] = column
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Columns:
        """Make columns of what `as_arrays` returned, of which the content of texts may lie in a file.

        Raises:
            KeyError: a column is missing.
        """

        def strings(name: str) -> Strings:
            return Strings(arrays[f"{name}{CONTENT}"], arrays[f"{name}.bounds"])

        return cls(
            *(strings("ids"), strings("texts"), strings("customs"), strings("files"), strings("speakers")),
            *(arrays[name] for name in ("file", "speaker", "duration", "start", "sample_rate", "channel", "channels")),
        )


class CutTable(Sequence[Cut]):
    """A sequence of utterances that lie in columns; a `Cut` of it is made anew at each access, and changing it changes nothing here.

    Args:
        columns: the columns of these utterances, and perhaps of others.
        places: which of them these are, in which order (N,); None: all.
    """

    def __init__(self, columns: Columns, places: Places | None = None) -> None:
        self.columns = columns
        self.places = np.arange(len(columns.duration)) if places is None else places

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Cut: ...
    @overload
    def __getitem__(self, index: slice) -> CutTable: ...
    def __getitem__(self, index: int | slice) -> Cut | CutTable:
        if isinstance(index, slice):
            return CutTable(self.columns, self.places[index])
        return self._cut(int(self.places[index]))

    def __iter__(self) -> Iterator[Cut]:
        return map(self._cut, self.places.tolist())

    def _cut(self, place: int) -> Cut:
        columns = self.columns
        file, speaker, channel = int(columns.file[place]), int(columns.speaker[place]), int(columns.channel[place])
        custom = columns.customs[place]
        return Cut(
            columns.ids[place],
            columns.texts[place],
            float(columns.duration[place]),
            int(columns.sample_rate[place]),
            None if speaker == _NONE else columns.speaker_names[speaker],
            None if file == _NONE else columns.files[file],
            float(columns.start[place]),
            None if channel == _NONE else channel,
            custom=json.loads(custom) if custom else NO_CUSTOM,
            channels=int(columns.channels[place]),
        )


class TableWriter:
    """Writes a table, utterance by utterance."""

    def __init__(self) -> None:
        self._strings = {name: (bytearray(), array("q", [0])) for name in ("ids", "texts", "customs", "files", "speakers")}
        self._numbers = {name: array("i") for name in ("file", "speaker", "sample_rate", "channel", "channels")}
        self._seconds = {name: array("d") for name in ("duration", "start")}
        self._speakers: dict[str | None, int] = {None: _NONE}
        self._files: dict[str, int] = {}
        self._waiting: list[Cut] = []
        self._written = 0
        self.files = 0
        """Names of files that were written."""

    def __len__(self) -> int:
        return self._written + len(self._waiting)

    def append(self, cut: Cut) -> None:
        """Write an utterance that has no `recording`, and whose `custom` is what JSON can hold."""
        path, speaker = cut.path, cut.speaker
        number = _NONE
        if path is not None:
            known = self._files.get(path)
            number = self._new_file(path) if known is None else known
        self._numbers["file"].append(number)
        if speaker not in self._speakers:
            assert speaker is not None
            self._speakers[speaker] = len(self._speakers) - 1
            self._write("speakers", [speaker])
        self._waiting.append(cut)
        if len(self._waiting) == _TOGETHER:
            self._write_waiting()

    def columns(self) -> Columns:
        """Return what was written; nothing can be written afterwards."""
        self._write_waiting()
        arrays: dict[str, npt.NDArray[Any]] = {}
        for name, (content, bounds) in self._strings.items():
            arrays[f"{name}{CONTENT}"] = np.frombuffer(content, dtype=np.uint8)
            arrays[f"{name}.bounds"] = np.frombuffer(bounds, dtype=np.int64)
        arrays |= {name: np.frombuffer(column, dtype=np.int32) for name, column in self._numbers.items()}
        arrays |= {name: np.frombuffer(column, dtype=np.float64) for name, column in self._seconds.items()}
        return Columns.from_arrays(arrays)

    def _write_waiting(self) -> None:
        """Write all columns but the one of files."""
        cuts, numbers, seconds = self._waiting, self._numbers, self._seconds
        self._write("ids", [cut.id for cut in cuts])
        self._write("texts", [cut.text for cut in cuts])
        self._write("customs", [json.dumps(cut.custom, ensure_ascii=False) if cut.custom else "" for cut in cuts])
        numbers["speaker"].extend([self._speakers[cut.speaker] for cut in cuts])
        numbers["sample_rate"].extend([cut.sample_rate for cut in cuts])
        numbers["channel"].extend([_NONE if cut.channel is None else cut.channel for cut in cuts])
        numbers["channels"].extend([cut.channels for cut in cuts])
        seconds["duration"].extend([cut.duration for cut in cuts])
        seconds["start"].extend([cut.start for cut in cuts])
        self._written += len(cuts)
        self._waiting = []

    def _write(self, name: str, texts: Sequence[str]) -> None:
        _add(*self._strings[name], texts)

    def _new_file(self, path: str) -> int:
        self._write("files", [path])
        if len(self._files) >= _REMEMBERED:
            self._files.clear()
        self._files[path] = self.files
        self.files += 1
        return self._files[path]


def _add(content: bytearray, bounds: array[int], texts: Sequence[str]) -> None:
    """Put texts behind those that are there."""
    whole, begin = "".join(texts), len(content)
    is_ascii = whole.isascii()
    content += _encoded(whole) if is_ascii else b"".join(map(_encoded, texts))
    sizes = map(len, texts) if is_ascii else (len(_encoded(text)) for text in texts)
    bounds.extend(itertools.islice(itertools.accumulate(sizes, initial=begin), 1, None))


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


class CutsById(Mapping[str, Cut]):
    """Finds the utterances of a table by their ids, with 12 bytes for each."""

    def __init__(self, cuts: CutTable) -> None:
        self._cuts = cuts
        sums = np.fromiter((zlib.crc32(_encoded(each)) for each in ids_of(cuts)), dtype=np.uint32, count=len(cuts))
        self._order = np.argsort(sums, kind="stable")
        self._sums = sums[self._order]

    def __len__(self) -> int:
        return len(self._cuts)

    def __iter__(self) -> Iterator[str]:
        return iter(ids_of(self._cuts))

    def __getitem__(self, name: str) -> Cut:
        return self._cuts[self.place_of(name)]

    def place_of(self, name: str) -> int:
        """Return the place of an utterance in the table.

        Raises:
            KeyError: there is none of this id.
        """
        wanted = np.uint32(zlib.crc32(_encoded(name)))
        first = int(np.searchsorted(self._sums, wanted))
        for index in itertools.takewhile(lambda index: self._sums[index] == wanted, range(first, len(self._sums))):
            place = int(self._order[index])
            if self._cuts.columns.ids[int(self._cuts.places[place])] == name:
                return place
        raise KeyError(name)


def by_id(cuts: Sequence[Cut]) -> Mapping[str, Cut]:
    """Return utterances by their ids."""
    return CutsById(cuts) if isinstance(cuts, CutTable) else {cut.id: cut for cut in cuts}


def ids_of(cuts: Sequence[Cut]) -> Sequence[str]:
    """Return the id of each utterance."""
    return Chosen(cuts.columns.ids, cuts.places) if isinstance(cuts, CutTable) else [cut.id for cut in cuts]


def texts_of(cuts: Sequence[Cut]) -> Sequence[str]:
    """Return the text of each utterance."""
    return Chosen(cuts.columns.texts, cuts.places) if isinstance(cuts, CutTable) else [cut.text for cut in cuts]


def durations_of(cuts: Sequence[Cut]) -> npt.NDArray[np.float64]:
    """Return the duration of each utterance in seconds (N,)."""
    if isinstance(cuts, CutTable):
        return cuts.columns.duration[cuts.places]
    return np.array([cut.duration for cut in cuts], dtype=np.float64)


def seconds(cuts: Sequence[Cut]) -> float:
    """Return the total duration of utterances in seconds."""
    return math.fsum(durations_of(cuts).tolist())


def speakers_of(cuts: Sequence[Cut]) -> Sequence[str | None]:
    """Return the speaker of each utterance."""
    if isinstance(cuts, CutTable):
        names = [*cuts.columns.speaker_names, None]
        return [names[number] for number in cuts.columns.speaker[cuts.places].tolist()]
    return [cut.speaker for cut in cuts]


def distinct_speakers(cuts: Sequence[Cut]) -> set[str | None]:
    """Return the speakers of all utterances, None among them if one is not known."""
    if isinstance(cuts, CutTable):
        names = [*cuts.columns.speaker_names, None]
        return {names[number] for number in np.unique(cuts.columns.speaker[cuts.places]).tolist()}
    return {cut.speaker for cut in cuts}


def samples_at(cuts: Sequence[Cut], rate: int) -> npt.NDArray[np.int64]:
    """Return the number of samples at a rate in Hz of each utterance (N,), see `Cut.samples_at`."""
    samples = durations_of(cuts) * rate
    counts = np.floor(samples + 0.5).astype(np.int64)
    for place in np.flatnonzero(np.abs(samples - np.floor(samples) - 0.5) < _NEAR_HALF).tolist():
        counts[place] = samples_in(float(durations_of(cuts[place : place + 1])[0]), rate)
    return counts


def has_custom(cuts: Sequence[Cut]) -> bool:
    """Return whether more is known of any utterance than a `Cut` has attributes for."""
    if isinstance(cuts, CutTable):
        bounds = cuts.columns.customs.bounds
        return bool(np.any(bounds[cuts.places + 1] > bounds[cuts.places]))
    return any(cut.custom for cut in cuts)


def take(cuts: Sequence[Cut], places: Places) -> Sequence[Cut]:
    """Return the utterances at some places, in their order."""
    if isinstance(cuts, CutTable):
        return CutTable(cuts.columns, cuts.places[places])
    return [cuts[place] for place in places.tolist()]


def without(cuts: Sequence[Cut], places: Iterable[int]) -> Sequence[Cut]:
    """Return the utterances that are not at some places."""
    kept = np.ones(len(cuts), dtype=bool)
    kept[list(places)] = False
    return cuts if kept.all() else take(cuts, np.flatnonzero(kept))


def joined(first: Sequence[Cut], second: Sequence[Cut]) -> Sequence[Cut]:
    """Return the utterances of two lists as one."""
    if not len(second):
        return first
    if isinstance(first, CutTable) and isinstance(second, CutTable) and first.columns is second.columns:
        return CutTable(first.columns, np.concatenate([first.places, second.places]))
    return [*first, *second]


def spoken(cuts: Sequence[Cut]) -> Sequence[Cut]:
    """Return the utterances that have a text."""
    if isinstance(cuts, CutTable):
        bounds = cuts.columns.texts.bounds
        return take(cuts, np.flatnonzero(bounds[cuts.places + 1] > bounds[cuts.places]))
    return [cut for cut in cuts if cut.text]


def mixed_down(cuts: Sequence[Cut]) -> Sequence[str]:
    """Return the ids of the utterances of which the mean of several channels is heard."""
    if isinstance(cuts, CutTable):
        columns = cuts.columns
        is_mixed = (columns.channels[cuts.places] > 1) & (columns.channel[cuts.places] == _NONE)
        return ids_of(take(cuts, np.flatnonzero(is_mixed)))
    return [cut.id for cut in cuts if cut.channels > 1 and cut.channel is None]


def with_texts(cuts: Sequence[Cut], change: Callable[[str], str], known: dict[Columns, Columns]) -> Sequence[Cut]:
    """Change the text of each utterance.

    Args:
        cuts: the utterances; those of a list are changed themselves.
        change: makes a new text of an old one.
        known: columns with changed texts, by those that they were made of; what is made is added.
    """
    if not isinstance(cuts, CutTable):
        for cut in cuts:
            cut.text = change(cut.text)
        return cuts
    columns = cuts.columns
    if columns not in known:
        texts = Strings.of(map(change, columns.texts))
        same = np.array_equal(texts.bounds, columns.texts.bounds) and np.array_equal(texts.content[:], columns.texts.content[:])
        known[columns] = columns if same else replace(columns, texts=texts)
    return CutTable(known[columns], cuts.places)


def with_channel(cuts: Sequence[Cut], channel: int) -> Sequence[Cut]:
    """Set the channel of each utterance for which none is named."""
    if isinstance(cuts, CutTable):
        columns = replace(cuts.columns, channel=np.where(cuts.columns.channel == _NONE, np.int32(channel), cuts.columns.channel))
        return CutTable(columns, cuts.places)
    for cut in cuts:
        if cut.channel is None:
            cut.channel = channel
    return cuts
