"""Text files that users give: transcripts, lists, manifests, vocabularies, lexicons. They are UTF-8, and no line or text is endless."""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from speechtrain.errors import DataError
from speechtrain.files import open_regular, regular_size

_FIX = "a text file in UTF-8 is needed"

_LONGEST_LINE = 1 << 24
"""Bytes of the longest line that is read; hours of speech with the times of all words take a tenth of it."""
_LARGEST_FILE = 1 << 30
"""Bytes of the largest file that is read whole. Manifests are read line by line and may be larger."""
_RATIO, _MOST_UNPACKED = 100, 1 << 24
"""How many times its size a packed text may have, and bytes that any may have: lists and models shrink to a fifth or a twentieth."""
_DEEPEST = 32
"""How deeply arrays and objects of JSON may be nested; what is deeper overflows the stack of one or the other reader."""


def read_text(path: Path, fix: str = _FIX) -> str:
    """Read a file in UTF-8, with or without a byte order mark; line ends become single line feeds.

    Args:
        path: the file.
        fix: what the user is to do if it cannot be read.

    Raises:
        DataError: there is no such file, it is not UTF-8, or it is too large.
    """
    return "\n".join(read_lines(path, fix))


def read_lines(path: Path, fix: str = _FIX) -> list[str]:
    """Read the lines of a file in UTF-8, with or without a byte order mark.

    Only line feeds end a line, with or without a carriage return before: `str.splitlines` also cuts at U+2028 and U+0085, which texts may
    hold.

    Raises:
        DataError: there is no such file, it is not UTF-8, or it is too large.
    """
    lines, size = [], 0
    for _, line in lines_of(path, fix):
        lines.append(line)
        size += len(line) + 1
        if size > _LARGEST_FILE:
            raise DataError(f"{path}: is larger than {_LARGEST_FILE >> 20} MiB\n    -> {fix}")
    return lines


def numbered_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Read the lines of a file that are not empty, as `read_lines` does, each with `FILE:NUMBER` for messages before it."""
    for number, line in lines_of(path):
        if line.strip():
            yield f"{path}:{number}", line


def lines_of(path: Path, fix: str = _FIX) -> Iterator[tuple[int, str]]:
    """Read the lines of a file, which may be compressed (`.gz`), one by one as `read_lines` does, with their numbers from 1.

    Raises:
        DataError: there is no such file, it is damaged, not UTF-8, has an endless line, or unpacks to far more than texts do.
    """
    number = size = 0
    try:
        with open_regular(path) as packed, _unpacked(packed, path) as file:
            most = None if path.suffix != ".gz" else _MOST_UNPACKED + _RATIO * regular_size(path)
            for number, line in enumerate(iter(partial(file.readline, _LONGEST_LINE + 1), b""), start=1):
                size += len(line)
                if len(line) > _LONGEST_LINE:
                    raise DataError(f"{path}:{number}: is longer than {_LONGEST_LINE >> 20} MiB\n    -> {fix}")
                if most is not None and size > most:
                    raise DataError(f"{path}: unpacks to more than {_RATIO} times its size, as no text does\n    -> {fix}")
                if number == 1 and (name := _wide_encoding(line)) is not None:
                    raise DataError(f"{path}:1: is in {name}\n    -> {fix}; iconv -f {name} -t UTF-8 FILE converts it")
                own = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                yield number, own.removesuffix(b"\n").removesuffix(b"\r").decode()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})\n    -> {fix}") from None
    except UnicodeDecodeError as error:
        wrong = f"byte 0x{error.object[error.start]:02x}, number {error.start + 1} of the line, is not UTF-8 ({error.reason})"
        name = "CP1252" if 0x80 <= error.object[error.start] <= 0x9F else "LATIN1"  # which has control characters there
        raise DataError(f"{path}:{number}: {wrong}\n    -> {fix}; iconv -f {name} -t UTF-8 FILE converts it, if it is {name}") from None


def _wide_encoding(line: bytes) -> str | None:
    """Return UTF-16 or UTF-32 where a file's first line is in one of them; None: it is not."""
    if line.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "UTF-32"
    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    zeros = bytes(byte == 0 for byte in line[:4])
    return {b"\0\1\0\1": "UTF-16LE", b"\1\0\1\0": "UTF-16BE"}.get(zeros)


def _unpacked(file: BinaryIO, path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.GzipFile(fileobj=file)) if path.suffix == ".gz" else file


def parse_json(text: str) -> Any:
    """Return the value that a text in JSON stands for.

    Raises:
        DataError: it is not JSON, is nested too deeply, or holds half a surrogate pair, which is no character.
    """
    try:
        value = _parsed(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise DataError(f"holds half a surrogate pair, \\u{ord(half):04x}, which is no character, received {text[:60]!r}") from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise DataError(f"not JSON ({reason}), received {text[:60]!r}") from None
    if text.count("[") + text.count("{") > _DEEPEST and _is_deeper(value, _DEEPEST):
        raise DataError(f"its JSON is nested more than {_DEEPEST} deep, received {text[:60]!r}")
    return value


_decode = json.JSONDecoder().raw_decode


def _parsed(text: str) -> Any:
    """Return what `json.loads` does, faster where nothing is around the value and nothing wrong with it."""
    try:
        value, end = _decode(text)
        if end == len(text):
            return value
    except ValueError:
        pass
    return json.loads(text)


def _is_deeper(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        level = [inner for each in level if isinstance(each, (list, dict)) for inner in (each.values() if isinstance(each, dict) else each)]
    return any(isinstance(each, (list, dict)) for each in level)


def read_json(path: Path) -> Any:
    """Read the value of a file in JSON.

    Raises:
        DataError: there is no such file, or `parse_json` refuses it; the message names the file.
    """
    text = read_text(path, "give a file in JSON")
    try:
        return parse_json(text)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
