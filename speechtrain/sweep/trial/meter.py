"""Measures what a trial costs in the process that runs it: CPU time, and time of the GPUs that it holds. Imports no framework."""

from __future__ import annotations

import os
import sys
import time


class Meter:
    """Measures from the moment it is made.

    A GPU counts as held if this process has memory on it when it is asked, for all the time since the last question.
    """

    def __init__(self) -> None:
        self._cpu = _cpu_seconds()
        self._asked = time.monotonic()
        self._gpu_seconds = 0.0

    def read(self) -> dict[str, float]:
        """Return the seconds so far by the names under which a trial stores them; those of GPUs only where there were any."""
        now = time.monotonic()
        self._gpu_seconds += gpus_held() * (now - self._asked)
        self._asked = now
        gpu = {"gpu_s": self._gpu_seconds} if self._gpu_seconds else {}
        return {"cpu_s": _cpu_seconds() - self._cpu, **gpu}


def _cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def gpus_held() -> int:
    """Return how many GPUs this process, or the ranks that it leads, hold memory on, as the frameworks that are imported say."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        held = sum(torch.cuda.memory_reserved(index) > 0 for index in range(torch.cuda.device_count()))
        ranks = torch.distributed.get_world_size() if torch.distributed.is_available() and torch.distributed.is_initialized() else 1
        return int(held * ranks)
    keras = sys.modules.get("keras")
    engine = keras.config.backend() if keras is not None else None
    if engine == "jax":
        return int(sys.modules["jax"].default_backend() == "gpu")
    if engine == "tensorflow":
        return int(bool(sys.modules["tensorflow"].config.list_logical_devices("GPU")))
    return 0
