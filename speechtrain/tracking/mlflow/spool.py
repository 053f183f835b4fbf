"""The events of a run on disk before they are sent: a file in the run's folder with one JSON object a line, in order.

The training only appends. The sender notes in a second file how far it has come, and removes both when all is sent and the run is closed.
What is left of a run that died is sent by the next one, by `resume=` or by `python -m speechtrain.sync`.
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

from speechtrain.addresses import keep, masked_values
from speechtrain.files import append, atomically, make_folder
from speechtrain.tracking.mlflow.resume_files import Snapshots

FOLDER = "unsent"
"""Name of the folder of spools in a run's folder."""

Event = Mapping[str, Any]

_MASKED = ("params", "tags", "name", "text", "columns", "datasets")
"""Keys of events with texts that people read; the others name files and runs."""


class Spool:
    """One file of events, to which one process appends while another reads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held: list[bytes] = []

    @classmethod
    def new(cls, folder: Path) -> Spool:
        """Return an empty spool for a run that starts or is resumed in a folder."""
        return cls(folder / FOLDER / f"{time.time_ns()}-{os.getpid()}.jsonl")

    # --- for the training ---------------------------------------------------------------------------------------------------------------

    @property
    def held(self) -> int:
        """Return the number of events that could not be written, as on a full disk; each `append` tries again."""
        return len(self._held)

    def append(self, event: Event) -> None:
        """Append an event as one line, which is there whole or not at all.

        Raises:
            DiskError: it cannot be written now; it is held in memory.
        """
        safe = {key: keep(value) if key == "uri" else masked_values(value) if key in _MASKED else value for key, value in event.items()}
        self._held.append(json.dumps(safe, separators=(",", ":"), default=str).encode() + b"\n")
        if not self.path.exists():
            make_folder(self.path.parent)
            with contextlib.suppress(OSError):  # which `append` reports
                self.path.parent.chmod(0o700)
                self.path.touch(0o600)
        while self._held:
            append(self.path, self._held[0])
            self._held.pop(0)

    def take_unwritten(self) -> list[Event]:
        """Remove and return the events that could not be written, to be sent in another way."""
        events = [json.loads(line) for line in self._held]
        self._held.clear()
        return events

    @property
    def snapshots(self) -> Snapshots:
        """Return the files that wait to be kept for `resume=`."""
        return Snapshots(self.path.with_suffix(".resume"))

    # --- for the sender ------------------------------------------------------------------------------------------------------------

    @property
    def _sent(self) -> Path:
        return self.path.with_suffix(".sent")

    def state(self) -> dict[str, Any]:
        """Return what the last sender has committed; empty if there was none."""
        try:
            state = json.loads(self._sent.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(state, dict) or not all(isinstance(state.get(key, kind()), kind) for key, kind in _STATE.items()):
            return {}
        return state if state.get("offset", 0) >= 0 else {}

    def commit(self, state: Mapping[str, Any]) -> None:
        """Write down how far the sender has come; a failure does no harm, as events that are sent again change nothing."""
        with contextlib.suppress(OSError), atomically(self._sent) as temporary:
            temporary.write_text(json.dumps(state), encoding="utf-8")

    def read(self, offset: int) -> Iterator[tuple[Event, int]]:
        """Yield the whole events from a byte offset on, each with the offset behind it; lines that are not JSON are passed over."""
        try:
            content = self.path.read_bytes()[offset:] if self.path.stat().st_size > offset else b""
        except OSError:
            return
        for line in content.splitlines(keepends=True):
            offset += len(line)
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(event, dict) and isinstance(event.get("call"), str):
                yield event, offset

    def lock(self) -> filelock.FileLock:
        """Return the lock that a sender holds while it sends."""
        return filelock.FileLock(self.path.with_suffix(".lock"), timeout=0)

    def remove(self) -> None:
        """Remove the file, what belongs to it and the folder, because all is sent."""
        for path in (self.path, self._sent, self.path.with_suffix(".lock")):
            path.unlink(missing_ok=True)
        self.snapshots.remove()
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()


_STATE: dict[str, type] = {"offset": int, "run_id": str, "uri": str, "closed": bool}
"""What a sender commits, with the type of each."""


def pause_after(failures: int) -> float:
    """Return the seconds until a server is tried again after so many failures in a row."""
    return float(min(15.0, 0.5 * 2.0 ** min(failures, 10)))


def spools_in(folder: Path) -> list[Spool]:
    """Return the spools of one run, the oldest first."""
    return [Spool(path) for path in sorted((folder / FOLDER).glob("*.jsonl"))]


def spools_below(folders: Iterable[Path]) -> list[Spool]:
    """Return the spools of all runs below some folders, the oldest first."""
    paths = {path for folder in folders for path in folder.glob(f"**/{FOLDER}/*.jsonl")}
    return [Spool(path) for path in sorted(paths, key=lambda path: path.name)]
