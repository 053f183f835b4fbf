"""The process that workers are forked from: it imports once what each of them would import, and then forks one for each request.

A fork has the memory and one thread of its parent, so it is safe only where there is nothing else: no other thread, no open file or device
(a GPU's driver holds one as soon as CUDA is initialised), and no framework that keeps state of its own. `hazard` looks for these after the
imports and before each fork, for resolvers of the program run here as well, and the pool starts its workers cold from the first one on.
`starting.py` is the other side.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

from speechtrain.errors import counted
from speechtrain.sweep.trial.runner import JobRunner
from speechtrain.sweep.workers.messages import Fork, Preload, Ready, receive, send

NEVER_FORKED = ("keras", "tensorflow", "jax", "ray")
"""Packages that start threads or choose an engine when they are first used; whoever needs them imports them in the worker."""

SAFE_THREADS = ("jemalloc_bg_thd",)
"""Names of threads whose library takes care of forks itself: jemalloc's, which pyarrow, and so pandas, starts."""


def serve_forks(connection: Connection, run_worker: Callable[[Connection, JobRunner | None], None]) -> None:
    """Import what is asked for and fork workers until the connection is closed; returns in neither of them.

    Args:
        connection: connection with the pool.
        run_worker: what a worker does.
    """
    files = open_files()
    preload = receive(connection)
    assert isinstance(preload, Preload)
    runner, problem = None, None
    try:
        runner = _import_all(preload)
        problem = hazard(files)
    except Exception as error:  # noqa: BLE001 # the workers will meet it, one by one, and say so
        problem = f"{type(error).__name__}: {error}"
    gc.collect()
    gc.freeze()  # a collection would write to memory that the workers share
    with contextlib.suppress(OSError, EOFError):
        send(connection, Ready(problem))
        while True:
            request = receive(connection)
            assert isinstance(request, Fork)
            if runner is not None:
                runner.compose_base(request.overrides)
            problem = hazard(files, "the resolvers of a job's config")
            _flush()
            with socket.socket(fileno=os.dup(connection.fileno())) as channel:
                _, descriptors, _, _ = socket.recv_fds(channel, 1, 2)
            if problem is not None:
                os.write(descriptors[0], problem.encode()[:4000])
            elif between := os.fork():
                os.waitpid(between, 0)
            else:
                _fork_again(request, connection, descriptors, lambda theirs: run_worker(theirs, runner))
            for descriptor in descriptors:
                os.close(descriptor)
    os._exit(0)


def _import_all(preload: Preload) -> JobRunner | None:
    """Import what workers need, and return what runs their jobs if that does not depend on their environment."""
    sys.path[:] = preload.path
    for name in preload.modules:
        importlib.import_module(name)
    return JobRunner(preload.setup.apply()) if preload.setup is not None else None


def open_files() -> set[str]:
    """Return the files, devices and sockets that this process has open."""
    folder = Path("/proc/self/fd")
    names = set()
    for entry in folder.iterdir():
        with contextlib.suppress(OSError):  # the one that lists the folder is closed by now
            names.add(f"{entry.name} {entry.readlink()}")
    return names


def hazard(files: set[str], cause: str = "the imports") -> str | None:
    """Return why this process must not be forked; None if it may be.

    Args:
        files: what it had open before it imported anything.
        cause: what has brought about what is found, as the subject of a sentence.
    """
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    if threads := sum(name not in SAFE_THREADS for name in names) - 1:
        return f"{cause} have started {counted(threads, 'thread')}"
    if opened := open_files() - files:
        return f"{cause} have opened {', '.join(sorted(name.partition(' ')[2] for name in opened))}"
    if found := [name for name in NEVER_FORKED if name in sys.modules]:
        return f"{cause} have loaded {', '.join(found)}"
    return None


def _fork_again(request: Fork, connection: Connection, descriptors: list[int], run_worker: Callable[[Connection], None]) -> None:
    """Fork the worker and end, so that it becomes a child of the process that asks."""
    between = os.getpid()
    if os.fork():
        os._exit(0)
    code = 1
    try:
        while os.getppid() == between:
            time.sleep(0.0005)
        if os.getppid() == request.parent:  # otherwise it has died
            reply, theirs = descriptors
            connection.close()
            os.setsid()  # Ctrl-C must reach only the sweeper, which then ends its workers
            _take_environment(request.environment)
            os.write(reply, b"%d" % os.getpid())
            os.close(reply)
            run_worker(Connection(theirs))
            code = 0
    except BaseException:  # noqa: BLE001 # as Python itself does where nobody is left to handle it
        traceback.print_exc()
    finally:
        _flush()
        os._exit(code)


def _flush() -> None:
    """Write what was printed; a fork would print it once more."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()


def _take_environment(environment: Mapping[str, str]) -> None:
    """Give this process what a process that starts with an environment of its own has: threads, and random numbers."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ.update(environment)
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads is not None and threads != before:
        from threadpoolctl import threadpool_limits  # there, or `starting.py` would not have asked

        threadpool_limits(int(threads))  # OpenMP and BLAS have read the number while they were loaded
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(int(threads))
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
