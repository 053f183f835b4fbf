"""Composes the configs of a sweep's jobs, and what several of them share only once.

Hydra composes each job from its files, 50 to 100 ms of one core. Jobs differ in values far more often than in the options of groups,
so each combination of options is composed once, by Hydra, and values are set on a copy by Hydra's own code, in its order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import compress

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from speechtrain.config.internals import apply_overrides, copy_config, is_group, override_dirname
from speechtrain.config.overrides import parser
from speechtrain.errors import ConfigError, Problem


@lru_cache(maxsize=1000)
def parsed(text: str) -> Override:
    """Parse an override; the latest results are kept, for Hydra's parser takes a millisecond."""
    return parser.parse_override(text)


@dataclass(frozen=True)
class ComposedJob:
    """The config of a job, and what it has in common with others.

    Attributes:
        cfg: the config with Hydra's own part; the caller may change it.
        shape: the overrides that chose the files it is composed from, the same in all jobs that differ in values alone.
        changed: the keys at the top of the config in which its values differ from those of other jobs of its shape.
    """

    cfg: DictConfig
    shape: tuple[str, ...]
    changed: frozenset[str]


class Composer:
    """Composes configs as `ConfigLoader.load_sweep_config` does.

    Args:
        loader: Hydra's loader of the sweep.
        config: config of the sweep.
    """

    def __init__(self, loader: ConfigLoader, config: DictConfig) -> None:
        self._loader = loader
        self._config = config
        self._groups: dict[str, bool] = {}
        self._bases: dict[tuple[str, ...], DictConfig] = {}

    def is_group(self, path: str) -> bool:
        """Return whether a key chooses an option of a config group."""
        if path not in self._groups:
            self._groups[path] = is_group(self._loader, path)
        return self._groups[path]

    def without_glob(self, text: str) -> str:
        """Return an override in which `glob(PATTERN)` is the list of the options that it means.

        Raises:
            ConfigError: it means none.
        """
        override = parsed(text)
        if not isinstance(override.value(), Glob):
            return text
        override = replace(override, config_loader=self._loader)
        options = list(override.sweep_string_iterator())
        if not options:
            path = override.key_or_group
            there = ", ".join(self._loader.get_group_options(path))
            raise ConfigError([Problem(path, f"no option fits {text.partition('=')[2]}", f"there is: {there}")])
        return f"{override.get_key_element()}=choice({','.join(options)})"

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """Return the config of a job with Hydra's own part; the caller may change it.

        Raises:
            HydraException, OmegaConfBaseException: the overrides do not compose.
        """
        return self.compose_job(overrides).cfg

    def compose_job(self, overrides: Sequence[str]) -> ComposedJob:
        """Return the config of a job as `compose` does, and what it has in common with others.

        Raises:
            HydraException, OmegaConfBaseException: the overrides do not compose.
        """
        items = [parsed(text) for text in overrides]
        are_values = [self._is_value(item) for item in items]
        values = list(compress(items, are_values))
        shape = tuple(text for text, is_value in zip(overrides, are_values, strict=True) if not is_value)
        if shape not in self._bases:
            self._bases[shape] = self._loader.load_sweep_config(self._config, list(shape))
        cfg = copy_config(self._bases[shape])
        try:
            apply_overrides(values, cfg)
        except OmegaConfBaseException as error:
            raise ConfigCompositionException from error
        task = [item for item in items if not item.is_hydra_override()]
        hydra = cfg.hydra
        with read_write(hydra), open_dict(hydra):
            hydra.overrides.task = [item.input_line for item in task]
            hydra.job.override_dirname = override_dirname(task, cfg)
        return ComposedJob(cfg, shape, frozenset(_first_key(item.key_or_group) for item in values))

    def _is_value(self, item: Override) -> bool:
        """Return whether an override sets a value, and does not change which files are composed."""
        return not (item.is_hydra_override() or item.is_delete() or item.package is not None or self.is_group(item.key_or_group))


def _first_key(path: str) -> str:
    return re.split(r"[.\[]", path, maxsplit=1)[0]
