"""Whether the process that works on a trial is still there, also on another machine."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil


@dataclass(frozen=True)
class Process:
    """One process, told apart from a later one with the same number.

    Attributes:
        host: its machine.
        boot: the machine's start; numbers begin anew with it.
        pid: its number.
        started: when it started, in seconds since 1970.
    """

    host: str
    boot: str
    pid: int
    started: float

    @classmethod
    def current(cls) -> Process:
        """This one."""
        return _current(os.getpid())

    @classmethod
    def from_dict(cls, values: dict[str, Any] | None) -> Process | None:
        """As stored; None if there is nothing to read."""
        if not values:
            return None
        return cls(str(values["host"]), str(values["boot"]), int(values["pid"]), float(values["started"]))

    def to_dict(self) -> dict[str, Any]:
        """For the storage."""
        return asdict(self)

    def is_local(self) -> bool:
        """Whether this machine can tell if it lives."""
        return self.host == platform.node()

    def is_alive(self) -> bool:
        """Whether it still runs; only for one of this machine."""
        if self.boot != _boot():
            return False
        try:
            found = psutil.Process(self.pid)
            return bool(abs(found.create_time() - self.started) < 1.0 and found.status() != psutil.STATUS_ZOMBIE)
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
    """Judges processes of other machines by whether their heartbeat changes, on this machine's own clock.

    Args:
        patience: seconds without a change after which a process counts as gone.
    """

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self._seen: dict[int, tuple[object, float]] = {}

    def is_silent(self, trial: int, beat: object) -> bool:
        """Whether the heartbeat of a trial has been the same for too long."""
        now = time.monotonic()
        before = self._seen.get(trial)
        if before is None or before[0] != beat:
            self._seen[trial] = (beat, now)
            return False
        return now - before[1] > self.patience
