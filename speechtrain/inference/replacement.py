"""Replacement of the files that an earlier call of a command wrote, and that nobody has changed since, by those of the next call.

People correct TextGrids in Praat and complete model cards: a list of names and checksums in the folder tells whose a file is.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from speechtrain.files import is_file, write_text

_SHOWN = 10
"""Most files that are named in a message."""


@dataclass(frozen=True)
class Replacement:
    """Plans which files of a folder are replaced by those of the folder `new`, on the same disk, which has no folders in it.

    Attributes:
        folder: the folder.
        new: the folder with the new files.
        list_file: the file with the names and checksums of what was written.
        own: names and checksums of the files there that an earlier call wrote, and nobody has changed since.
        others: names of files that are there in place of new ones or of listed ones, and are not as an earlier call wrote them.
        kept: names and checksums of the files of earlier calls that stay beside the new ones.
    """

    folder: Path
    new: Path
    list_file: Path
    own: Mapping[str, Collection[str]]
    others: Sequence[str]
    kept: Mapping[str, Collection[str]] = field(default_factory=dict)

    @classmethod
    def plan(cls, folder: Path, new: Path, list_name: str, *, kept: str = "") -> Replacement:
        """Compare the files of a folder with its list.

        Args:
            folder: the folder.
            new: the folder with the new files.
            list_name: name of the list.
            kept: ending of the files of earlier calls that stay where there is no new one of their name; empty: none does.

        Raises:
            OSError: a file cannot be read.
        """
        list_file = folder / list_name
        listed, names = _listed(list_file), _names(new)
        stay = {name: sums for name, sums in listed.items() if kept and name.endswith(kept) and name not in names}
        listed = {name: sums for name, sums in listed.items() if name not in stay}
        there = {name for name in {*listed, *names} if os.path.lexists(folder / name)}
        own = {name: listed[name] for name in sorted(there & set(listed)) if _is_unchanged(folder / name, listed[name], list_file)}
        return cls(folder, new, list_file, own, sorted(there - set(own)), stay)

    def carry_out(self) -> None:
        """Replace the files that are as they were written, remove those that there are no new ones of, and leave the others.

        The list names old and new files meanwhile, so that the next call knows them whatever ends this one. After an error the earlier
        files are back.

        Raises:
            OSError: the folder cannot be written.
        """
        written = [name for name in _names(self.new) if name not in self.others]
        stay = _rows(self.kept)
        before = [*stay, *_rows(self.own)]
        after = [*stay, *((name, checksum_of(self.new / name)) for name in written)]
        _write_list(self.list_file, [*before, *after])
        earlier = Path(tempfile.mkdtemp(dir=self.folder, prefix=".earlier-"))
        moved: list[tuple[Path, Path]] = []
        try:
            for name in sorted({*self.own, *written}):
                moves = [(self.folder / name, earlier / name)] if name in self.own else []
                moves += [(self.new / name, self.folder / name)] if name in written else []
                for source, target in moves:
                    source.replace(target)
                    moved.append((source, target))
        except BaseException:
            for source, target in reversed(moved):
                target.replace(source)
            earlier.rmdir()
            raise
        shutil.rmtree(earlier)
        _write_list(self.list_file, after)


def enumerated(names: Sequence[str]) -> str:
    """Return names for a message, the first ten of many."""
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def checksum(content: bytes) -> str:
    """Return the SHA-256 of some bytes in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def checksum_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits, without holding it in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rows(checksums: Mapping[str, Collection[str]]) -> list[tuple[str, str]]:
    return [(name, each) for name, those in checksums.items() for each in sorted(those)]


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _write_list(list_file: Path, rows: Sequence[tuple[str, str]]) -> None:
    """Write names and checksums, in the form that `sha256sum --check` reads."""
    write_text(list_file, "".join(f"{each}  {name}\n" for name, each in rows))


def _listed(list_file: Path) -> dict[str, set[str]]:
    """Return the checksums with which earlier calls wrote files, by name; of earlier versions there are none."""
    if not is_file(list_file):
        return {}
    listed: dict[str, set[str]] = {}
    for line in list_file.read_text(encoding="utf-8", errors="replace").splitlines():
        found, _, name = line.rpartition("  ")
        if name and name == Path(name).name:
            listed.setdefault(name, set()).update([found] if found else [])
    return listed


def _is_unchanged(path: Path, checksums: Collection[str], list_file: Path) -> bool:
    """Return whether a file is as it was written; one that an earlier version listed is if it is not newer than the list."""
    if not is_file(path):
        return False
    if checksums:
        return checksum_of(path) in checksums
    return path.stat().st_mtime_ns <= list_file.stat().st_mtime_ns
