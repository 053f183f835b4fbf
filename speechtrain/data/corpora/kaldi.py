"""`data=kaldi`: corpora in Kaldi's data folders."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from speechtrain.data.corpora.listed import Entry, ListedCorpus
from speechtrain.data.text.lines import lines_of
from speechtrain.errors import DataError
from speechtrain.files import is_file

_Table = Mapping[str, tuple[int, str]]
"""The number of each line, for messages, and its value, by key."""


class _Tables(NamedTuple):
    """The files of a data folder."""

    recordings: _Table
    texts: _Table
    speakers: _Table
    channels: _Table


class Kaldi(ListedCorpus):
    """Kaldi's data folders: `wav.scp`, `text`, and if they are there `utt2spk`, `segments` and `reco2file_and_channel`.

    A fifth field of `segments` is the channel.

    Args:
        root: folder above the data folders, or one of them; relative paths in `wav.scp` are relative to it.
        train, val, test: data folders in `root`; None takes them from `train` as `split` says.
        split: `by`, `val`, `test`, `seed`, as `split_cuts` takes them.
    """

    title = "Kaldi data"

    def __init__(self, root: str, train: str, val: str | None, test: str | None, split: dict[str, Any]) -> None:
        super().__init__(root, split=split)
        self._parts = {name: [part] if part is not None else [] for name, part in (("train", train), ("val", val), ("test", test))}

    @property
    def parts(self) -> Mapping[str, Sequence[str]]:
        """Return the data folders of each split."""
        return self._parts

    def folder(self, part: str) -> Path | None:
        """Return the data folder, if it holds `wav.scp`."""
        return self.root / part if is_file(self.root / part / "wav.scp") else None

    def entries(self, part: str, folder: Path) -> Iterator[Entry]:  # noqa: ARG002
        """List the lines of `segments`, or of `wav.scp` where there is none, with their texts."""
        names = ("wav.scp", "text", "utt2spk", "reco2file_and_channel")
        tables = _Tables(*(_table(folder / name) if name in names[:2] or os.path.lexists(folder / name) else {} for name in names))
        if os.path.lexists(folder / "segments"):
            for name, (number, line) in _table(folder / "segments").items():
                yield self._entry(name, f"{folder / 'segments'}:{number}", line.split(), folder, tables)
        else:
            for name, (number, _) in tables.recordings.items():
                yield self._entry(name, f"{folder / 'wav.scp'}:{number}", [name], folder, tables)

    def _entry(self, name: str, where: str, fields: list[str], folder: Path, tables: _Tables) -> Entry:
        problem, start, end = None, 0.0, None
        recording = fields[0] if fields else ""
        source = tables.recordings.get(recording, (0, ""))[1]
        channel, bad_channel = _channel(tables.channels.get(recording), folder / "reco2file_and_channel")
        if len(fields) == 4:
            *fields, stated = fields
            channel, bad_channel = int(stated) if stated in _NUMBERS else None, None
            if channel is None:
                bad_channel = f"the fifth field is a channel, 0 or 1, received {stated[:60]!r}"
        if len(fields) == 3:
            try:
                start, end = float(fields[1]), float(fields[2])
            except ValueError:
                problem = f"must be 'utterance recording start end' with times in seconds, received {' '.join([name, *fields])[:60]!r}"
            end = None if end is not None and end < 0 else end  # -1: to the end of the recording
        elif len(fields) != 1:
            problem = f"must be 'utterance recording start end', and a channel if need be, received {' '.join([name, *fields])[:60]!r}"
        if problem is None and not source:
            problem = f"recording '{recording}' is not in wav.scp"
        elif problem is None and source.endswith("|"):
            problem = f"wav.scp gives a command, which is not run: {source[:60]!r}; write its output to a file and name that"
        elif problem is None and name not in tables.texts:
            problem = f"'{name}' is not in text"
        speaker = tables.speakers.get(name, (0, ""))[1] or None
        text = tables.texts.get(name, (0, ""))[1]
        return Entry(name, self.root / source, text, speaker, start, end, channel, where, problem=problem or bad_channel)


def _channel(row: tuple[int, str] | None, path: Path) -> tuple[int | None, str | None]:
    """Return the channel, counted from 0, that a line `RECORDING FILE CHANNEL` names, and what is wrong with the line."""
    if row is None:
        return None, None
    number, value = row
    letter = value.split()[-1] if value.split() else ""
    if letter in _CHANNELS:
        return _CHANNELS.index(letter) // 2, None
    return None, f"{path}:{number}: must be 'recording file channel' with a channel of A, B, 1 or 2, received {value[:60]!r}"


_CHANNELS = ("A", "1", "B", "2")
"""Names of the first and the second channel, two of each."""
_NUMBERS = ("0", "1")
"""Numbers of the channels in `segments`, which `extract-segments` counts from 0."""


def _table(path: Path) -> dict[str, tuple[int, str]]:
    """Read lines `KEY VALUE` into a table.

    Raises:
        DataError: the file cannot be read, or has a key twice.
    """
    table: dict[str, tuple[int, str]] = {}
    for number, line in lines_of(path):
        if not line.strip():
            continue
        name, *rest = re.split("[ \t]+", line.strip(), maxsplit=1)
        if name in table:
            raise DataError(f"{path}:{number}: '{name}' is already in {path}:{table[name][0]}\n    -> each once")
        table[name] = (number, rest[0] if rest else "")
    return table
