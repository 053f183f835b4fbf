"""What the other commands have in common: help, and a user's mistake told without a trace."""

from __future__ import annotations

import sys
from collections.abc import Callable

from speechtrain.console import console, errors
from speechtrain.errors import UserError


def run_command(help_text: str | None, call: Callable[[list[str]], int]) -> None:
    """Call with the command line's arguments and end with the exit code that is returned; `--help` prints the text instead."""
    arguments = sys.argv[1:]
    if any(item in ("-h", "--help") for item in arguments):
        console.print((help_text or "").strip(), markup=False)
        return
    try:
        sys.exit(call(arguments))
    except UserError as error:
        errors.print(str(error), style="red", markup=False)
        sys.exit(error.exit_code)
