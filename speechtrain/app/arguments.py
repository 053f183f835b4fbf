"""Separates the own keys of a command from overrides of the config of a model or a training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

from speechtrain.config.compose import compose_command
from speechtrain.config.overlay import CHUNKS, OVERLAID_GROUPS
from speechtrain.config.schemas.node import Node
from speechtrain.errors import ConfigError, Problem
from speechtrain.files import is_file, is_folder

C = TypeVar("C", bound=Node)


def arguments_of(schema: type[C], arguments: Sequence[str], *, words: str | None = None) -> tuple[C, list[str]]:
    """Return the config of a command, as `conf/COMMAND.yaml` has them, and the overrides of the model's config.

    Args:
        schema: class of the command's config.
        arguments: what was typed.
        words: the key, a list, to which arguments without `=` and names of files are added; None refuses the former.

    Raises:
        ConfigError: an argument is not `key=value`, or a key or its value does not fit.
    """
    command_keys: list[str] = []
    model_overrides: list[str] = []
    bare: list[str] = []
    for item in arguments:
        key = item.partition("=")[0].lstrip("+~")
        if "=" not in item or (words is not None and (is_file(Path(item)) or is_folder(Path(item)))):
            bare.append(item)
        elif key == CHUNKS or key.partition(".")[0].partition("@")[0] in OVERLAID_GROUPS:
            model_overrides.append(item)
        else:
            command_keys.append(_as_in_schema(item))
    if bare and words is None:
        raise ConfigError([Problem("command line", f"'{bare[0]}' cannot be read", "write key=value")])
    cfg = compose_command(schema, command_keys)
    if words is not None:
        setattr(cfg, words, [*getattr(cfg, words), *bare])
    return cfg, model_overrides


def own_and_training_keys(schema: type[C], arguments: Sequence[str]) -> tuple[C, list[str]]:
    """Return the config of a command that takes all keys of a training besides its own, and the overrides of the training.

    Args:
        schema: class of the command's config.
        arguments: what was typed.

    Raises:
        ConfigError: a key of the command has no value, or one that does not fit.
    """
    names = {"from" if field.name == "source" else field.name for field in fields(schema)}
    if bare := [item for item in arguments if item.lstrip("+") in names]:
        raise ConfigError([Problem("command line", f"'{bare[0]}' cannot be read", f"write {bare[0]}=VALUE")])
    own = [item for item in arguments if "=" in item and item.partition("=")[0].lstrip("+") in names]
    return compose_command(schema, [_as_in_schema(item.lstrip("+")) for item in own]), [item for item in arguments if item not in own]


def _as_in_schema(item: str) -> str:
    """Return `from=...` with the name that this key has in schemas."""
    return f"source={item.removeprefix('from=')}" if item.startswith("from=") else item
