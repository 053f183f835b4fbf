"""What the commands besides training have in common: `--help`, `--version`, and errors of the user without a stack trace."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import speechtrain
from speechtrain.config.extras import explain_missing
from speechtrain.console import console, errors
from speechtrain.errors import RunError, UserError


def run_command(help_text: str | None, call: Callable[[list[str]], int]) -> None:
    """Call with the command line's arguments and end with the exit code that is returned; `--help` prints the text instead."""
    arguments = sys.argv[1:]
    if "--version" in arguments:
        print_version()
        return
    if any(item in ("-h", "--help") for item in arguments):
        console.print((help_text or "").strip(), markup=False)
        return
    try:
        sys.exit(call(arguments))
    except (UserError, RunError) as error:
        errors.print(str(error), style="red", markup=False)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        if (explained := explain_missing(error)) is None:
            raise
        errors.print(str(explained), style="red", markup=False)
        sys.exit(explained.exit_code)
    except KeyboardInterrupt:
        errors.print("interrupted", style="yellow")
        sys.exit(130)
    except BrokenPipeError:  # the program that read the output has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def print_version() -> None:
    """Print the name of the program and its version."""
    console.print(f"speechtrain {speechtrain.__version__}")
