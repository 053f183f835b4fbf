"""Training on several devices: a process (rank) for each; on one machine they are started here and ended here.

Rank 0 is the process that the user started; it tracks, prints and writes. The other ranks build the same from the run's config and take
their share of each batch. They meet by files in a folder that only their user may enter, and send tensors to each other on the loopback
interface; objects, which are pickled, go through files of that folder and never through a socket. Ranks that a launcher has started, on
one machine or several, meet in `launched_ranks.py`.
"""

from __future__ import annotations

import _thread
import os
import subprocess
import sys
import tempfile
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

from speechtrain.backends.torch.exchange import Exchange, FileExchange, GroupExchange
from speechtrain.backends.torch.rendezvous import current, interface_of
from speechtrain.errors import RunError

RANK = "SPEECHTRAIN_RANK"
MEETING = "SPEECHTRAIN_MEETING"


def own_rank() -> int:
    """Return the rank of this process; 0: the one that the user started, or the first that a launcher has started."""
    return rendezvous.launch.rank if (rendezvous := current()) is not None else int(os.environ.get(RANK, "0"))


class ExternalRanks(LightningEnvironment):
    """Tells Lightning that the processes of the ranks are started by us or by a launcher, and have met before it begins."""

    @property
    def creates_processes_externally(self) -> bool:
        """Return true: `RankProcesses` starts them, or a launcher has."""
        return True

    def local_rank(self) -> int:
        """Return the number of this process among those of its machine."""
        return rendezvous.launch.local_rank if (rendezvous := current()) is not None else own_rank()

    def node_rank(self) -> int:
        """Return the number of this machine."""
        return rendezvous.launch.node if (rendezvous := current()) is not None else 0

    def set_global_rank(self, rank: int) -> None:  # noqa: ARG002 # counted over machines, which a launcher may number otherwise
        """Set the rank that this process has."""
        super().set_global_rank(own_rank())


_exchange: Exchange | None = None


class RankProcesses(pl.Callback):
    """Runs the processes of ranks 1, 2, ... while a block runs, joins this one with them, and ends them with it.

    Args:
        count: number of ranks; where it is 1 nothing is started and nothing joined.
        device: the device of this rank.
        folder: the folder of the run.
        resume_from: the checkpoint that the run is resumed from.
    """

    def __init__(self, count: int, device: torch.device, folder: Path, resume_from: Path | None) -> None:
        self._count = count
        self._device = device
        self._folder = folder
        self._resume_from = resume_from
        self._running: list[subprocess.Popen[bytes]] = []
        self._meeting: tempfile.TemporaryDirectory[str] | None = None
        self._ended = threading.Event()
        self._interrupting = threading.Lock()  # no interrupt may come once the end was noticed in another way
        self._failed: int | None = None

    def _log(self, rank: int) -> Path:
        return self._folder / f"process-{rank}.log"

    def __enter__(self) -> None:
        if self._count == 1:
            return
        place = os.environ.get(MEETING)
        if place is None:
            self._meeting = tempfile.TemporaryDirectory(prefix=f"speechtrain-ranks-{os.getpid()}-", ignore_cleanup_errors=True)
            place = self._meeting.name
            self._start(place)
        try:
            self._join(Path(place))
        except BaseException:
            self._end(seconds=0)
            self._leave()
            raise

    def _start(self, place: str) -> None:
        """Start the other ranks, which join this one in a folder."""
        for rank in range(1, self._count):
            environment = {**os.environ, RANK: str(rank), MEETING: place}
            command = [sys.executable, "-m", "speechtrain.training.rank", str(self._folder)]
            command += [str(self._resume_from)] if self._resume_from is not None else []
            with self._log(rank).open("wb") as file:
                # in a session of its own: Ctrl-C is for rank 0, which ends the others
                process = subprocess.Popen(
                    command, env=environment, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.PIPE, start_new_session=True
                )
            self._running.append(process)
        threading.Thread(target=self._watch, daemon=True).start()

    def _join(self, place: Path) -> None:
        """Make one group of all ranks, before Lightning would, which has them listen on every interface."""
        store = dist.FileStore(str(place / "store"), self._count)  # type: ignore[attr-defined]
        join_group(store, self._count, self._device, FileExchange(place, own_rank(), self._count), interface_of("127.0.0.1"))

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
        self._leave()
        if self._failed is not None:
            log = self._log(self._failed)
            last_lines = "\n    ".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-8:])
            raise RunError(f"process {self._failed} of the training ended early; the end of {log}:\n    {last_lines}") from error

    def _leave(self) -> None:
        """Forget the group: the next run of this process has one of its own."""
        if self._running:
            leave_group()
        else:
            use_exchange(None)
        if self._meeting is not None:
            self._meeting.cleanup()


def join_group(store: Any, count: int, device: torch.device, exchange: Exchange, interface: str | None) -> None:
    """Make one group of all ranks, before Lightning would, which has them listen on every interface.

    Args:
        store: where the ranks find each other.
        count: number of ranks.
        device: the device of this rank.
        exchange: hands objects from rank to rank.
        interface: name of the interface of the network by which they talk; None: PyTorch finds one.
    """
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if interface is not None else ():
        os.environ.setdefault(name, str(interface))
    dist.init_process_group(dist.get_default_backend_for_device(device), store=store, rank=own_rank(), world_size=count)
    use_exchange(exchange)


def use_exchange(exchange: Exchange | None) -> None:
    """Let objects be handed over in a way; None: there is one rank."""
    global _exchange  # a process trains one model at a time
    _exchange = exchange


def leave_group() -> None:
    """Forget the group: the next run of this process has one of its own."""
    use_exchange(None)
    if dist.is_initialized():
        dist.destroy_process_group()


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
    return [value] if _exchange is None else _exchange.gather(value)


def broadcast_from_rank0(tensors: Iterable[torch.Tensor]) -> None:
    """Overwrite each tensor with the values that rank 0 has."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def value_of_rank0(value: Any) -> Any:
    """Return the value that rank 0 has, in every rank."""
    return value if _exchange is None else _exchange.of_rank0(value)


def bytes_of_rank0(path: Path) -> bytes | None:
    """Return the content of a file that rank 0 reads for ranks on other machines, in every rank; None: each reads it by itself."""
    if not isinstance(_exchange, GroupExchange):
        return None
    return _exchange.bytes_of_rank0(path.read_bytes() if own_rank() == 0 else b"")
