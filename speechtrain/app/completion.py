"""What a shell offers for the word that is being typed: Hydra knows groups and keys, here the commands and their keys are added.

Hydra writes the function that the shell calls (`speechtrain -sc install=bash`). It runs `speechtrain -sc query=SHELL` with the line so far
in COMP_LINE, and takes each word of the standard output as a match.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from speechtrain.app.commands import COMMANDS, TRAIN
from speechtrain.config.schemas.commands import COMMANDS as SCHEMAS

_GROUPS = {
    "evaluate": ("data", "decoder", "backend"),
    "align": ("data", "backend"),
    "export": ("data", "decoder", "backend"),
    "transcribe": ("decoder", "backend"),
    "serve": ("decoder", "backend"),
}
"""The groups of a training that a command takes too."""
_WITH_TRAINING_KEYS = ("inspect", "featurise", "shard")
"""The commands that take all keys of a training besides their own."""


def wants_matches(arguments: Sequence[str]) -> bool:
    """Return whether it is the shell that asks, for the word at the end of COMP_LINE."""
    return arguments[:1] in (["-sc"], ["--shell-completion"]) and any(item.startswith("query=") for item in arguments)


def print_matches(ask_hydra: Callable[[], object]) -> None:
    """Print the words that the last one of COMP_LINE may become, one a line.

    Args:
        ask_hydra: runs the program with the arguments as they are, so that Hydra prints its own matches for COMP_LINE.
    """
    line = os.environ.get("COMP_LINE", "")
    words = line.split()[1:]
    last = words.pop() if words and not line[-1].isspace() else ""
    sys.stdout.writelines(f"{match}\n" for match in sorted(set(_matches(words, last, ask_hydra))))


def _matches(before: Sequence[str], word: str, ask_hydra: Callable[[], object]) -> Iterator[str]:
    command = before[0] if before and before[0] in (TRAIN, *COMMANDS) else None
    if command in (None, TRAIN):
        yield from (name for name in (TRAIN, *COMMANDS) if not before and name.startswith(word))
        yield from _of_hydra(before if command is None else before[1:], word, ask_hydra)
        return
    own = dict(_keys(command))
    pairs = [f"{key}={value}" for key, values in own.items() for value in values if word.startswith(f"{key}=")]
    yield from (match for match in [*(f"{key}=" for key in own if "=" not in word), *pairs] if match.startswith(word))
    if command in _WITH_TRAINING_KEYS:
        yield from _of_hydra([item for item in before[1:] if item.partition("=")[0] not in own], word, ask_hydra)
    elif groups := _GROUPS.get(command):
        yield from (
            match for match in _of_hydra([item for item in before if _group(item) in groups], word, ask_hydra) if _group(match) in groups
        )


def _keys(command: str) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield the keys of `conf/COMMAND.yaml` as they are typed, each with the values it may have where those are few."""
    for key in fields(SCHEMAS[command]) if command in SCHEMAS else ():
        values = ("true", "false") if key.type == "bool" else key.metadata.get("choices", ())
        yield ("from", ("last",)) if key.name == "source" else (key.name, values)


def _group(item: str) -> str:
    return re.split(r"[.=@/]", item.lstrip("+~"), maxsplit=1)[0]


def _of_hydra(before: Sequence[str], word: str, ask_hydra: Callable[[], object]) -> list[str]:
    """Return Hydra's matches for a word behind others; none where those cannot be read."""
    os.environ["COMP_LINE"] = " ".join(["speechtrain", *before, word])
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raises errors instead of printing them into the line that is being typed
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(HydraException, OmegaConfBaseException):
        ask_hydra()
    return printed.getvalue().split()
