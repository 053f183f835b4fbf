"""The Ray cluster of a sweep: reaches it, or starts one of its own, and says whether its nodes have what a trial asks for.

Ray is imported where it is used: `ray_actors.py` runs trials on the cluster, `ray_worker.py` is what runs on its nodes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from speechtrain.config.extras import require
from speechtrain.config.schemas.sweeps import RayOptions, bytes_of
from speechtrain.errors import ConfigError, Problem, UserError, counted, first_line
from speechtrain.sweep.workers.internals import knows_node_groups

log = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0
"""Time that a cluster has to answer; Ray itself would try for four minutes."""
_OBJECT_STORE_BYTES = 80_000_000
"""Memory for objects in a Ray of our own, near the least that Ray takes: what trials send are kilobytes."""
_VARIABLES = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
"""Variables of a Ray of our own where the user has not set them. The first is Ray's default, told at each start otherwise; the last
lets trials have the priority of the command, as under the pool, and not the lowest but four."""
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""With this a client of gRPC begins: HTTP/2's preface and a frame of settings without any (RFC 9113, 3.4)."""
_KEYS = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}


@dataclass(frozen=True)
class Node:
    """A machine of the cluster that is alive.

    Attributes:
        id: Ray's id of it.
        host: its name.
        resources: what it has in all, by Ray's names.
    """

    id: str
    host: str
    resources: Mapping[str, float]

    def has(self, asked: Mapping[str, float]) -> bool:
        """Return whether it could run a trial that asks for this, if nothing else ran there."""
        return all(self.resources.get(name, 0.0) >= amount for name, amount in asked.items())

    def __str__(self) -> str:
        """Return its name and what it has."""
        own = {name: amount for name, amount in self.resources.items() if name not in _INTERNAL and not name.startswith("node:")}
        return f"{self.host}: {in_words(own)}"


_INTERNAL = ("object_store_memory",)


def in_words(resources: Mapping[str, float]) -> str:
    """Return resources for people: `4 CPUs, 1 GPU, 16.0 GB of memory, 2 of 'licence'`."""
    parts = [_in_words(name, amount) for name, amount in resources.items() if amount or len(resources) == 1]
    return ", ".join(parts) or "nothing"


def _in_words(name: str, amount: float) -> str:
    if name == "memory":
        return f"{amount / 1e9:.1f} GB of memory"
    if name in _KEYS:
        return f"{amount:g} {name}{'' if amount == 1 else 's'}"
    return f"{amount:g} of '{name}'"


def asked_of(options: RayOptions) -> dict[str, float]:
    """Return what a trial asks for, by Ray's names."""
    asked = {"CPU": options.num_cpus, "GPU": options.num_gpus, "memory": float(bytes_of(options.memory) or 0), **(options.resources or {})}
    return {str(name): float(amount) for name, amount in asked.items() if amount}


def unmet(asked: Mapping[str, float], nodes: Sequence[Node]) -> ConfigError | None:
    """Return the error for resources that no node has; None: a node has them."""
    if any(node.has(asked) for node in nodes):
        return None
    there = "\n".join(f"    {node}" for node in nodes) or "    no node is there"
    fix = f"ask for less, or start a node that has it. The cluster has:\n{there}"
    problems: list[Problem] = []
    for name, amount in asked.items():
        most = max((node.resources.get(name, 0.0) for node in nodes), default=0.0)
        if amount > most:
            key = _KEYS.get(name, f"resources.{name}")
            message = f"a trial asks for {in_words({name: amount})}, and no node has more than {in_words({name: most})}"
            problems.append(Problem(f"hydra.launcher.{key}", message, fix if not problems else "as above"))
    return ConfigError(problems or [Problem("hydra.launcher", f"a trial asks for {in_words(asked)}, and no node has all of that", fix)])


