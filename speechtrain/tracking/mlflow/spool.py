"""What a run has to tell, in order, on disk before it is sent: a file of one JSON line an event beside the run.

Whoever trains only appends. Whoever sends says beside the file how far it has come, and removes both when all is sent and the run is
closed. What is left of a run that died is sent by the next one, by `resume=` or by `python -m speechtrain.sync`.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

from speechtrain.files import atomically

FOLDER = "unsent"
"""In a run's folder."""

Event = Mapping[str, Any]


class Spool:
    """One file of events; one process appends, one reads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held: list[bytes] = []

    @classmethod
    def new(cls, folder: Path) -> Spool:
        """An empty one for a run that starts, or is taken up again, in a folder."""
        return cls(folder / FOLDER / f"{time.time_ns()}-{os.getpid()}.jsonl")

    # --- the run's side ---------------------------------------------------------------------------------------------------------------

    @property
    def held(self) -> int:
        """Events that could not be written, as on a full disk; each `append` tries again."""
        return len(self._held)

    def append(self, event: Event) -> None:
        """Add an event; a line is there whole or not at all.

        Raises:
            OSError: it cannot be written now; it is held in memory.
        """
        self._held.append(json.dumps(event, separators=(",", ":"), default=str).encode() + b"\n")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        number = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            while self._held:
                before = os.fstat(number).st_size
                if os.write(number, self._held[0]) < len(self._held[0]):
                    with contextlib.suppress(OSError):
                        os.truncate(self.path, before)
                    raise OSError(28, "No space left on device", str(self.path))
                self._held.pop(0)
        finally:
            os.close(number)

    def take_held(self) -> list[Event]:
        """What could never be written, to be passed on by another way."""
        found = [json.loads(line) for line in self._held]
        self._held.clear()
        return found

    # --- the sender's side ------------------------------------------------------------------------------------------------------------

    @property
    def _sent(self) -> Path:
        return self.path.with_suffix(".sent")

    def state(self) -> dict[str, Any]:
        """How far an earlier sender has come, with whatever it noted; empty if it had not begun."""
        try:
            found = json.loads(self._sent.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def commit(self, state: Mapping[str, Any]) -> None:
        """Note how far the sender has come; events sent again by a later sender change nothing, so a failure is no harm."""
        with contextlib.suppress(OSError), atomically(self._sent) as temporary:
            temporary.write_text(json.dumps(state), encoding="utf-8")

    def read(self, offset: int) -> Iterator[tuple[Event, int]]:
        """Whole events from a byte on, each with the byte behind it; a line that is no JSON, or not yet, is passed over."""
        try:
            content = self.path.read_bytes()[offset:] if self.path.stat().st_size > offset else b""
        except OSError:
            return
        for line in content.splitlines(keepends=True):
            offset += len(line)
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and "call" in event:
                yield event, offset

    def lock(self) -> filelock.FileLock:
        """Held by whoever sends."""
        return filelock.FileLock(self.path.with_suffix(".lock"), timeout=0)

    def remove(self) -> None:
        """Everything is sent."""
        for path in (self.path, self._sent, self.path.with_suffix(".lock")):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()


def spools_in(folder: Path) -> list[Spool]:
    """Those of one run, the oldest first."""
    return [Spool(path) for path in sorted((folder / FOLDER).glob("*.jsonl"))]


def spools_below(folders: Iterable[Path]) -> list[Spool]:
    """Those of all runs below some folders, the oldest first."""
    found = {path for folder in folders for path in folder.glob(f"**/{FOLDER}/*.jsonl")}
    return [Spool(path) for path in sorted(found, key=lambda path: path.name)]
