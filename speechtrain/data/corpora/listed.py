"""Corpora that lie on disk as audio files with lists of utterances: everything that reading them has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from speechtrain.data.corpora.download import Archive, fetch
from speechtrain.data.corpus import SPLITS, Corpus, Cut, NoTextError, Skip, clean_text, make_cut, read_header
from speechtrain.data.cut_table import CutTable, TableWriter
from speechtrain.data.splits import complete_splits
from speechtrain.errors import DataError
from speechtrain.files import user_path


@dataclass(frozen=True)
class Entry:
    """An utterance as a corpus lists it.

    Attributes:
        path: audio file.
        start, end: s in the file; `end=None`: to its end.
        channel: channel of the file, counted from 0; None: the mean of all.
        where: file and line of the list, for messages; empty: the audio file is named instead.
        custom: what else is known; see `Cut`.
        problem: why it cannot be used; None: as far as the list tells, it can.
    """

    id: str
    path: Path
    text: str
    speaker: str | None = None
    start: float = 0.0
    end: float | None = None
    channel: int | None = None
    where: str = ""
    custom: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None


class ListedCorpus(ABC):
    """A corpus of several parts, each with a list of its utterances.

    Args:
        root: folder of the corpus.
        download: fetch what is missing there.
        mirror: address to fetch from instead of the corpus' own, without the archive's name.
        split: `by`, `val`, `test`, `seed`, as `split_cuts` takes them, for splits that the corpus has no list of.
    """

    title: ClassVar[str]
    """Name of the corpus, for messages."""
    by_hand: ClassVar[str | None] = None
    """Where a person gets it, if no program may fetch it."""

    def __init__(self, root: str, *, download: bool = False, mirror: str | None = None, split: dict[str, Any] | None = None) -> None:
        self.root = user_path(root).absolute()
        self.download = download
        self.mirror = mirror
        self.split = split or {"by": "utterance", "val": 0, "test": 0, "seed": 0}

    @property
    def parts(self) -> Mapping[str, Sequence[str]]:
        """Return the corpus' own parts that make up each split; a split without any is taken from train."""
        return {"train": ["all"], "val": [], "test": []}

    @abstractmethod
    def folder(self, part: str) -> Path | None:
        """Find the folder of a part; None: it is not there."""

    @abstractmethod
    def entries(self, part: str, folder: Path) -> Iterator[Entry]:
        """List the utterances of a part that lies in a folder."""

    def archives(self, part: str) -> Sequence[Archive]:  # noqa: ARG002
        """Return the archives to fetch a part from; empty: it cannot be fetched."""
        return ()

    def load(self, limit: int | None) -> Corpus:
        """List every part and read the header of each file.

        Raises:
            DataError: a part is not there, or none of its utterances can be used.
        """
        skipped: list[Skip] = []
        writers = {name: TableWriter() for name in SPLITS}
        for split, parts in self.parts.items():
            for part in parts:
                folder = self._find_or_fetch(part)
                before, usable = len(skipped), len(writers[split])
                for entry in self.entries(part, folder):
                    if (cut := _cut_or_skip(entry, split, skipped)) is not None:
                        writers[split].append(cut)
                if len(writers[split]) == usable and not any(skip.cut for skip in skipped[before:]):
                    first = f"; the first: {skipped[before].where}: {skipped[before].reason}" if skipped[before:] else ""
                    raise DataError(f"{folder}: no utterance of '{part}' can be used{first}\n    -> set data.root to {self.title}")
        cuts = {name: CutTable(writer.columns()) for name, writer in writers.items()}
        missing = [part for part in ("val", "test") if not self.parts[part]]
        return Corpus(complete_splits(cuts, missing, self.split, limit), skipped)

    def _find_or_fetch(self, part: str) -> Path:
        folder = self.folder(part)
        if folder is None and self.download:
            for archive in self.archives(part):
                fetch(archive if self.mirror is None else archive.at(self.mirror), self.root)
            folder = self.folder(part)
        if folder is None:
            what = f"'{part}' of {self.title}" if part != "all" else self.title
            fix = f"set data.root to the folder of {self.title}"
            if self.by_hand is not None:
                fix += f"; it may not be fetched by a program: {self.by_hand}"
            elif self.archives(part):
                size = sum(archive.size for archive in self.archives(part))
                fix += f", or data.download=true to fetch it there ({size:g} GB)"
            raise DataError(f"{self.root}: {what} is not there\n    -> {fix}")
        return folder


def _cut_or_skip(entry: Entry, split: str, skipped: list[Skip]) -> Cut | None:
    try:
        if entry.problem is not None:
            raise DataError(entry.problem)
        rate, samples, channels = read_header(entry.path, None)
        cut = make_cut(
            entry.id,
            entry.path,
            num_samples=samples,
            sample_rate=rate,
            text=clean_text(entry.text),
            speaker=entry.speaker,
            custom=dict(entry.custom),
            start=entry.start,
            end=entry.end,
            channel=entry.channel,
            channels=channels,
        )
        if not cut.text:
            raise NoTextError("its text", cut)
    except DataError as error:
        skipped.append(Skip.of(split, entry.where or str(entry.path), error))
        return None
    return cut
