"""Files that appear whole or not at all, and names that do not collide."""

from __future__ import annotations

from pathlib import Path


def numbered(name: str, taken: set[str]) -> str:
    """The name, with a number behind it where it was taken before, so that no file is written over another."""
    found, number = name, 1
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    taken.add(found)
    return found


def write(path: Path, text: str) -> None:
    """A file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
