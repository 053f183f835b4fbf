"""A command's own keys, told apart from overrides of the model's config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from speechtrain.config.compose import compose_command
from speechtrain.config.overlay import OVERLAID_GROUPS
from speechtrain.config.schemas.node import Node
from speechtrain.errors import ConfigError, Problem

C = TypeVar("C", bound=Node)


def arguments_of(schema: type[C], arguments: Sequence[str], *, words: str | None = None) -> tuple[C, list[str]]:
    """Return a command's own keys, as `conf/COMMAND.yaml` has them, and the overrides of the model's config.

    Args:
        schema: of the command.
        arguments: as typed.
        words: the list key that arguments without `=` belong to; None: there are none.

    Raises:
        ConfigError: with what is wrong.
    """
    own: list[str] = []
    rest: list[str] = []
    plain: list[str] = []
    for item in arguments:
        key = item.partition("=")[0].lstrip("+~")
        if "=" not in item:
            plain.append(item)
        elif key.partition(".")[0].partition("@")[0] in OVERLAID_GROUPS:
            rest.append(item)
        else:
            own.append(f"source={item.removeprefix('from=')}" if item.startswith("from=") else item)
    if plain and words is None:
        raise ConfigError([Problem("command line", f"'{plain[0]}' cannot be read", "write key=value")])
    cfg = compose_command(schema, own)
    if words is not None:
        setattr(cfg, words, [*getattr(cfg, words), *plain])
    return cfg, rest
