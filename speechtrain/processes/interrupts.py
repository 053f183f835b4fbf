"""Ctrl-C, and a scheduler's SIGTERM, which ends a run as Ctrl-C does.

Python raises an interrupt wherever the main thread happens to be. Inside a finalizer, a callback of the garbage collector or a generator
that is being closed it is printed and lost, and the training would go on. So it is also remembered, and a training checks for it after
each batch.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import NoReturn

_remembered = False


def listen(*signals: signal.Signals) -> None:
    """Let signals (SIGINT and SIGTERM if none is named) interrupt the main thread, which calls this; one that is ignored stays so."""
    for number in signals or (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup, or a shell that starts something in the background, leaves it
            signal.signal(number, _interrupt)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    global _remembered  # a process has one set of handlers
    _remembered = True
    raise KeyboardInterrupt


def check() -> None:
    """Raise the last interrupt, if it was lost where it was raised.

    Raises:
        KeyboardInterrupt: a signal came since this was called last.
    """
    global _remembered
    if _remembered:
        _remembered = False
        raise KeyboardInterrupt
