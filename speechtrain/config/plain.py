"""Values of files that a stranger may have written: texts, numbers, lists and mappings, few enough, in which nothing is resolved."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from speechtrain.errors import UserError

ABSENT = object()
"""Stands for the value of a key that there is not, as the default of `OmegaConf.select`."""

_MOST_VALUES = 100_000
_MOST_LETTERS = 10_000_000
_DEEPEST = 32


class _NotPlain(Exception):  # noqa: N818
    """Says what of a stored value is not plain."""


def literal(text: str) -> str:
    """Return a text as OmegaConf reads it without finding an interpolation in it."""
    return re.sub(r"(\\*)\$\{", lambda found: rf"{found[1] * 2}\${{", text)


def plain_mapping(values: object, what: str, *, fix: str = "") -> dict[str, Any]:
    """Return a mapping of plain values as it is.

    Args:
        values: what a file holds.
        what: the place and the thing, for messages.
        fix: what to do, for messages, on a line of its own.

    Raises:
        UserError: it is no mapping, or holds anything but texts, numbers, truth values, lists and mappings, or too many of them.
    """
    try:
        if not isinstance(values, Mapping):
            raise _NotPlain(f"it is {shown(values)}, and no mapping")
        _check_plain(values, "", depth=0, left=[_MOST_VALUES, _MOST_LETTERS])
    except _NotPlain as error:
        raise UserError(f"{what} cannot be read: {error}{fix}") from None
    return dict(values)


def _check_plain(value: object, path: str, *, depth: int, left: list[int]) -> None:
    """Check that a value is plain at any depth; `left` counts down the values and letters that a config may have."""
    if isinstance(value, str):
        _check_text(value, path, left)
    elif isinstance(value, int):
        if abs(value) >= 2**63:
            raise _NotPlain(f"{path} is a number of {value.bit_length()} bits")
    elif isinstance(value, (dict, list)):
        if depth == _DEEPEST:
            raise _NotPlain(f"{path[:200]} is nested more than {_DEEPEST} levels deep")
        left[0] -= len(value)
        if left[0] < 0:
            raise _NotPlain(f"it has more than {_MOST_VALUES:,} values")
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if not isinstance(key, (str, int)):
                raise _NotPlain(f"{path} has {shown(key)} for a key, which is no text")
            _check_plain(key, path, depth=depth, left=left)
            _check_plain(item, f"{path}.{key}" if path else str(key), depth=depth + 1, left=left)
    elif value is not None and not isinstance(value, float):
        raise _NotPlain(f"{path} is {shown(value)}, and no plain value")


def _check_text(text: str, path: str, left: list[int]) -> None:
    """Check that a text can be printed, and is neither an interpolation nor the mark of a missing value."""
    left[1] -= len(text)
    if left[1] < 0:
        raise _NotPlain(f"its texts have more than {_MOST_LETTERS:,} letters")
    if "${" in text:
        raise _NotPlain(f"{path} is {shown(text)}, and nothing is resolved in a stored config: runs write what it comes to")
    if text == "???":
        raise _NotPlain(f"{path} has no value")
    if not is_printable(text):
        raise _NotPlain(f"{path} is {shown(text)}, which is no text")


def is_printable(text: str) -> bool:
    """Return whether a text can be encoded, and be part of a path."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def shown(value: object) -> str:
    """Return a value for a message, at most 80 characters of it, or its type where it is no plain one."""
    plain = isinstance(value, (str, int, float)) or value is None
    text = ascii(value) if plain and not (isinstance(value, int) and abs(value) >= 2**63) else f"a value of type {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."
