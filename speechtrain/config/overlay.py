"""A trained model's config with other data, another decoder, another number of threads."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict

from speechtrain.config.checks import find_problems
from speechtrain.config.compose import compose, set_values
from speechtrain.config.targets import signature
from speechtrain.errors import ConfigError, Problem

_GROUPS = ("data", "decoder", "backend")


def overlaid(stored: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The config with a group replaced where an option is chosen for it (`data=librispeech`), else with its keys changed.

    Raises:
        ConfigError: what does not compose, or a key that there is not.
    """
    cfg = stored.copy()
    for group in _GROUPS:
        mine = [item for item in overrides if item.lstrip("+~").startswith((f"{group}=", f"{group}.", f"{group}@"))]
        if any(_chooses(item, group) for item in mine):
            with open_dict(cfg):
                cfg[group] = compose(mine)[group]
        elif mine:
            set_values(cfg, mine)
    problems = [problem for problem in find_problems(cfg) if problem.path.startswith(tuple(f"{group}." for group in _GROUPS))]
    if problems:
        raise ConfigError(problems)
    return cfg


def decoders_of(stored: DictConfig, overrides: Sequence[str]) -> dict[str, list[str]]:
    """The overrides of each decoder that is asked for, by its name: `decoder=[greedy,beam]` is two, each with the keys that it has.

    Raises:
        ConfigError: none of them has one of the keys.
    """
    mine = [item for item in overrides if item.lstrip("+~").startswith(("decoder=", "decoder."))]
    chosen = [item.partition("=")[2] for item in mine if item.startswith("decoder=")]
    if not chosen:
        decodes = "decoder" in getattr(signature(str(stored.task._target_)), "names", ("decoder",))
        name = str(stored.decoder._target_).rpartition(".")[2].removesuffix("Decoder").lower()
        return {name if decodes else "model": mine}
    try:
        value = OverridesParser.create().parse_override(f"decoder={chosen[-1]}").value()
    except HydraException:
        raise ConfigError([Problem("decoder", f"{chosen[-1]!r} cannot be read", "write decoder=beam, or decoder=[greedy,beam]")]) from None
    names = [str(name) for name in (value if isinstance(value, list) else [value])]
    keys = [item for item in mine if not item.startswith("decoder=")]
    found: dict[str, list[str]] = {}
    used: set[str] = set()
    for name in names:
        known = compose([f"decoder={name}"]).decoder
        fitting = [item for item in keys if item.partition("=")[0].partition(".")[2] in known or item.startswith("+")]
        used.update(fitting)
        found[name] = [f"decoder={name}", *fitting]
    if unused := [item for item in keys if item not in used]:
        compose([f"decoder={names[-1]}", *unused])  # says what is wrong with them
    return found


def _chooses(item: str, group: str) -> bool:
    return item.lstrip("+").startswith((f"{group}=", f"{group}@"))
