"""Where the processes that a launcher has started meet: rank 0 hands out what is to be trained, the others say how it went.

What is handed over here is JSON. It is not signed: whoever reaches the port may write it, so that those who read it build nothing that
was not typed where they are, see `training/distributed.py`. The launcher's own store only says where rank 0 listens: torchrun keeps it when
it starts the processes again, with what those before them have written.
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import psutil
import torch.distributed as dist

from speechtrain.console import errors
from speechtrain.errors import RunError, first_line
from speechtrain.processes.launch_environment import LAUNCHER_VARIABLE, Launch

LOOPBACK = "127.0.0.1"
_PLACE = "speechtrain/place"
_NAME = "name"
_END = "end"
_JOIN_TIMEOUT = timedelta(minutes=15)
"""How long a process may come after the others: programs and images are loaded on some machines before others."""
_TRIES_SECONDS = 5.0
_TOLD_SECONDS = 30.0
"""After which a process that waits for others says so."""
_ENDING_SECONDS = 3.0
"""That rank 0 waits, when a training has failed, for the others to know."""
_ACKNOWLEDGE_SECONDS = 10.0
"""That a process which has failed waits for rank 0 to take note, before it ends and the launcher with it."""


@dataclass(frozen=True)
class ProcessInfo:
    """Holds what a process tells rank 0 of itself.

    Attributes:
        rank, node, local_rank: see `Launch`.
        machine: what has an address of its own, see `launched.machine`.
        host: name of the machine, for people.
        address: its address on the way to rank 0.
        arguments: what was typed.
        version: of the package.
        begun: folder of the run that the launch had begun before, as this machine knows it; None: none.
    """

    rank: int
    node: int
    local_rank: int
    machine: str
    host: str
    address: str
    arguments: Sequence[str]
    version: str
    begun: str | None


@dataclass(frozen=True)
class Order:
    """Holds what rank 0 has the others train.

    Attributes:
        config: the run's config as YAML.
        folder: the run's folder, which other machines need not see.
        resume_from: the checkpoint that it goes on from; rank 0 reads it for all.
        data: the number and the fingerprint of the utterances of each split, and of the vocabulary, which all must have.
        nodes: number of machines.
        loopback: whether all are on one machine, and meet on its loopback interface.
        key: `Launch.key` of rank 0, by which it notes the run.
    """

    config: str
    folder: str
    resume_from: str | None
    data: Mapping[str, tuple[int, str]]
    nodes: int
    loopback: bool
    key: str | None


KINDS = ("user", "run", "defect", "lost")
"""Whose mistake it is that a process ended: the user's, the run's, ours, or that of another process, to which it lost its connection."""


@dataclass(frozen=True)
class Failure:
    """Holds how a process ended early.

    Attributes:
        kind: one of `KINDS`.
        message: what is told, with the machine in front.
    """

    rank: int
    kind: str
    message: str


class Rendezvous:
    """Connects a process with rank 0, or rank 0 with all.

    Args:
        launch: which process this is.
        store: where rank 0 listens.
        processes: of all processes, in their order; in the others than rank 0 only their own.
    """

    def __init__(self, launch: Launch, store: Any, processes: Sequence[ProcessInfo]) -> None:
        self.launch = launch
        self.store = store
        self.processes = processes
        self.last: Order | None = None  # that this process follows
        self.has_begun = False
        """Whether all have begun what was ordered last."""
        self.number = 0
        """Number of the last order, which is also that of the group that trains."""

    # --- rank 0 -----------------------------------------------------------------------------------------------------------------------

    @classmethod
    def lead(cls, launch: Launch, own: ProcessInfo) -> Rendezvous:
        """Open the rendezvous as rank 0, and wait until all processes have come.

        Raises:
            RunError: some have not come in a quarter of an hour, or there is no way to the launcher's store.
        """
        try:
            outer = _launchers_store(launch) if _has_store() else _listening(launch, launch.port)
            store = _listening(launch, 0)
            name = uuid.uuid4().hex
            store.set(_NAME, name)
            outer.set(_PLACE, json.dumps({"port": store.port, "name": name, "launch": _launch_name(launch)}))
        except (OSError, dist.DistError, RuntimeError) as error:
            raise _not_reached(launch, error, "set MASTER_PORT to a free one on all machines, if another program has this one") from error
        rendezvous = cls(launch, store, [own])
        rendezvous.processes = [own, *(ProcessInfo(**rendezvous._awaited(f"process/{rank}", rank)) for rank in range(1, launch.count))]
        return rendezvous

    def _awaited(self, key: str, rank: int) -> Any:
        start, told = time.monotonic(), False
        while not self.store.check([key]):
            waited = time.monotonic() - start
            if waited > _JOIN_TIMEOUT.total_seconds():
                raise RunError(f"process {rank} of {self.launch.count} has not come; look at what {self.launch.launcher} says of it")
            if waited > _TOLD_SECONDS and not told:
                told = True
                way_out = f"{self.launch.launcher} says that there are so many; {LAUNCHER_VARIABLE}=none has this one train alone"
                errors.print(f"waiting for process {rank} of {self.launch.count} ({way_out})", style="dim", markup=False)
            time.sleep(0.05)
        return json.loads(self.store.get(key))

    @property
    def nodes(self) -> int:
        """Return the number of machines, as the launcher counts them; in the others than rank 0, as the last order has it."""
        return len({each.node for each in self.processes}) if self.last is None else self.last.nodes

    @property
    def local_count(self) -> int:
        """Return the number of processes of each machine."""
        return self.launch.count // self.nodes

    @property
    def on_one_machine(self) -> bool:
        """Return whether no process is on another machine."""
        return len({each.machine for each in self.processes}) == 1 if self.last is None else self.last.loopback

    def order(self, order: Order) -> None:
        """Have all processes train what rank 0 trains next."""
        self.number += 1
        self.store.set(f"order/{self.number}", json.dumps(asdict(order)))

    def ready(self) -> None:
        """Tell that this process can begin what was ordered last."""
        self.store.set(f"ready/{self.number}/{self.launch.rank}", "")

    def are_ready(self) -> bool:
        """Return whether all processes can begin what was ordered last."""
        return bool(self.store.check([f"ready/{self.number}/{rank}" for rank in range(1, self.launch.count)]))

    def failure(self) -> Failure | None:
        """Return the cause of the processes that have failed in what was ordered last, as far as they have said; None: none has."""
        keys = [f"failure/{self.number}/{rank}" for rank in range(1, self.launch.count)]
        failures = [Failure(**json.loads(self.store.get(key))) for key in keys if self.store.check([key])]
        return min(failures, key=lambda each: KINDS.index(each.kind), default=None)

    def acknowledge(self) -> None:
        """Let the processes that have failed end."""
        self.store.set(f"acknowledged/{self.number}", "")

    def end(self, code: int) -> None:
        """Let all processes end with an exit code; those that are still at work lose their connection soon afterwards."""
        self.store.set(_END, str(code))
        at_work = code != 0 and self.number > 0  # they wait for messages that will not come, and see that this process is gone
        until = time.monotonic() + (_ENDING_SECONDS if at_work else _TOLD_SECONDS)
        keys = [f"ended/{rank}" for rank in range(1, self.launch.count)]
        while time.monotonic() < until and not self.store.check(keys):
            time.sleep(0.02)

    # --- the others -------------------------------------------------------------------------------------------------------------------

    @classmethod
    def join(cls, launch: Launch, own: ProcessInfo) -> Rendezvous:
        """Come to the rendezvous that rank 0 opens.

        Raises:
            RunError: there is none within a quarter of an hour, or that of another launch is in its place.
        """
        until = time.monotonic() + _JOIN_TIMEOUT.total_seconds()
        outer: Any = None
        while time.monotonic() < until:
            try:
                outer = outer or _client(_outer_address(launch), launch.port)
                place = json.loads(outer.get(_PLACE)) if outer.check([_PLACE]) else None
                if place is not None and place.get("launch") != _launch_name(launch):
                    message = f"{launch.address}:{launch.port} is where the processes of another launch meet ({place.get('launch')!s:.100})"
                    raise RunError(f"{message}\n    -> set MASTER_PORT to another for each launch, on all machines")
                if place is not None and (store := _connected(launch, place)) is not None:
                    store.set(f"process/{launch.rank}", json.dumps(asdict(own)))
                    return cls(launch, store, [own])
            except (OSError, dist.DistError):  # rank 0 does not listen yet, or is gone again
                outer = None
            time.sleep(0.1)
        raise RunError(f"process 0 of {launch.count} has not come; look at what {launch.launcher} says of it")

    def next_order(self) -> Order | int:
        """Wait for what is to be trained next, however long rank 0 takes to prepare it; an exit code when all is done.

        Raises:
            RunError: rank 0 has ended without a word.
        """
        key = f"order/{self.number + 1}"
        try:
            while not self.store.check([key]):
                if self.store.check([_END]):
                    code = int(self.store.get(_END))
                    self.store.set(f"ended/{self.launch.rank}", "")
                    return code
                time.sleep(0.05)
            content = json.loads(self.store.get(key))
        except dist.DistError as error:
            raise RunError("process 0 has ended without a word") from error
        self.number += 1
        self.has_begun = False
        self.last = Order(**content)
        return self.last

    def fail(self, kind: str, message: str) -> None:
        """Tell rank 0 why this process does not go on, and give it the time to say so before the launcher ends it."""
        failure = Failure(self.launch.rank, kind, message)
        try:
            self.store.set(f"failure/{self.number}/{self.launch.rank}", json.dumps(asdict(failure)))
            until = time.monotonic() + _ACKNOWLEDGE_SECONDS
            while time.monotonic() < until and not self.store.check([f"acknowledged/{self.number}"]) and not self.store.check([_END]):
                time.sleep(0.05)
        except dist.DistError:  # rank 0 is gone
            return


_meeting: Rendezvous | None = None


def current() -> Rendezvous | None:
    """Return the rendezvous that this process has come to; None: no launcher has started it with others."""
    return _meeting


def set_current(rendezvous: Rendezvous | None) -> None:
    """Make a rendezvous the current one of this process."""
    global _meeting  # a process belongs to one launch
    _meeting = rendezvous


def _has_store() -> bool:
    """Return whether the launcher has a store of its own, as torchrun's agents do."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _launch_name(launch: Launch) -> str:
    return f"{launch.name}, {launch.count} processes"


