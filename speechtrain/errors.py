"""Errors that a user should read, and the exit code that each ends the process with.

A mistake of the user's (config, data, paths) is a `UserError` and ends with code 2; a run that fails on its own is a `RunError` and ends
with code 1. Neither shows a stack trace. Anything else is a defect of speechtrain and keeps its trace.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


class UserError(Exception):
    """Says what the user can mend: the message says what was wrong, what was received and what to do."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__("\n".join(shortened(line) for line in printable(message).split("\n")))


class DataError(UserError):
    """The data cannot be used: the message names the file and, where there is one, the line or the utterance."""


class EmptyDataError(DataError):
    """Nothing is left to train on, and the config says that this is no mistake (`data.on_empty=warn`)."""


def printable(text: str) -> str:
    r"""Return a text as UTF-8 can hold it: bytes of a file's name that are not UTF-8, and halves of surrogate pairs, as `\udc..`."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


_LONGEST_LINE = 2000


def shortened(line: str) -> str:
    """Return a line of a message without its middle where it is very long, as it is with a damaged file's content in it."""
    half = _LONGEST_LINE // 2
    return line if len(line) <= _LONGEST_LINE else f"{line[:half]} … {line[-half:]}"


def counted(count: int, noun: str) -> str:
    """Return a number and what it counts, `1 token` or `2 tokens`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def first_line(error: BaseException, *, most: int = 300) -> str:
    """Return the first line of an error's text, or its class if it has none, cut at `most` characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most]


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the errors of a disk, a quota or a limit (`ulimit -f`) that leaves no room for a file."""


def unwritable(path: Path, error: OSError, key: str, kind: type[UserError] = UserError) -> UserError:
    """Return the error to raise where a file or folder of the user's cannot be written, and a key of the config names another.

    Args:
        path: the file or folder.
        error: why it cannot be written.
        key: the key of the config that names the folder.
        kind: the class of the error that is returned.
    """
    fix = f"make room, or set {key} to a folder on another disk" if error.errno in FULL else f"set {key} to a folder that can be written"
    return kind(f"{path}: cannot be written ({error.strerror or first_line(error)})\n    -> {fix}")


class RunError(Exception):
    """Training stopped for a reason that the user should read, without a stack trace."""

    exit_code = 1


class DiskError(RunError, OSError):
    """A file cannot be written, for example because the disk is full; the message names the file, the reason and what to do.

    It is an `OSError` too, with number, reason and file name, for those who can do without the file or know the key that names its folder.
    """

    def __str__(self) -> str:
        fix = "make room" if self.errno in FULL else "make its folder writable"
        return f"{self.filename}: cannot be written ({self.strerror})\n    -> {fix}; resume=last goes on with a training"


class RunPruned(Exception):  # noqa: N818
    """A run was ended on purpose, because others do better or a constraint is broken; the message says which."""


class RunPaused(RunPruned):
    """A run was ended for the time being: it may be continued from its last checkpoint."""


@dataclass(frozen=True)
class Problem:
    """Describes one thing that is wrong with a config.

    Attributes:
        path: dotted path of the key, for example `model.d_model`.
        message: what is wrong and what was received.
        fix: what to change, in the words of the command line where that is possible.
    """

    path: str
    message: str
    fix: str = ""

    def __str__(self) -> str:
        text = f"{self.path}: {self.message}"
        return f"{text}\n    -> {self.fix}" if self.fix else text


class ConfigError(UserError):
    """Lists all problems of the config, which are found in one go."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        typed = all(problem.path in _NO_KEYS for problem in self.problems)
        head = f"{counted(len(self.problems), 'problem')}{'' if typed else ' in the config'}"
        super().__init__("\n".join([f"{head}:", *(f"  {problem}" for problem in self.problems)]))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[Problem]]]:
        return type(self), (self.problems,)


_NO_KEYS = ("command line", "RUN", "STUDY", "runs", "study", "rerun", "resume", "from", "source", "files")
"""Paths of problems that are none of a config: words of the command line that name runs, studies and files."""


def did_you_mean(name: str, allowed: Iterable[str], prefix: str = "") -> str:
    """Return the hint for someone who wrote `name` where only `allowed` names exist: the nearest, and the others or the nearest of many."""
    names = sorted(set(allowed))
    dotted = f"{prefix}." if prefix else ""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    there = f"there is: {nearest(name, names)}"
    if near:
        return f"did you mean '{dotted}{near[0]}'?  ({there})"
    return there if names else ""


def nearest(name: str, names: Sequence[str]) -> str:
    """Return names in a line: all of a few, and of many those that are nearest to `name`, with the number of the others."""
    chosen = names if len(names) <= _FEW else sorted(difflib.get_close_matches(name, names, n=_NEAREST, cutoff=0.0))
    return ", ".join(chosen) + (f" and {len(names) - len(chosen)} more" if len(names) > len(chosen) else "")


_FEW, _NEAREST = 30, 6
"""Names that are all listed; how many of more are."""
