"""Corpora that lie on disk as audio with lists: what reading them has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from speechtrain.data.corpora.download import Archive, fetch
from speechtrain.data.corpus import SPLITS, Corpus, Cut, Skip, clean_text, make_cut, read_header
from speechtrain.data.splits import fill_splits, refuse_repeated_ids, spread
from speechtrain.errors import DataError


@dataclass(frozen=True)
class Entry:
    """An utterance as a corpus lists it.

    Attributes:
        where: the list's file and line, or the audio file, for messages.
        start, end: s in the file; `end=None`: to its end.
        problem: why it cannot be used; None: as far as the list tells, it can.
    """

    id: str
    path: Path
    text: str
    speaker: str | None = None
    start: float = 0.0
    end: float | None = None
    where: str = ""
    custom: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None


class Listed(ABC):
    """A corpus that tells its utterances part by part.

    Args:
        root: folder of the corpus.
        download: fetch what is missing there.
        mirror: address to fetch from instead of the corpus' own, without the archive's name.
        split: `by`, `val`, `test`, `seed`, as `split_cuts` takes them, for what the corpus has no list of.
    """

    title: ClassVar[str]
    by_hand: ClassVar[str | None] = None
    """Where it can be had, if no program may fetch it."""

    def __init__(self, root: str, *, download: bool = False, mirror: str | None = None, split: dict[str, Any] | None = None) -> None:
        self.root = Path(root).expanduser().absolute()
        self.download = download
        self.mirror = mirror
        self.split = split or {"by": "utterance", "val": 0, "test": 0, "seed": 0}

    @property
    def parts(self) -> Mapping[str, Sequence[str]]:
        """What each split is made of, by the corpus' own names; empty: to be taken from train."""
        return {"train": ["all"], "val": [], "test": []}

    @abstractmethod
    def folder(self, part: str) -> Path | None:
        """Where a part lies; None: it is not there."""

    @abstractmethod
    def entries(self, part: str, folder: Path) -> Iterator[Entry]:
        """The utterances of a part."""

    def archives(self, part: str) -> Sequence[Archive]:  # noqa: ARG002
        """What a part is fetched as."""
        return ()

    def load(self, limit: int | None) -> Corpus:
        """List every part and read the header of each file.

        Raises:
            DataError: a part is not there, or none of its utterances can be used.
        """
        skipped: list[Skip] = []
        cuts: dict[str, list[Cut]] = {name: [] for name in SPLITS}
        for split, parts in self.parts.items():
            for part in parts:
                before = len(skipped)
                found = [cut for entry in self.entries(part, self._found(part)) if (cut := _usable(entry, split, skipped)) is not None]
                if not found:
                    first = f"; the first: {skipped[before].where}: {skipped[before].reason}" if skipped[before:] else ""
                    raise DataError(
                        f"{self._found(part)}: no utterance of '{part}' can be used{first}\n    -> set data.root to {self.title}"
                    )
                cuts[split] += found
        cuts = fill_splits(cuts, [part for part in ("val", "test") if not self.parts[part]], self.split)
        refuse_repeated_ids(cuts)
        return Corpus({name: spread(cuts[name], limit) for name in SPLITS}, skipped)

    def _found(self, part: str) -> Path:
        found = self.folder(part)
        if found is None and self.download:
            for archive in self.archives(part):
                name = archive.url.rsplit("/", 1)[-1]
                fetch(
                    archive if self.mirror is None else Archive(f"{self.mirror.rstrip('/')}/{name}", archive.digest, archive.size),
                    self.root,
                )
            found = self.folder(part)
        if found is None:
            what = f"'{part}' of {self.title}" if part != "all" else self.title
            fix = f"set data.root to the folder of {self.title}"
            if self.by_hand is not None:
                fix += f"; it may not be fetched by a program: {self.by_hand}"
            elif self.archives(part):
                size = sum(archive.size for archive in self.archives(part))
                fix += f", or data.download=true to fetch it there ({size:g} GB)"
            raise DataError(f"{self.root}: {what} is not there\n    -> {fix}")
        return found


def _usable(entry: Entry, split: str, skipped: list[Skip]) -> Cut | None:
    try:
        if entry.problem is not None:
            raise DataError(entry.problem)
        if not (text := clean_text(entry.text)):
            raise DataError("its text is empty")
        rate, samples = read_header(entry.path, None)
        return make_cut(
            entry.id,
            entry.path,
            num_samples=samples,
            sample_rate=rate,
            text=text,
            speaker=entry.speaker,
            custom=dict(entry.custom),
            start=entry.start,
            end=entry.end,
        )
    except DataError as error:
        skipped.append(Skip(split, entry.where or str(entry.path), str(error)))
        return None


def lines_of(path: Path) -> Iterator[tuple[str, str]]:
    """(file and line number, line) of a text file, without empty ones.

    Raises:
        DataError: it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})\n    -> a text file in UTF-8 is needed") from None
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield f"{path}:{number}", line