def _launchers_store(launch: Launch) -> Any:
    """Connect to the launcher's store as rank 0.

    Raises:
        OSError, DistError: it is not reached in a quarter of an hour.
    """
    until = time.monotonic() + _JOIN_TIMEOUT.total_seconds()
    while True:
        try:
            return _client(_outer_address(launch), launch.port)
        except (OSError, dist.DistError):
            if time.monotonic() > until:
                raise
        time.sleep(0.1)


def _outer_address(launch: Launch) -> str:
    return LOOPBACK if launch.single_machine and not _has_store() else launch.address


def _client(address: str, port: int) -> Any:
    """Connect to a store without waiting for one in C++, where no interrupt is seen.

    Raises:
        OSError, DistError: there is none.
    """
    socket.create_connection((address, port), _TRIES_SECONDS).close()
    options: dict[str, Any] = {"wait_for_workers": False, "timeout": timedelta(seconds=_TRIES_SECONDS)}
    return dist.TCPStore(address, port, is_master=False, **options)  # type: ignore[attr-defined]


def _not_reached(launch: Launch, error: Exception, fix: str) -> RunError:
    message = f"{launch.address}:{launch.port}, where the processes of {launch.launcher} meet, is not available"
    return RunError(f"{message} ({first_line(error, most=200)})\n    -> {fix}")


