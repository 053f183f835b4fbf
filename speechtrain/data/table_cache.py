"""Tables of utterances on disk, by what they were made of: a long list that was read and checked once is mapped into memory from then on.

    FOLDER/<key>.table      a line of JSON, and the arrays that it names

Nothing else is needed to read a table, and a damaged or foreign file is none.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from speechtrain.data.cut_table import CONTENT, FileBytes
from speechtrain.errors import first_line
from speechtrain.files import atomically, remove_unfinished, user_path

log = logging.getLogger(__name__)

_ALIGNED = 64
_OURS = re.compile(r"[0-9a-f]{32}\.table")
_MOST_BYTES = 8e9
"""Bytes of all tables together; what was used least recently is deleted first. One of a million utterances has some 300 MB."""


class StoredTable(NamedTuple):
    """What a file holds: facts as JSON has them, and arrays by name, on the file's own pages or, of texts, left in the file."""

    facts: Any
    arrays: dict[str, Any]


class TableCache:
    """Keeps tables in a folder, each under a key.

    Args:
        folder: the folder; it is made when the first table is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = user_path(folder).absolute()

    def read(self, key: str) -> StoredTable | None:
        """Map the table of a key, 32 hexadecimal digits; None: there is none."""
        path = self._folder / f"{key}.table"
        try:
            pages = np.memmap(path, mode="r", dtype=np.uint8)
            with path.open("rb") as file:
                line = file.readline()
            head = json.loads(line)
            arrays: dict[str, Any] = {}
            for name, (dtype, shape, offset) in head["arrays"].items():
                begin = -(-len(line) // _ALIGNED) * _ALIGNED + offset
                if begin + math.prod(shape) * np.dtype(dtype).itemsize > len(pages):
                    raise ValueError("it is cut off")
                if name.endswith(CONTENT):
                    arrays[name] = FileBytes(path, begin, math.prod(shape))
                    continue
                arrays[name] = np.frombuffer(pages.data, dtype, math.prod(shape), begin).reshape(shape)
            with suppress(OSError):  # a cache that others own can still be read
                os.utime(path)
            return StoredTable(head["facts"], arrays)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s is ignored (%s)", path, first_line(error, most=80))
            return None

    def write(self, key: str, table: StoredTable) -> bool:
        """Write the table of a key, whole or not at all. Returns whether it could be written."""
        layout, offset = {}, 0
        for name, array in table.arrays.items():
            layout[name] = (array.dtype.str, array.shape, offset)
            offset += -(-array.nbytes // _ALIGNED) * _ALIGNED
        line = json.dumps({"facts": table.facts, "arrays": layout}).encode() + b"\n"
        path = self._folder / f"{key}.table"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            remove_unfinished(self._folder)
            with atomically(path, durable=True) as temporary, temporary.open("wb") as file:
                file.write(line + bytes(-len(line) % _ALIGNED))
                for array in table.arrays.values():
                    file.write(np.ascontiguousarray(array).data)
                    file.write(bytes(-array.nbytes % _ALIGNED))
            self._make_room(path)
        except OSError as error:
            log.warning("%s cannot be written (%s); the lists are read again next time", self._folder, error.strerror or error)
            return False
        return True

    def _make_room(self, newest: Path) -> None:
        """Delete the tables that were used least recently until the rest, and the newest in any case, is within the limit."""
        ours = [path for path in self._folder.glob("*.table") if _OURS.fullmatch(path.name) and path != newest]
        total = newest.stat().st_size
        for path in sorted(ours, key=lambda path: path.stat().st_mtime, reverse=True):
            total += path.stat().st_size
            if total > _MOST_BYTES:
                path.unlink(missing_ok=True)  # who has it mapped keeps it


class KeepsTables:
    """A corpus that keeps long lists once it has read them.

    Attributes:
        table_cache: where they are kept; None: nowhere.
    """

    table_cache: TableCache | None = None
