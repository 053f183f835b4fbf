"""Text files that users give: transcripts, lists, manifests, vocabularies, lexicons."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from speechtrain.errors import DataError

_FIX = "a text file in UTF-8 is needed"


def read_text(path: Path, fix: str = _FIX, *, errors: str = "strict") -> str:
    """Read a file in UTF-8, with or without a byte order mark; line ends become single line feeds.

    Args:
        path: the file.
        fix: what the user is to do if it cannot be read.
        errors: what becomes of bytes that are not UTF-8, as for `bytes.decode`.

    Raises:
        DataError: there is no such file, or it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig", errors=errors)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})\n    -> {fix}") from None


def read_lines(path: Path, fix: str = _FIX, *, errors: str = "strict") -> list[str]:
    """Read the lines of a file, as `read_text` reads it.

    Only line feeds and carriage returns end a line: `str.splitlines` also cuts at U+2028 and U+0085, which texts may hold.
    """
    lines = read_text(path, fix, errors=errors).split("\n")
    return lines if lines[-1] else lines[:-1]


def numbered_lines(path: Path, *, errors: str = "strict") -> Iterator[tuple[str, str]]:
    """Read the lines of a file that are not empty, each with `FILE:NUMBER` for messages before it."""
    for number, line in enumerate(read_lines(path, errors=errors), start=1):
        if line.strip():
            yield f"{path}:{number}", line