def _listening(launch: Launch, port: int) -> Any:
    """Open a store at a port, any that is free for 0, on the interface by which the others reach this machine.

    Raises:
        OSError: another program has the port.
    """
    listener = _listener(launch, port)
    number, address = listener.getsockname()[1], listener.getsockname()[0]
    options: dict[str, Any] = {"wait_for_workers": False, "timeout": _JOIN_TIMEOUT, "use_libuv": False}
    reached = LOOPBACK if ipaddress.ip_address(address).is_unspecified else address
    return dist.TCPStore(reached, number, is_master=True, master_listen_fd=listener.detach(), **options)  # type: ignore[attr-defined]


def _listener(launch: Launch, port: int) -> socket.socket:
    """Listen on the address by which the others reach this machine; on all where that is the address of something before it."""
    address = LOOPBACK if launch.single_machine else _address_of(launch.address)
    try:
        return _server(address, port)
    except OSError:
        if launch.single_machine or not address:
            raise
        return _server("", port)  # MASTER_ADDR is that of a container's host, for example


def _server(address: str, port: int) -> socket.socket:
    return socket.create_server((address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET)


def _address_of(name: str) -> str:
    """Return the address to listen on that other machines find by a name; empty (all): only they know it."""
    try:
        found = ipaddress.ip_address(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
    except (OSError, ValueError):
        return ""
    typed = name == "localhost" or name == str(found)
    return "" if found.is_loopback and not typed else str(found)  # many machines know their own name as a loopback address


def _connected(launch: Launch, place: Mapping[str, Any]) -> Any:
    """Return the store of rank 0; None: it is that of an earlier attempt, and gone."""
    try:
        store = _client(LOOPBACK if launch.single_machine else launch.address, int(place["port"]))
        if not store.check([_NAME]) or store.get(_NAME).decode() != place["name"]:
            return None
    except (OSError, dist.DistError):
        return None
    store.set_timeout(_JOIN_TIMEOUT)
    return store


def own_address(towards: str) -> str:
    """Return the address that this machine has on the way to another; an empty text: there is no way."""
    try:
        family, kind, _, _, place = socket.getaddrinfo(towards, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(place)  # sends nothing
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def interface_of(address: str) -> str | None:
    """Return the name of the network interface that has an address; None: none has."""
    named = (name for name, addresses in psutil.net_if_addrs().items() if any(each.address == address for each in addresses))
    return next(named, None)
