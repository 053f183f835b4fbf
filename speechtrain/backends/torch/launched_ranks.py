"""The ranks of a training that a launcher has started, torchrun or Slurm: how they begin and end together."""

from __future__ import annotations

import _thread
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING

import lightning.pytorch as pl
import torch
import torch.distributed as dist

from speechtrain.backends.torch.devices import join_group, leave_group
from speechtrain.backends.torch.exchange import Exchange, GroupExchange
from speechtrain.backends.torch.rendezvous import LOOPBACK, Failure, Rendezvous, interface_of, own_address
from speechtrain.errors import RunError, UserError, first_line

if TYPE_CHECKING:
    from typing import NoReturn

_LOST_SECONDS = 3.0
"""That rank 0 waits, when its connections are gone, for a rank to say why it has ended."""


class LaunchedRanks(pl.Callback):
    """Makes one group of the ranks while a block runs.

    Args:
        rendezvous: where they meet.
        device: the device of this rank.
    """

    def __init__(self, rendezvous: Rendezvous, device: torch.device) -> None:
        self._meeting = rendezvous
        self._device = device
        self._ended = threading.Event()
        self._interrupting = threading.Lock()  # no interrupt may come once the end was noticed in another way
        self._failure: Failure | None = None

    @property
    def _leads(self) -> bool:
        return self._meeting.launch.rank == 0

    def __enter__(self) -> None:
        rendezvous = self._meeting
        if self._leads:
            self._await_ranks()
        else:
            rendezvous.ready()
        count = rendezvous.launch.count
        store = dist.PrefixStore(f"group/{rendezvous.number}", rendezvous.store)  # type: ignore[attr-defined]
        exchange: Exchange = GroupExchange(self._device, rendezvous.launch.rank, count)
        try:
            join_group(store, count, self._device, exchange, self._interface())
        except BaseException as error:
            leave_group()
            if isinstance(error, (RuntimeError, ValueError)):  # of Gloo and NCCL
                fix = "look at the network between the machines (GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name its interface)"
                raise RunError(f"the {count} processes cannot reach each other ({first_line(error, most=200)})\n    -> {fix}") from error
            raise
        rendezvous.has_begun = True
        if self._leads:
            threading.Thread(target=self._watch, daemon=True).start()

    def _await_ranks(self) -> None:
        """Wait until all ranks have read their data and built the model.

        Raises:
            UserError, RunError: one of them cannot.
        """
        while not self._meeting.are_ready():
            if (failure := self._meeting.failure()) is not None:
                self._raise(failure)
            time.sleep(0.05)

    def _interface(self) -> str | None:
        """Return the name of the interface by which this machine reaches the others; None: PyTorch finds one."""
        rendezvous = self._meeting
        if rendezvous.on_one_machine:
            return interface_of(LOOPBACK)
        own = rendezvous.processes[0]
        others = [each for each in rendezvous.processes if each.machine != own.machine]
        address = own_address(others[0].address if others else rendezvous.launch.address)
        return interface_of(address) if not address.startswith("127.") else None

    def _watch(self) -> None:
        while not self._ended.wait(0.5):
            failure = self._meeting.failure()
            if failure is not None and failure.kind != "lost":
                with self._interrupting:
                    if not self._ended.is_set():
                        self._failure = failure
                        self._meeting.acknowledge()
                        _thread.interrupt_main()  # which waits for a message that will never come
                return

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Find out which rank was the first to end, before Lightning waits for it."""
        if self._leads and self._failure is None and isinstance(exception, RuntimeError) and is_lost(exception):
            self._failure = self._cause(exception)
        self._end()

    def _cause(self, error: BaseException) -> Failure:
        """Return what the rank says that has ended first; if it cannot say anything, that its connection is lost."""
        until = time.monotonic() + _LOST_SECONDS
        failure = self._meeting.failure()
        while (failure is None or failure.kind == "lost") and time.monotonic() < until:
            time.sleep(0.05)
            failure = self._meeting.failure()
        if failure is not None and failure.kind != "lost":
            return failure
        launcher = self._meeting.launch.launcher
        return Failure(0, "lost", f"a process of the training has ended ({first_line(error, most=120)}); {launcher} says which")

    def _end(self) -> None:
        with self._interrupting:
            self._ended.set()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Leave the group.

        Raises:
            UserError, RunError: another rank ended early.
        """
        self._end()
        leave_group()
        if self._leads and self._failure is not None and not isinstance(error, (UserError, RunError)):
            self._raise(self._failure, error)

    def _raise(self, failure: Failure, cause: BaseException | None = None) -> NoReturn:
        self._meeting.acknowledge()
        raise (UserError if failure.kind == "user" else RunError)(failure.message) from cause


def is_lost(error: BaseException) -> bool:
    """Return whether an error says that the connection to another rank is gone."""
    text = str(error)
    return isinstance(error, (RuntimeError, dist.DistError)) and any(
        word in text for word in ("Connection closed", "Connection reset", "Broken pipe", "gloo", "NCCL", "Gloo")
    )
