"""Files that appear whole or not at all, and names that do not collide."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomically(path: Path, *, durable: bool = False, suffix: str | None = None) -> Iterator[Path]:
    """Give a temporary path in the folder of `path` that is renamed to `path` when the block ends, and removed when it raises.

    The temporary name is hidden, has the same ending (some libraries choose a format by it) and holds the number of this process, so that
    two processes that write the same file do not write into each other's.

    Args:
        path: the file to write; its folder must exist.
        durable: whether the content must be on the disk before it gets its name, so that it survives a loss of power.
        suffix: ending of the temporary name, where a library insists on another than the file has.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix if suffix is None else suffix}")
    try:
        yield temporary
        if durable:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 that appears whole or not at all, and make its folder if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON that people can read, see `write_text`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False))


def numbered(name: str, used: set[str]) -> str:
    """Return a name that is not in `used`, with `_2`, `_3`, ... added where needed, and add it to `used`."""
    unique, number = name, 1
    while unique in used:
        number += 1
        unique = f"{name}_{number}"
    used.add(unique)
    return unique
