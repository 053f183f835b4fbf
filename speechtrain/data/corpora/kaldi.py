"""`data=kaldi`: corpora in Kaldi's data folders."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from speechtrain.data.corpora.listed import Entry, ListedCorpus
from speechtrain.data.text.lines import numbered_lines
from speechtrain.errors import DataError
from speechtrain.files import is_file


class Kaldi(ListedCorpus):
    """Kaldi's data folders: `wav.scp`, `text`, and if they are there `utt2spk` and `segments`.

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
        recordings = _table(folder / "wav.scp")
        texts = _table(folder / "text")
        speakers = _table(folder / "utt2spk") if os.path.lexists(folder / "utt2spk") else {}
        if os.path.lexists(folder / "segments"):
            for name, (where, line) in _table(folder / "segments").items():
                yield self._entry(name, where, line.split(), recordings, texts, speakers)
        else:
            for name, (where, _) in recordings.items():
                yield self._entry(name, where, [name], recordings, texts, speakers)

    def _entry(
        self,
        name: str,
        where: str,
        fields: list[str],
        recordings: Mapping[str, tuple[str, str]],
        texts: Mapping[str, tuple[str, str]],
        speakers: Mapping[str, tuple[str, str]],
    ) -> Entry:
        problem, start, end = None, 0.0, None
        source = recordings.get(fields[0] if fields else "", ("", ""))[1]
        if len(fields) == 3:
            try:
                start, end = float(fields[1]), float(fields[2])
            except ValueError:
                problem = f"must be 'utterance recording start end' with times in seconds, received {' '.join([name, *fields])[:60]!r}"
            end = None if end is not None and end < 0 else end  # -1: to the end of the recording
        elif len(fields) != 1:
            problem = f"must be 'utterance recording start end', received {' '.join([name, *fields])[:60]!r}"
        if problem is None and not source:
            problem = f"recording '{fields[0]}' is not in wav.scp"
        elif problem is None and source.endswith("|"):
            problem = f"wav.scp gives a command, which is not run: {source[:60]!r}; write its output to a file and name that"
        elif problem is None and name not in texts:
            problem = f"'{name}' is not in text"
        speaker = speakers.get(name, ("", ""))[1] or None
        return Entry(name, self.root / source, texts.get(name, ("", ""))[1], speaker, start, end, where, problem=problem)


def _table(path: Path) -> dict[str, tuple[str, str]]:
    """Read lines `KEY VALUE` into a dictionary of file and line number, for messages, and value.

    Raises:
        DataError: the file cannot be read, or has a key twice.
    """
    table: dict[str, tuple[str, str]] = {}
    for where, line in numbered_lines(path):
        name, *rest = re.split("[ \t]+", line.strip(), maxsplit=1)
        if name in table:
            raise DataError(f"{where}: '{name}' is already in {table[name][0]}\n    -> each once")
        table[name] = (where, rest[0] if rest else "")
    return table
