"""Identifies processes across machines and restarts, and judges whether one is still alive."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil


@dataclass(frozen=True)
class Process:
    """Identifies one process, and no later one that gets the same number.

    Attributes:
        host: name of its machine.
        boot: id of the machine's boot, after which numbers are given again.
        pid: its number.
        started: its start, in seconds since 1970.
    """

    host: str
    boot: str
    pid: int
    started: float

    @classmethod
    def current(cls) -> Process:
        """Return the identity of the process that calls this."""
        return _current(os.getpid())

    @classmethod
    def from_dict(cls, values: object) -> Process | None:
        """Return a process as `to_dict` stored it, or None if nothing is stored, or something else."""
        if not isinstance(values, Mapping):
            return None
        try:
            return cls(str(values["host"]), str(values["boot"]), int(values["pid"]), float(values["started"]))
        except (KeyError, TypeError, ValueError, OverflowError):
            return None

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as values that JSON can hold."""
        return asdict(self)

    def is_local(self) -> bool:
        """Return whether it belongs to this machine, which alone can say if it is alive."""
        return self.host == platform.node()

    def is_alive(self) -> bool:
        """Return whether it still runs; only for a process of this machine."""
        if self.boot != _boot():
            return False
        try:
            process = psutil.Process(self.pid)
            return bool(abs(process.create_time() - self.started) < 1.0 and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.Error:
            return False


@cache
def _current(pid: int) -> Process:
    return Process(platform.node(), _boot(), pid, psutil.Process(pid).create_time())


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return str(round(psutil.boot_time(), -1))


class Watch:
    """Judges processes of other machines by whether their heartbeat changes, by the clock of this machine.

    Args:
        patience: seconds without a change after which a process counts as gone.
    """

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self._seen: dict[int, tuple[object, float]] = {}

    def is_silent(self, trial: int, beat: object) -> bool:
        """Return whether the heartbeat of a trial has not changed for longer than `patience`."""
        now = time.monotonic()
        before = self._seen.get(trial)
        if before is None or before[0] != beat:
            self._seen[trial] = (beat, now)
            return False
        return now - before[1] > self.patience
