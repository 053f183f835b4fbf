"""The commands by name: what `--help` says of each, and which of them a command line starts."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

from speechtrain.app.command import run_command
from speechtrain.errors import UserError, did_you_mean

TRAIN = "train"
COMMANDS = (
    *("evaluate", "transcribe", "align", "export", "serve", "spot", "inspect", "diagnose", "featurise"),
    *("shard", "compare", "ui", "sweep", "lm", "sync"),
)
"""The commands besides `train`, which may be left out; each is a module of the package that `python -m speechtrain.COMMAND` runs too.

`sweep` is a room, whose `__main__.py` is the command.
"""


def named_command(arguments: list[str]) -> str:
    """Return the command that a command line begins with: `train` if it begins with a key, a flag or nothing.

    Raises:
        UserError: there is no such command.
    """
    if not arguments or "=" in arguments[0] or not arguments[0][:1].isalnum():
        return TRAIN
    name = arguments[0]
    if name not in (TRAIN, *COMMANDS):
        raise UserError(
            f"there is no command '{name}'\n    -> {did_you_mean(name, (TRAIN, *COMMANDS))}; a key of a training is written key=value"
        )
    return name


def start(name: str) -> None:
    """Run a command with the arguments in `sys.argv`, and end the process with its exit code."""
    module = importlib.import_module(f"speechtrain.{name}{'' if _file_of(name).stem == name else '.__main__'}")
    run_command(_as_typed(module.__doc__ or ""), module.run)


def summary(name: str) -> str:
    """Return what a command does: the first line of its module's docstring, without importing it."""
    return command_help(name).partition("\n")[0].partition("`: ")[2]


def command_help(name: str) -> str:
    """Return what `--help` of a command prints: the docstring of its module, which is not imported."""
    source = _file_of(name).read_text(encoding="utf-8")
    return _as_typed(ast.get_docstring(ast.parse(source)) or "")


def _as_typed(text: str) -> str:
    return text.replace("python -m speechtrain.", "speechtrain ").strip()


def _file_of(name: str) -> Path:
    """Return the file of a command."""
    package = Path(__file__).resolve().parents[1]
    return package / name / "__main__.py" if (package / name).is_dir() else package / f"{name}.py"
