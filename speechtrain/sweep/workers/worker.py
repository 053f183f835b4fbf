"""The process of one worker, which runs jobs for the pool: `python -m speechtrain.sweep.workers.worker FD`.

It stays alive between jobs, so that frameworks are imported once. Its messages are in `messages.py`. With `fork` behind the number the
process is the server that workers are forked from (`fork_server.py`), with `bound` it is killed when its standard input ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path

from speechtrain.addresses import guard_outputs
from speechtrain.processes import interrupts
from speechtrain.sweep.trial.runner import JobRunner
from speechtrain.sweep.workers.fork_server import serve_forks
from speechtrain.sweep.workers.messages import JobEnded, JobStarted, Setup, StartJob, receive, send
from speechtrain.sweep.workers.starting import BOUND


def serve(connection: Connection, runner: JobRunner | None = None) -> None:
    """Run jobs until the pool closes the connection; without a runner, the pool sends the setup of one first."""
    if runner is None:
        setup = receive(connection)
        assert isinstance(setup, Setup)
        runner = JobRunner(setup.apply())
    while True:
        try:
            message = receive(connection)
        except EOFError:
            return
        assert isinstance(message, StartJob)
        _redirect_output(message.log_file)
        with contextlib.suppress(OSError):
            send(connection, JobStarted())
        outcome, returned = runner.run(message.job, message.composed)
        if outcome.trace:
            sys.stderr.write(outcome.trace)
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            send(connection, JobEnded(outcome, returned if message.wants_return else None))
        except OSError:  # the pool is gone; a trial has recorded its result itself
            return


def _redirect_output(path: Path) -> None:
    """Append all that this process and its children print from now on to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    sys.stdout.flush()
    sys.stderr.flush()
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)


def work(connection: Connection, runner: JobRunner | None = None) -> None:
    """Be a worker until the pool closes the connection, or the process is told to end."""
    guard_outputs()
    interrupts.listen(signal.SIGTERM)
    assert threading.current_thread() is threading.main_thread()
    with contextlib.suppress(KeyboardInterrupt):
        serve(connection, runner)


def _end_with_input() -> None:
    """Have this process killed when the other end of its standard input is closed, however that happens; jobs find it empty."""
    lifeline = os.dup(0)
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)

    def wait() -> None:
        os.read(lifeline, 1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    """Serve the connection whose file descriptor is the first argument, as a worker or as the server that forks them."""
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)
    if sys.argv[2:] == ["fork"]:
        serve_forks(Connection(descriptor), work)
    if sys.argv[2:] == [BOUND]:
        _end_with_input()
    work(Connection(descriptor))
    sys.stdout.flush()
    os._exit(0)  # libraries that hang in their finalizers do not hold the sweep up


if __name__ == "__main__":
    main()
