"""The keys of a config file with what stands beside them: the text of the value, the comment that says what the key means, and the line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Reads the files of `conf/`, ten times as fast as the loader in Python where PyYAML has been built with libyaml."""


def content_of(path: Path) -> Any:
    """Return the content of a file of `conf/` as it is written; None: it is empty."""
    return yaml.load(path.read_text(encoding="utf-8"), Loader)  # noqa: S506 (the safe loader, in C)


@dataclass(frozen=True)
class Entry:
    """Describes a key as a config file has it.

    Attributes:
        text: the value as it is written; empty where the key holds other keys.
        comment: what is written behind the value, or on the lines above the key; empty: nothing is.
        file: the config file.
        line: the line of the key, counted from 1.
        is_node: whether the key holds other keys.
    """

    text: str
    comment: str
    file: Path
    line: int
    is_node: bool


@lru_cache(maxsize=500)
def entries_of(path: Path) -> dict[str, Entry]:
    """Return the keys of a config file by their dotted paths, those inside of others too; none of its defaults list.

    Raises:
        yaml.YAMLError: the file is no YAML.
    """
    text = path.read_text(encoding="utf-8")
    root = yaml.compose(text, Loader=Loader)
    return dict(_entries(root, "", path, text.splitlines())) if isinstance(root, yaml.MappingNode) else {}


def _entries(node: yaml.MappingNode, prefix: str, path: Path, lines: list[str]) -> Iterator[tuple[str, Entry]]:
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if name == "defaults":
            continue
        is_block = isinstance(value, yaml.CollectionNode) and not value.flow_style
        is_node = is_block and isinstance(value, yaml.MappingNode)
        end = key.end_mark if is_block else value.end_mark
        written = "" if is_node else _written(value, lines)
        comment = _comment(lines, key.start_mark, end)
        yield name, Entry(written, comment, path, key.start_mark.line + 1, is_node)
        if is_node:
            yield from _entries(value, f"{name}.", path, lines)


def _written(value: yaml.Node, lines: list[str]) -> str:
    """Return the text of a value on one line."""
    start, end = value.start_mark, value.end_mark
    if start.line == end.line:
        return lines[start.line][start.column : end.column].strip()
    parts = [lines[start.line][start.column :], *lines[start.line + 1 : end.line], *([lines[end.line][: end.column]] if end.column else [])]
    return " ".join(part.partition(" #")[0].strip() for part in parts).strip()


def _comment(lines: list[str], start: yaml.Mark, end: yaml.Mark) -> str:
    """Return the comment behind a value with the lines that go on with it; without one, that of the lines above the key."""
    behind = lines[end.line][end.column :].lstrip(": ") if end.line < len(lines) else ""
    if behind.startswith("#"):
        following = _comment_lines(lines[end.line + 1 :])
        return " ".join([behind.lstrip("# ").strip(), *following])
    above = _comment_lines(lines[: start.line][::-1])
    return " ".join(above[::-1]) if 0 < len(above) < start.line else ""  # what begins a file describes the file


def _comment_lines(lines: list[str]) -> list[str]:
    """Return the comments with which a list of lines begins."""
    comments: list[str] = []
    for line in lines:
        if not line.lstrip().startswith("#"):
            break
        comments.append(line.lstrip("# ").strip())
    return comments


def summary_of(path: Path) -> str:
    """Return the first comment of a config file, which says what it is for, up to the line that ends a sentence or comes before a blank."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if "@package" not in line]
    while lines and not lines[0].startswith("#"):
        lines.pop(0)
    told: list[str] = []
    for comment in _comment_lines(lines):
        if not comment:
            break
        told.append(comment)
        if comment.endswith((".", ":")):
            break
    return " ".join(told)
