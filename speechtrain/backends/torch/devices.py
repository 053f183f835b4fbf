"""Training on several devices of one machine: a process for each, started here and ended here.

The first is the one that the user started; it tracks, prints and writes. The others build the same from the run's config and take their
share of each batch.
"""

from __future__ import annotations

import _thread
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from speechtrain.errors import RunError

RANK = "SPEECHTRAIN_RANK"
PORT = "SPEECHTRAIN_PORT"


def own_rank() -> int:
    """Which process of the run this is; 0: the one that the user started."""
    return int(os.environ.get(RANK, "0"))


class OwnProcesses(LightningEnvironment):
    """Tells Lightning that its processes are started by others."""

    def __init__(self) -> None:
        super().__init__()
        if PORT not in os.environ:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.port: int = free.getsockname()[1]
        else:
            self.port = int(os.environ[PORT])

    @property
    def creates_processes_externally(self) -> bool:
        """Always."""
        return True

    @property
    def main_address(self) -> str:
        """This machine."""
        return "127.0.0.1"

    @property
    def main_port(self) -> int:
        """Where the first process listens."""
        return self.port

    def local_rank(self) -> int:
        """Of this process."""
        return own_rank()


class Companions(pl.Callback):
    """Further processes that train the same run, while a block runs.

    Args:
        count: how many; with 0 there is nothing to do.
        port: where the first process listens.
        folder: of the run.
        resume_from: the checkpoint that it goes on from.
    """

    def __init__(self, count: int, port: int, folder: Path, resume_from: Path | None) -> None:
        self._count = count
        self._port = port
        self._folder = folder
        self._resume_from = resume_from
        self._running: list[subprocess.Popen[bytes]] = []
        self._ended = threading.Event()
        self._interrupting = threading.Lock()  # no interrupt may come when the end is noticed already in another way
        self._failed: int | None = None

    def _log(self, rank: int) -> Path:
        return self._folder / f"process-{rank}.log"

    def __enter__(self) -> None:
        for rank in range(1, self._count + 1):
            environment = {**os.environ, RANK: str(rank), PORT: str(self._port)}
            command = [sys.executable, "-m", "speechtrain.training.rank", str(self._folder)]
            command += [str(self._resume_from)] if self._resume_from is not None else []
            with self._log(rank).open("wb") as file:
                # of a session of its own: Ctrl-C is for the first process, which ends the others
                process = subprocess.Popen(
                    command, env=environment, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.PIPE, start_new_session=True
                )
            self._running.append(process)
        if self._running:
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self._ended.wait(0.5):
            dead = self._dead()
            if dead is not None:
                with self._interrupting:
                    if not self._ended.is_set():
                        self._failed = dead
                        _thread.interrupt_main()  # it waits for a message that will never come
                return

    def _dead(self, seconds: float = 0) -> int | None:
        """The first of them that has failed, or does so in so many seconds."""
        until = time.monotonic() + seconds
        while self._running:
            for rank, process in enumerate(self._running, start=1):
                if process.poll() not in (None, 0):
                    return rank
            if time.monotonic() >= until:
                break
            time.sleep(0.05)
        return None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """End the others before Lightning waits for them."""
        if self._failed is None and not self._ended.is_set():
            # its connection may be gone before the system says that it has ended
            self._failed = self._dead(seconds=2 if isinstance(exception, RuntimeError) else 0)
        self._end(seconds=0)

    def _end(self, seconds: float) -> None:
        with self._interrupting:
            self._ended.set()
        for process in self._running:
            assert process.stdin is not None
            process.stdin.close()  # those that still train end with it
            try:
                process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """All are ended.

        Raises:
            RunError: one of them ended before, by itself; with the last lines that it wrote.
        """
        if error is not None and self._failed is None and not self._ended.is_set():
            self._failed = self._dead()
        self._end(seconds=10)
        if self._running and dist.is_initialized():
            dist.destroy_process_group()  # the next run of this process has companions of its own
        if self._failed is not None:
            log = self._log(self._failed)
            shown = "\n    ".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-8:])
            raise RunError(f"process {self._failed} of the training ended early; the end of {log}:\n    {shown}") from error


def end_with_parent() -> None:
    """Let this process end as soon as the one that started it does, in whatever way."""

    def wait() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def summed(values: list[float], device: torch.device) -> list[float]:
    """Each number added up over all processes."""
    if not dist.is_initialized():
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return [float(each) for each in tensor]


def gathered(value: Any) -> list[Any]:
    """The value of every process, in each of them."""
    if not dist.is_initialized():
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def as_in_first(tensors: Iterable[torch.Tensor]) -> None:
    """Give each tensor the first process's values, in place."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def from_first(value: Any) -> Any:
    """The first process's value, in each of them."""
    if not dist.is_initialized():
        return value
    found = [value]
    dist.broadcast_object_list(found, src=0)
    return found[0]
