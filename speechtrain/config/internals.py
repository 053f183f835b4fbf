"""The private names of Hydra and OmegaConf that are used, each in one function.

`tests/unit/config/test_hydra_internals.py` says which of both has changed when one of them is gone.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

import omegaconf._utils
import omegaconf.base
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from hydra.plugins.config_source import ConfigSource
from omegaconf import DictConfig, Node


def share_schemas() -> None:
    """Let Hydra compose with the one ConfigStore instead of a deep copy of all schemas for each config, a fifth of the time of composing.

    Hydra copies its repository of configs before it replaces the sources in it. The store behind a source is only read, and copies what
    it gives. The store itself can be copied as ever, as Hydra's fixture `hydra_restore_singletons` does; the class of its source cannot be
    had here, as Hydra imports its plugins anew.
    """
    ConfigSource.__deepcopy__ = lambda self, _: copy.copy(self)  # type: ignore[attr-defined]


def remember_parsed_interpolations() -> None:
    """Let OmegaConf parse a text with interpolations once in this process, and not each time that it resolves it.

    A job resolves the texts of the job before it, and parsing one takes ten times as long as looking up what it names. What was parsed is
    only read.
    """
    module: Any = omegaconf.base
    if not hasattr(module.parse, "cache_info"):
        module.parse = lru_cache(maxsize=500)(module.parse)


def read_config_files_in_c() -> None:
    """Let OmegaConf read config files by libyaml, where PyYAML has it: the same values in a tenth of the time.

    Its loader, which refuses keys that stand twice and reads `1e-3` as a number, is made anew for each file; here once. A file that cannot
    be read is read once more in Python, whose messages show the place.
    """
    module: Any = omegaconf._utils
    if not hasattr(yaml, "CSafeLoader") or hasattr(module.get_yaml_loader, "cache_info"):
        return
    in_python: Any = module.get_yaml_loader()
    in_c: Any = vars(yaml.cyaml)["CParser"]

    class Loader(in_c, in_python):  # type: ignore[misc]
        def __init__(self, stream: Any) -> None:
            self._text: Any = stream.read() if hasattr(stream, "read") else stream
            self._name: str | None = getattr(stream, "name", None)
            in_c.__init__(self, self._text)
            yaml.constructor.SafeConstructor.__init__(self)
            yaml.resolver.Resolver.__init__(self)

        def get_single_data(self) -> Any:
            try:
                return super().get_single_data()
            except yaml.YAMLError:
                again = in_python(self._text)
                again.name = self._name or again.name
                return again.get_single_data()

    module.get_yaml_loader = lru_cache(lambda: Loader)


def apply_overrides(overrides: Sequence[Override], cfg: DictConfig) -> None:
    """Set the values of overrides in a composed config, in place, as Hydra does while composing.

    Raises:
        HydraException, OmegaConfBaseException: a value does not fit.
    """
    ConfigLoaderImpl._apply_overrides_to_config(list(overrides), cfg)


def override_dirname(overrides: Sequence[Override], cfg: DictConfig) -> str:
    """Return `hydra.job.override_dirname` for the overrides of a job, in the form that its config asks for."""
    names = cfg.hydra.job.config.override_dirname
    return str(get_overrides_dirname(list(overrides), names.exclude_keys, names.item_sep, names.kv_sep))


def is_group(loader: ConfigLoader, path: str) -> bool:
    """Return whether a key of an override names a group of the loader's config folders."""
    assert isinstance(loader, ConfigLoaderImpl)
    return bool(loader.repository.group_exists(path.partition("@")[0]))


def result_of(returned: JobReturn) -> Any:
    """Return what a job returned, or the error it raised; `JobReturn.return_value` would print that and raise it again."""
    return returned._return_value


def copy_config(cfg: DictConfig, keys: Collection[str] | None = None) -> DictConfig:
    """Return a deep copy of a config, or of some of its keys, in a twelfth of the time that OmegaConf's own takes.

    Args:
        cfg: the config, whose nodes are those of a composed config: dictionaries, lists and values, which are not copied themselves.
        keys: the keys at the top to copy; None: all.
    """
    copied: DictConfig = _copied(cfg if keys is None else view_of(cfg, keys), None)
    return copied


def view_of(cfg: DictConfig, keys: Collection[str]) -> DictConfig:
    """Return a config with some of the keys at the top of another one, whose nodes it shares; these still have the other one as parent."""
    view: DictConfig = _shallow(cfg, None)
    vars(view)["_content"] = {key: node for key, node in vars(cfg)["_content"].items() if key in keys}
    return view


def _copied(node: Any, parent: Node | None) -> Any:
    """Return a deep copy of a node and of those below it."""
    result = _shallow(node, parent)
    attributes = vars(result)
    content = attributes.get("_content")
    if isinstance(content, dict):
        attributes["_content"] = {key: _copied(child, result) for key, child in content.items()}
    elif isinstance(content, list):
        attributes["_content"] = [_copied(child, result) for child in content]
    elif isinstance(content, Node):  # of a union
        attributes["_content"] = _copied(content, result)
    return result


def _shallow(node: Any, parent: Node | None) -> Any:
    """Return a copy of a node with flags of its own and the same content."""
    result = object.__new__(type(node))
    metadata = node._metadata
    own = object.__new__(type(metadata))
    vars(own).update(vars(metadata))
    own.flags = dict(metadata.flags)
    own.resolver_cache = defaultdict(dict, {name: dict(cached) for name, cached in metadata.resolver_cache.items()})
    vars(result).update(vars(node), _metadata=own, _parent=parent, _flags_cache=None)
    return result
