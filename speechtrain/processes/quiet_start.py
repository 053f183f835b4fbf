"""Lets Ctrl-C end a command without a stack trace while it imports what it needs; imported first, and only for that.

When a command listens to signals itself (`interrupts.py`) this is over. A program that imports the package is left as it is.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

_COMMAND = bool(sys.argv) and (sys.argv[0] == "-m" or Path(sys.argv[0]).name == "speechtrain")
"""Whether Python looks for a module to run, when it calls itself so, or runs our program."""

if _COMMAND and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