class Cluster:
    """A connection with a Ray cluster.

    Args:
        options: `hydra.launcher`.

    Attributes:
        runtime_env: what each worker has to be started with; None: the connection says it for all.

    Raises:
        UserError: Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, options: RayOptions) -> None:
        require("hydra/launcher=ray", ["ray"])
        if options.address is None and "ray" not in sys.modules:  # which reads them when it is imported
            for name, value in _VARIABLES.items():
                os.environ.setdefault(name, value)
        import ray

        self.runtime_env: dict[str, Any] | None = None
        self._options = options
        self._is_own = not ray.is_initialized()
        if self._is_own:
            _connect(options)
        elif options.runtime_env:  # the program has connected by itself
            self.runtime_env = dict(options.runtime_env)

    def nodes(self) -> list[Node]:
        """Return the nodes that are alive."""
        import ray

        return [
            Node(str(node["NodeID"]), str(node["NodeManagerHostname"]), dict(node["Resources"])) for node in ray.nodes() if node["Alive"]
        ]

    def autoscales(self) -> bool:
        """Return whether nodes come when they are asked for, as the options or the cluster say."""
        if self._options.autoscales is not None:
            return self._options.autoscales
        return knows_node_groups()

    def close(self) -> None:
        """Leave the cluster; one of our own ends."""
        if self._is_own:
            import ray

            ray.shutdown()


def _connect(options: RayOptions) -> None:
    """Connect this process with the cluster that the options name.

    Raises:
        UserError: it cannot be reached, or refuses.
    """
    import ray

    address = options.address
    named = os.environ.get("RAY_ADDRESS") if address == "auto" else address
    if named and named != "auto":
        _check_that_it_answers(named)
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, **(options.init or {})}
    if options.runtime_env:
        settings["runtime_env"] = dict(options.runtime_env)
    if address is None:
        settings = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES, **settings}
    try:
        with _signals_kept():
            ray.init(address=address or "local", **settings)
    except Exception as error:  # of whatever Ray raises
        at = "of this machine" if address == "auto" else f"at {address}"
        where = "Ray cannot be started here" if address is None else f"the Ray cluster {at} cannot be used"
        raise UserError(f"hydra.launcher: {where}: {_reason(error)}\n    -> {_fix(options, error)}") from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)[:400]}"


def _fix(options: RayOptions, error: Exception) -> str:
    address = options.address
    text = str(error).lower()
    words = ("runtime_env", "runtime env", "working_dir", "py_modules", "package")
    if any(word in text for word in words) or (options.runtime_env and isinstance(error, ValueError)):
        return "look at hydra.launcher.runtime_env"
    if "keyword" in text or isinstance(error, TypeError):
        return "look at hydra.launcher.init"
    if "version" in text:
        return "the same versions of Python and Ray are needed here and on the nodes"
    if "token" in text or "authenticat" in text:
        return "set RAY_AUTH_TOKEN, or copy ~/.ray/auth_token of the cluster's head"
    if address is None:
        return "look at hydra.launcher.init, and into /tmp/ray/session_latest/logs"
    if address == "auto":
        return "start one, as with `ray start --head`, or leave hydra.launcher.address out for a Ray of the sweep's own"
    return "HOST:PORT is for machines that are nodes of the cluster, ray://HOST:10001 for others"


def _check_that_it_answers(address: str) -> None:
    """Refuse an address at which nothing that speaks as Ray does answers within a short time.

    Raises:
        UserError: nothing does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    fix = "give hydra.launcher.address as `ray status` shows it there: HOST:6379 on a node of the cluster, ray://HOST:10001 from elsewhere"
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
                return
            connection.sendall(_HELLO)
            answer = connection.recv(9)
    except (OSError, OverflowError, UnicodeError, ValueError) as error:
        raise UserError(f"hydra.launcher.address: {address} cannot be reached: {error or type(error).__name__}\n    -> {fix}") from None
    if answer[3:4] != b"\x04":  # a server begins with its settings
        raise UserError(f"hydra.launcher.address: what answers at {address} is not Ray\n    -> {fix}")


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep the handlers of signals: Ray's own end the process where ours would interrupt the sweep."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


def room_for(asked: Mapping[str, float], nodes: Sequence[Node]) -> int:
    """Return how many trials the nodes have room for at a time, if nothing else runs there."""
    amounts = ([node.resources.get(name, 0.0) / amount for name, amount in asked.items()] for node in nodes)
    return sum(int(min(each) + 1e-9) if each else 10**6 for each in amounts)


def described(nodes: Sequence[Node]) -> str:
    """Return the nodes in a line: how many there are, and what they have together."""
    total = {name: sum(node.resources.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
    return f"{counted(len(nodes), 'node')} with {in_words({name: amount for name, amount in total.items() if amount})}"
