"""A Ray cluster of several nodes on this machine: tells its address and the processes of its nodes, and kills those that it is told to.

`RayNodes` starts this file as a process of its own, for Ray's threads do not go with the forks that tests are made of.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

VARIABLES = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
"""Variables of the cluster and of those that connect to it."""


class RayNodes:
    """The cluster, as a test sees it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        told = self._read()
        self.address: str = told["address"]
        self._raylets: list[int] = told["raylets"]
        self._size = len(self._raylets)
        self._killed: set[int] = set()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the cluster has not started"
        return json.loads(line)

    def kill(self, node: int) -> None:
        """Kill a node, counted from 0, as if its machine went away; nothing happens to one that was killed before."""
        if node not in self._killed:
            self._ask(f"kill {node}")
            self._killed.add(node)

    def refill(self) -> None:
        """Start a node for each that was killed."""
        for _ in range(len(self._killed) - (len(self._raylets) - self._size)):
            self._raylets.append(self._ask("add 1"))

    def _ask(self, text: str) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{text}\n")
        self._process.stdin.flush()
        return self._read()

    def node_of(self, pid: int) -> int:
        """The node whose process a job is."""
        parents = [parent.pid for parent in psutil.Process(pid).parents()]
        return next(node for node, raylet in enumerate(self._raylets) if raylet in parents)


@contextmanager
def ray_nodes(*cpus: int) -> Iterator[RayNodes]:
    """Start a cluster with a node for each number of CPUs, the first of which is the head, that is never killed."""
    command = [sys.executable, str(Path(__file__)), *map(str, cpus)]
    env = {**os.environ, **VARIABLES}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            yield RayNodes(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(30)
            finally:
                for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
                    child.kill()
                process.kill()


def tell(value: Any) -> None:
    sys.stdout.write(f"{json.dumps(value)}\n")
    sys.stdout.flush()


def main() -> None:
    from ray._private.ray_constants import PROCESS_TYPE_RAYLET
    from ray.cluster_utils import Cluster

    sizes = [int(text) for text in sys.argv[1:]]
    memory = {"object_store_memory": 80_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": sizes[0], "include_dashboard": False, **memory})
    nodes = [cluster.head_node, *(cluster.add_node(num_cpus=size, **memory) for size in sizes[1:])]
    raylets = [node.all_processes[PROCESS_TYPE_RAYLET][0].process.pid for node in nodes]
    tell({"address": cluster.address, "raylets": raylets})
    for line in sys.stdin:
        word, number = line.split()
        if word == "kill":
            cluster.remove_node(nodes[int(number)], allow_graceful=False)
            tell(None)
        else:
            nodes.append(cluster.add_node(num_cpus=int(number), **memory))
            tell(nodes[-1].all_processes[PROCESS_TYPE_RAYLET][0].process.pid)
    cluster.shutdown()


if __name__ == "__main__":
    main()
