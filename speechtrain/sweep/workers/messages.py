"""The messages between the pool, its worker processes and the server that forks these, and how they are pickled.

The pool sends a worker one `Setup`, unless it was forked with it, then a `StartJob` for each job; the worker answers each with `JobStarted`
and `JobEnded`. When the pool closes the connection, or dies, the worker ends after the job it has. The server gets one `Preload`, says
`Ready`, and gets a `Fork` for each worker.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cloudpickle
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn

from speechtrain.errors import UserError, first_line
from speechtrain.sweep.space.compose import ComposedJob
from speechtrain.sweep.trial.outcome import Outcome, SweepJob
from speechtrain.sweep.trial.runner import Program

PRELOAD = "preload"
"""Attribute of a task function that returns, for the config of a sweep, the names of modules that its jobs import."""


@dataclass(frozen=True)
class Setup:
    """What a worker needs before its first job.

    Attributes:
        path: the pool's `sys.path`, in absolute folders; set before the program is unpickled.
        program: a pickled `Program`.
        singletons: state of Hydra's singletons.
        modules: names of the modules that the program says its jobs import.
    """

    path: list[str]
    program: bytes
    singletons: Any
    modules: tuple[str, ...] = ()

    @classmethod
    def of_this_process(cls, program: Program) -> Setup:
        """Describe this process, so that a worker imports and resolves as it does.

        Raises:
            UserError: the program's function uses what cannot be sent to another process.
        """
        path = [str(Path(item).absolute()) for item in sys.path]
        try:
            pickled = bytes(cloudpickle.dumps(program))
        except Exception as error:  # of whatever a program's own objects raise
            message = f"the job's function cannot be sent to the workers of the pool: {first_line(error)}"
            fix = "move what it uses into a module that it imports, or run trials in this process: hydra.sweeper.n_jobs=1"
            raise UserError(f"{message}\n    -> {fix}") from error
        modules = getattr(program.task_function, PRELOAD, lambda _config: ())(program.config)
        return cls(path, pickled, Singleton.get_state(), tuple(modules))

    def apply(self) -> Program:
        """Make this process like the one that was described, and return the program."""
        sys.path[:] = self.path
        program: Program = cloudpickle.loads(self.program)
        Singleton.set_state(self.singletons)
        return program


@dataclass(frozen=True)
class StartJob:
    """Asks a worker to run a job, with everything it prints in a file, and perhaps to return the whole `JobReturn`.

    A job whose config is not `composed` yet is composed by the worker.
    """

    job: SweepJob
    log_file: Path
    wants_return: bool = False
    composed: ComposedJob | None = None


@dataclass(frozen=True)
class JobStarted:
    """Tells the pool that the job's time runs from now on."""


@dataclass(frozen=True)
class JobEnded:
    """Tells the pool how the job ended; `returned` is Hydra's own return value, where it was asked for."""

    outcome: Outcome
    returned: JobReturn | None


@dataclass(frozen=True)
class Preload:
    """Tells the server what to import once for all workers.

    Attributes:
        path: folders that modules are imported from.
        modules: names of modules.
        setup: what a worker needs before its first job; None: each reads its own, for what it imports may depend on its environment.
    """

    path: list[str]
    modules: tuple[str, ...]
    setup: Setup | None


@dataclass(frozen=True)
class Ready:
    """Says that the imports are done, and why nothing is to be forked; None: workers may be forked."""

    problem: str | None


@dataclass(frozen=True)
class Fork:
    """Asks the server for a worker; the files of the reply and of the worker's connection follow.

    Attributes:
        parent: number of the process that asks, which becomes the worker's parent.
        environment: variables in which the worker's environment differs from the server's.
        overrides: command line of its first job, which the server composes for this and later workers.
    """

    parent: int
    environment: Mapping[str, str]
    overrides: Sequence[str]


Message = Setup | StartJob | JobStarted | JobEnded | Preload | Ready | Fork


def send(connection: Connection, message: Message) -> None:
    """Send a message; in one that cannot be pickled, the job's value is replaced by its text, and Hydra's return value is left out.

    Raises:
        OSError: nobody is at the other end.
    """
    connection.send_bytes(_packed(message))


def receive(connection: Connection) -> Message:
    """Wait for the next message.

    Raises:
        EOFError: the other end is closed.
        Exception: the message is broken off or cannot be unpickled.
    """
    message: Message = pickle.loads(connection.recv_bytes())
    return message


def can_be_pickled(value: object) -> bool:
    """Return whether a value can be pickled, and read back: an error whose class takes other arguments than it has cannot."""
    try:
        pickle.loads(cloudpickle.dumps(value))
    except Exception:
        return False
    return True


def _packed(message: Message) -> bytes:
    if isinstance(message, JobEnded) and not can_be_pickled(message):  # a program may return and raise anything
        outcome = message.outcome
        message = JobEnded(outcome if can_be_pickled(outcome) else replace(outcome, value=repr(outcome.value)), None)
    return bytes(cloudpickle.dumps(message))
