"""What the commands besides training have in common: `--help`, `--version`, and errors of the user without a stack trace."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import speechtrain
from speechtrain.addresses import guard_outputs
from speechtrain.config.extras import explain_missing
from speechtrain.console import console, errors
from speechtrain.errors import FULL, RunError, UserError
from speechtrain.processes import interrupts


def run_command(help_text: str | None, call: Callable[[list[str]], int]) -> None:
    """Call with the command line's arguments and end with the exit code that is returned; `--help` prints the text instead."""
    guard_outputs()
    with errors_reported():
        arguments = sys.argv[1:]
        if "--version" in arguments:
            print_version()
        elif any(item in ("-h", "--help") for item in arguments):
            console.print((help_text or "").strip(), markup=False)
        elif "--explain" in arguments:
            from speechtrain.app.explanation import print_explanation  # the sweeper's own distribution is without it

            print_explanation([item for item in arguments if not item.startswith("-")], command=Path(sys.argv[0]).stem)
        else:
            with interrupts.command():
                code = call(arguments)
            sys.exit(code)


@contextlib.contextmanager
def errors_reported() -> Iterator[None]:
    """End the process with a message and an exit code where what is done within fails by a mistake, a full disk, or Ctrl-C."""
    try:
        yield
    except (UserError, RunError) as error:
        errors.print(str(error), style="red", markup=False)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        errors.print("interrupted", style="yellow")
        sys.exit(interrupts.EXIT_CODE)
    except BrokenPipeError:  # the program that read the output has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ModuleNotFoundError, OSError) as error:
        explained = explain_missing(error) if isinstance(error, ModuleNotFoundError) else explain_full(error)
        if explained is None:
            raise
        errors.print(str(explained), style="red", markup=False)
        sys.exit(explained.exit_code)


def explain_full(error: Exception, folder: Path | None = None) -> UserError | None:
    """Return what to tell of a full disk that a library met; None: the error is another one.

    Args:
        error: what the library raised.
        folder: where it probably wrote, if the error does not say.
    """
    cause = error if isinstance(error, OSError) else error.__cause__  # which logging hides behind a ValueError
    if not isinstance(cause, OSError) or cause.errno not in FULL:
        return None
    place = cause.filename or f"{'a file' if folder is None else folder} or the place this output goes to"
    return UserError(f"{place}: cannot be written ({cause.strerror})\n    -> make room, or write to another disk")


def print_version() -> None:
    """Print the name of the program and its version."""
    console.print(f"speechtrain {speechtrain.__version__}")
