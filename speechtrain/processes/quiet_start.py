"""Lets Ctrl-C end a command without a stack trace while it imports what it needs; imported first, and only for that.

When a command listens to signals itself (`interrupts.py`) this is over. A program that imports the package is left as it is.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path


def _is_command() -> bool:
    """Return whether Python runs our program, or looks for one of our modules to run: then the program is called `-m`."""
    if sys.argv[:1] != ["-m"]:
        return bool(sys.argv) and Path(sys.argv[0]).name == "speechtrain"
    modules = [name for option, name in zip(sys.orig_argv, sys.orig_argv[1:], strict=False) if option == "-m"]
    return bool(modules) and modules[0].partition(".")[0] == "speechtrain"


if _is_command() and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
