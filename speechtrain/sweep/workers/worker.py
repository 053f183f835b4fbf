"""A process that runs one job after another, so that frameworks are imported once: `python -m speechtrain.sweep.workers.worker FD`.

It gets its program and its jobs through a connection. When nobody is at the other end any more it finishes the job it has, and goes.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cloudpickle
from hydra.core.singleton import Singleton

from speechtrain.processes import interrupts
from speechtrain.sweep.trial.outcome import Job, Outcome
from speechtrain.sweep.trial.runner import Program, Runner, run_to_outcome

STARTED = b"started"
"""What a worker answers when it begins a job; its time runs from then on."""


def serve(connection: Connection) -> None:
    """Run jobs until the other end closes."""
    setup: dict[str, Any] = cloudpickle.loads(connection.recv_bytes())
    sys.path[:] = setup["path"]
    program: Program = cloudpickle.loads(setup["program"])
    Singleton.set_state(setup["singletons"])
    runner = Runner(program)
    while True:
        try:
            job: Job
            job, log = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        _write_to(Path(log))
        with contextlib.suppress(OSError):
            connection.send_bytes(STARTED)
        outcome, returned = run_to_outcome(runner, job)
        if outcome.trace:
            sys.stderr.write(outcome.trace)
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            connection.send_bytes(_packed(outcome, returned if setup["wants_returns"] else None))
        except OSError:  # nobody waits for it; the job has recorded its result itself
            return


def _packed(outcome: Outcome, returned: Any) -> bytes:
    """The outcome as bytes; a value that cannot be pickled is told by its text."""
    with contextlib.suppress(Exception):
        return bytes(cloudpickle.dumps((outcome, returned)))
    plain = Outcome(outcome.number, outcome.ending, repr(outcome.value), outcome.reason, outcome.trace, outcome.final, outcome.recorded)
    return pickle.dumps((plain, None))


def _write_to(path: Path) -> None:
    """All that this process and its children print goes to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)


def main() -> None:
    """Serve the connection whose number is the argument."""
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)
    interrupts.listen(signal.SIGTERM)
    assert threading.current_thread() is threading.main_thread()
    with contextlib.suppress(KeyboardInterrupt):
        serve(Connection(descriptor))
    sys.stdout.flush()
    os._exit(0)  # libraries that hang while they are taken down do not hold the sweep up


if __name__ == "__main__":
    main()
