"""Ctrl-C, and a scheduler's SIGTERM, which ends a run as Ctrl-C does.

Python raises an interrupt wherever the main thread happens to be. Inside a finalizer, a callback of the garbage collector or a generator
that is being closed it is lost, and printed with a stack trace; a library may take it for an error of its own. So it is also remembered,
and a run checks for it after each batch and between its steps; a command prints no such trace. While it is written down how a run has ended
an interrupt waits.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

EXIT_CODE = 130

REPORTED = "reported"
"""Note of a KeyboardInterrupt of which the user has been told."""

_remembered = False


def listen(*signals: signal.Signals) -> None:
    """Let signals (SIGINT and SIGTERM if none is named) interrupt the main thread, which calls this; one that is ignored stays so."""
    for number in signals or (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup, or a shell that starts something in the background, leaves it
            signal.signal(number, _interrupt)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    _remember(_number, _frame)
    raise KeyboardInterrupt


def _remember(_number: int, _frame: FrameType | None) -> None:
    global _remembered  # a process has one set of handlers
    _remembered = True


def check() -> None:
    """Raise the last interrupt, if it was lost where it was raised, or came while it had to wait.

    Raises:
        KeyboardInterrupt: a signal came since this was called last.
    """
    if forget():
        raise KeyboardInterrupt


def is_waiting() -> bool:
    """Return whether `check` would raise."""
    return _remembered


def forget() -> bool:
    """Forget an interrupt that is being dealt with, and return whether there was one."""
    global _remembered
    before, _remembered = _remembered, False
    return before


@contextmanager
def deferred() -> Iterator[None]:
    """Let interrupts wait for `check` while the block runs, which does not last long and must not be left half done."""
    handlers = _only_remember()
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _only_remember() -> dict[signal.Signals, signal.Handlers]:
    """Set what remembers signals in place of what raises an interrupt; return what was there."""
    found: dict[signal.Signals, signal.Handlers] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            handler = signal.getsignal(number)
            if handler in (_interrupt, signal.default_int_handler):
                found[number] = handler  # type: ignore[assignment] # a function, which `signal.signal` takes as well
                signal.signal(number, _remember)
    return found


@contextmanager
def command() -> Iterator[None]:
    """Interrupt a command by SIGINT and SIGTERM while the block runs; one that comes when it has ended changes the exit code alone.

    Raises:
        KeyboardInterrupt: one came in the block and was lost there.
    """
    atexit.register(_exit_if_interrupted)  # the first to be registered is the last to be called
    listen()
    shown = sys.unraisablehook
    sys.unraisablehook = lambda lost: None if isinstance(lost.exc_value, KeyboardInterrupt) else shown(lost)
    try:
        yield
        check()
    finally:
        sys.unraisablehook = shown
        _only_remember()
        forget()


def _exit_if_interrupted() -> None:
    if _remembered:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # it is closed, or its disk is full
                stream.flush()
        os._exit(EXIT_CODE)
