"""What of a config differs from the defaults of the options that it is composed of, found from its values alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import yaml
from omegaconf import OmegaConf

from speechtrain.config.comments import entries_of
from speechtrain.config.composition import CONF_DIR
from speechtrain.config.options import WITHOUT_KEYS, groups, options_of, root_keys
from speechtrain.config.schemas.node import SIZES

_UNKNOWN = object()
"""The default of a key that an interpolation gives."""
_MISSING = object()
"""The default of a key that must be given."""


def chosen_options(values: Mapping[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the option of each group that values come nearest to, and which keys of it have other values.

    Args:
        values: a config with all values resolved, as `ExperimentConfig.as_dict` gives it.

    Returns:
        By group, the option's name (the class, if it is none of `conf/`) and the values that differ, by their dotted keys in the group.
    """
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for group, node in values.items():
        options = _defaults().get(group, {})
        if not options or not isinstance(node, Mapping):
            continue
        given = dict(leaves(node))
        written = _generic(str(given.pop("_target_", "")))
        same = {name: defaults for name, defaults in options.items() if _generic(str(defaults.get("_target_", ""))) == written}
        differing = {name: _differing(given, defaults) for name, defaults in same.items()}
        name = min(differing, key=lambda each: len(differing[each]), default=None)
        found[group] = (written.rpartition(".")[2] or group, given) if name is None else (name, differing[name])
    return found


def changed_run_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of the run as a whole whose values differ from those in `conf/config.yaml`."""
    defaults = {name: _read(key.entry.text) for name, key in root_keys().items() if not key.entry.is_node and name != "output_dir"}
    return {name: value for name, value in leaves(values) if name in defaults and not _equal(value, defaults[name])}


def leaves(node: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return the values of a nested mapping with their dotted keys."""
    pairs: list[tuple[str, Any]] = []
    for key, value in node.items():
        pairs += leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else [(f"{prefix}{key}", value)]
    return pairs


@lru_cache
def _defaults() -> dict[str, dict[str, dict[str, Any]]]:
    """Return the values of every option of each group, with its `_target_`."""
    folders = [CONF_DIR]
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for group in groups(folders):
        if group in WITHOUT_KEYS or group.startswith("hydra") or group == "tracking":
            continue
        found[group] = {}
        for option in options_of(group, folders):
            files = (option.file, *(key.entry.file for key in option.keys.values()))
            target = next((entries["_target_"].text for file in files if "_target_" in (entries := entries_of(file))), "")
            size = option.keys["size"].entry.text if "size" in option.keys else SIZES[0]
            keys = {name: key.entry.text for name, key in option.keys.items() if not key.entry.is_node}
            found[group][option.name] = {"_target_": target, **{name: _read(text, size) for name, text in keys.items()}}
    return found


def _differing(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(size := given.get("size"), str) and size != defaults.get("size") and size in SIZES:
        defaults = {name: value.of(size) if isinstance(value, _BySize) else value for name, value in defaults.items()}
    return {name: value for name, value in given.items() if not _equal(value, defaults.get(name))}


class _BySize:
    """The values of a key of a model for each size."""

    def __init__(self, text: str, size: str) -> None:
        self.text, self.size = text, size

    def of(self, size: str) -> Any:
        """Return the value for a size."""
        return OmegaConf.create({"size": size, "value": self.text}).value

    def __eq__(self, other: object) -> bool:
        return bool(_plain(self.of(self.size)) == other)

    __hash__ = None  # type: ignore[assignment]


def _read(text: str, size: str = SIZES[0]) -> Any:
    if text.startswith("${by_size:"):
        return _BySize(text, size)
    if text == "???":
        return _MISSING
    return _UNKNOWN if "${" in text else yaml.safe_load(text)


def _equal(value: object, default: object) -> bool:
    return default is _UNKNOWN or default == value or _number(default) == _number(value)


def _number(value: object) -> object:
    """Return a number that YAML takes for text (1e-3) as such, and anything else as it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _generic(target: str) -> str:
    """Return a `_target_` without the backend that it names."""
    return re.sub(r"^speechtrain\.backends\.(\$\{backend\.name\}|torch|keras)\.", "speechtrain.backends.", target)
