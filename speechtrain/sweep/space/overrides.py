"""Writes values as override text that Hydra reads back unchanged, so that a job composes exactly what the study proposed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

_PLAIN = re.compile(r"[A-Za-z_/.][\w/.\-]*", re.ASCII)
_PLAIN_KEY = re.compile(r"[A-Za-z_][\w.\-]*", re.ASCII)

parser = OverridesParser.create()


def override_text(value: Any) -> str:
    """Return the text that Hydra's grammar reads back as `value` (None, bool, number, string, list or dictionary of these).

    Raises:
        ValueError: Hydra's grammar has no way to write it.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if math.isnan(value):
            return "nan"
        return repr(value) if math.isfinite(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_key(key)}:{override_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ",".join(override_text(item) for item in value) + "]"
    raise ValueError(f"a {type(value).__name__} cannot be written on a command line")


def _string(value: str) -> str:
    if _PLAIN.fullmatch(value) and _reads_as(value, value):
        return value
    return QuotedString(text=value, quote=Quote.single).with_quotes()


def _key(key: Any) -> str:
    if isinstance(key, bool) or key is None or isinstance(key, float):
        return override_text(key)
    text = str(key)
    if isinstance(key, int) or _PLAIN_KEY.fullmatch(text):
        return text
    raise ValueError(f"{key!r} cannot be the key of a dictionary on a command line")


def _reads_as(text: str, value: Any) -> bool:
    try:
        read = parser.parse_override(f"key={text}").value()
    except HydraException:
        return False
    return type(read) is type(value) and read == value
