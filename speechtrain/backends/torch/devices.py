"""Training on several devices of one machine: a process (rank) for each, started here and ended here.

Rank 0 is the process that the user started; it tracks, prints and writes. The other ranks build the same from the run's config and take
their share of each batch.
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
    """Return the rank of this process; 0: the one that the user started."""
    return int(os.environ.get(RANK, "0"))


class ExternalRanks(LightningEnvironment):
    """Tells Lightning that the processes of the ranks are started by us, and where rank 0 listens."""

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
        """Return true: `RankProcesses` starts them."""
        return True

    @property
    def main_address(self) -> str:
        """Return the address of this machine."""
        return "127.0.0.1"

    @property
    def main_port(self) -> int:
        """Return the port that rank 0 listens on."""
        return self.port

    def local_rank(self) -> int:
        """Return the rank of this process."""
        return own_rank()


class RankProcesses(pl.Callback):
    """Runs the processes of ranks 1, 2, ... while a block runs, and ends them with it.

    Args:
        count: number of ranks besides rank 0; 0: nothing is started.
        port: port that rank 0 listens on.
        folder: the folder of the run.
        resume_from: the checkpoint that the run is resumed from.
    """

    def __init__(self, count: int, port: int, folder: Path, resume_from: Path | None) -> None:
        self._count = count
        self._port = port
        self._folder = folder
        self._resume_from = resume_from
        self._running: list[subprocess.Popen[bytes]] = []
        self._ended = threading.Event()
        self._interrupting = threading.Lock()  # no interrupt may come once the end was noticed in another way
        self._failed: int | None = None

    def _log(self, rank: int) -> Path:
        return self._folder / f"process-{rank}.log"

    def __enter__(self) -> None:
        for rank in range(1, self._count + 1):
            environment = {**os.environ, RANK: str(rank), PORT: str(self._port)}
            command = [sys.executable, "-m", "speechtrain.training.rank", str(self._folder)]
            command += [str(self._resume_from)] if self._resume_from is not None else []
            with self._log(rank).open("wb") as file:
                # in a session of its own: Ctrl-C is for rank 0, which ends the others
                process = subprocess.Popen(
                    command, env=environment, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.PIPE, start_new_session=True
                )
            self._running.append(process)
        if self._running:
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self._ended.wait(0.5):
            failed = self._failed_rank()
            if failed is not None:
                with self._interrupting:
                    if not self._ended.is_set():
                        self._failed = failed
                        _thread.interrupt_main()  # which waits for a message that will never come
                return

    def _failed_rank(self, seconds: float = 0) -> int | None:
        """Return the first rank that has failed, or fails within so many seconds; None: none has."""
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
        """End the other ranks before Lightning waits for them."""
        if self._failed is None and not self._ended.is_set():
            # its connection may be gone before the system says that it has ended
            self._failed = self._failed_rank(seconds=2 if isinstance(exception, RuntimeError) else 0)
        self._end(seconds=0)

    def _end(self, seconds: float) -> None:
        with self._interrupting:
            self._ended.set()
        for process in self._running:
            assert process.stdin is not None
            process.stdin.close()  # a rank that still trains ends when its input does
            try:
                process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End all ranks.

        Raises:
            RunError: one of them had ended early by itself; the message has the last lines that it wrote.
        """
        if error is not None and self._failed is None and not self._ended.is_set():
            self._failed = self._failed_rank()
        self._end(seconds=10)
        if self._running and dist.is_initialized():
            dist.destroy_process_group()  # the next run of this process has a group of its own
        if self._failed is not None:
            log = self._log(self._failed)
            last_lines = "\n    ".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-8:])
            raise RunError(f"process {self._failed} of the training ended early; the end of {log}:\n    {last_lines}") from error


def end_with_parent() -> None:
    """End this process as soon as the one that started it ends, however that happens."""

    def wait() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def sum_over_ranks(values: list[float], device: torch.device) -> list[float]:
    """Return the sum of each number over all ranks."""
    if not dist.is_initialized():
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return [float(each) for each in tensor]


def gather_from_ranks(value: Any) -> list[Any]:
    """Return the values of all ranks, in every rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast_from_rank0(tensors: Iterable[torch.Tensor]) -> None:
    """Overwrite each tensor with the values that rank 0 has."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def value_of_rank0(value: Any) -> Any:
    """Return the value that rank 0 has, in every rank."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]
