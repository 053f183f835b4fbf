"""Which values of a config are those of the files in `conf/`, and not of a user's own file or command."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

from speechtrain.config.comments import content_of
from speechtrain.config.composition import CONF_DIR


def is_packaged(cfg: DictConfig, key: str) -> bool:
    """Return whether a key of a group has the value that an option of this package gives it, for the same class where it names one.

    Args:
        cfg: a composed config.
        key: dotted, such as `features.n_mels`.
    """
    group, *path = key.split(".")
    value, target = OmegaConf.select(cfg, key), _class_of(OmegaConf.select(cfg, f"{group}._target_"))
    return any(_at(option, path) == value and _class_of(option.get("_target_", target)) == target for option in _options_of(group))


def _class_of(target: object) -> str:
    return str(target).rpartition(".")[2]


def _at(option: Any, path: list[str]) -> object:
    for name in path:
        option = option.get(name) if isinstance(option, Mapping) else None
    return option


@lru_cache
def _options_of(group: str) -> list[dict[str, Any]]:
    """Return the options of a group as their files have them."""
    loaded = (content_of(path) for path in sorted((CONF_DIR / group).glob("*.yaml")))
    return [each for each in loaded if isinstance(each, dict)]
