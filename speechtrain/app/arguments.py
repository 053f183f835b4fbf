"""A command's own keys, told apart from overrides of the model's config."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from speechtrain.config.compose import compose_command
from speechtrain.config.overlay import _GROUPS
from speechtrain.errors import ConfigError, Problem


def arguments_of(name: str, arguments: Sequence[str], *, words: str | None = None) -> tuple[DictConfig, list[str]]:
    """A command's own keys, as `conf/NAME.yaml` has them, and the overrides of the model's config.

    Args:
        name: of the command.
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
        elif key.partition(".")[0].partition("@")[0] in _GROUPS:
            rest.append(item)
        else:
            own.append(f"source={item.removeprefix('from=')}" if item.startswith("from=") else item)
    if plain and words is None:
        raise ConfigError([Problem("command line", f"'{plain[0]}' cannot be read", "write key=value")])
    cfg = compose_command(name, own)
    if words is not None:
        cfg[words] = [*cfg[words], *plain]
    return cfg, rest
