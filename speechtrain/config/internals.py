"""The private names of Hydra that are used, each in one function.

`tests/unit/config/test_hydra_internals.py` says that Hydra has changed when one of them is gone.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from hydra.plugins.config_source import ConfigSource
from omegaconf import DictConfig


def share_schemas() -> None:
    """Let Hydra compose with the one ConfigStore instead of a deep copy of all schemas for each config, a fifth of the time of composing.

    Hydra copies its repository of configs before it replaces the sources in it. The store behind a source is only read, and copies what
    it gives. The store itself can be copied as ever, as Hydra's fixture `hydra_restore_singletons` does; the class of its source cannot be
    had here, as Hydra imports its plugins anew.
    """
    ConfigSource.__deepcopy__ = lambda self, _: copy.copy(self)  # type: ignore[attr-defined]


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
