"""What Hydra looks for: shells around `speechtrain.sweep.plugin`, which is imported when a sweep starts.

Hydra imports this file at every start of every program. The options are read from the sweep's config, where their types are known; those
that Hydra passes to a constructor are the same.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper
from omegaconf import OmegaConf

if TYPE_CHECKING:
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.utils import JobReturn
    from hydra.types import HydraContext, TaskFunction
    from omegaconf import DictConfig

    from speechtrain.config.schemas.sweeps import PoolOptions, RayOptions


class OptunaSweeper(Sweeper):
    """`hydra/sweeper=optuna`; its keys are described in `conf/hydra/sweeper/optuna.yaml`."""

    def __init__(self, **_options: object) -> None:
        """Accept the options, which `sweep` reads from the config."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Remember the program and the config of the sweep."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> float | None:
        """Run the sweep and return the best objective."""
        from speechtrain.sweep.plugin import start_sweep

        return start_sweep(arguments, self.hydra_context, self.task_function, self.config)


_ROOT = Path(__file__).resolve().parents[1]
_CONF = _ROOT / "speechtrain" / "conf" if (_ROOT / "speechtrain" / "conf").is_dir() else _ROOT / "conf"
"""The folder with our options: in the package where a wheel was installed, beside it in a checkout."""
_OPTIONS = {
    "hydra": (),
    "hydra/sweeper": ("optuna",),
    "hydra/sweeper/sampler": ("*",),
    "hydra/sweeper/pruner": ("*",),
    "hydra/launcher": ("pool", "ray"),
}
"""The groups that any program gets, and the options of each."""
_SCHEME = "speechtrain-sweeper"


def _options(group: str) -> tuple[str, ...]:
    """Return the options of a group; a launcher of the same name that is installed as well stays what it is in other programs."""
    options = _OPTIONS.get(group, ())
    if group != "hydra/launcher":
        return options
    installed = ConfigStore.instance().repo.get("hydra", {}).get("launcher", {})
    return tuple(name for name in options if f"{name}.yaml" not in installed)


class SweeperOptions(ConfigSource):
    """The files of `conf/hydra` for programs that know nothing of speech, without what only our own program checks.

    Only the groups of `_OPTIONS` are seen: the others of `conf` could stand in for groups of the program. Schemas are left out, so that a
    program which does not sweep imports nothing of ours; the types are checked when a sweep starts.
    """

    @staticmethod
    def scheme() -> str:
        """Return what addresses of this source begin with."""
        return _SCHEME

    def load_config(self, config_path: str) -> ConfigResult:
        """Return the content of an option.

        Raises:
            ConfigLoadError: there is none of that name.
        """
        if not self.is_config(config_path):
            raise ConfigLoadError(f"there is no {config_path} in {self.full_path()}")
        name = self._normalize_file_name(config_path)
        text = (_CONF / name).read_text(encoding="utf-8")
        config = OmegaConf.create(text)
        if "defaults" in config:
            config.defaults = [entry for entry in config.defaults if not str(entry).startswith("/schema/")]
        if "check" in config:
            config.check = None
        return ConfigResult(f"{_SCHEME}://", name, config, self._get_header_dict(text))

    def is_group(self, config_path: str) -> bool:
        """Return whether a path is one of our groups."""
        return config_path in _OPTIONS

    def is_config(self, config_path: str) -> bool:
        """Return whether a path is an option of one of our groups."""
        group, _, name = config_path.removesuffix(".yaml").rpartition("/")
        options = _options(group)
        return (name in options or "*" in options) and (_CONF / group / f"{name}.yaml").is_file()

    def available(self) -> bool:
        """Return whether our files are installed."""
        return _CONF.is_dir()

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Return the names of the options and groups below a group."""
        names = set()
        if results_filter is not ObjectType.CONFIG:
            names |= {path.rpartition("/")[2] for path in _OPTIONS if path.rpartition("/")[0] == config_path}
        if results_filter is not ObjectType.GROUP and config_path in _OPTIONS:
            files = (file for option in _options(config_path) for file in (_CONF / config_path).glob(f"{option}.yaml"))
            names |= {file.stem for file in files}
        return sorted(names)


class SweeperSearchPath(SearchPathPlugin):
    """Gives every Hydra program our options, `hydra/sweeper=optuna` among them.

    The official Optuna sweeper's options have the same name. Where both are installed, our own program means ours, whose keys Hydra would
    otherwise check against the official schemas, and other programs mean the official one.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add our options, or remove the official ones; this is called once all plugins are known."""
        sweepers = ConfigStore.instance().repo.get("hydra", {}).get("sweeper", {})
        groups = (sweepers, sweepers.get("sampler", {}))
        official = [
            (group, name) for group in groups for name, node in group.items() if getattr(node, "provider", None) == "optuna_sweeper"
        ]
        if official and "speechtrain.config.schema" not in sys.modules:
            return
        for group, name in official:
            del group[name]
        search_path.append(provider=_SCHEME, path=f"{_SCHEME}://")


class _WarmLauncher(Launcher):
    """Keeps what warm workers need; the options are read from the config, where their types are known."""

    def __init__(self, **_options: object) -> None:
        """Accept the options."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Remember the program and the config of the sweep."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config


class PoolLauncher(_WarmLauncher):
    """`hydra/launcher=pool`: warm worker processes; its keys are described in `conf/hydra/launcher/pool.yaml`."""

    @property
    def pool_options(self) -> PoolOptions:
        """Return how workers are set up; the Optuna sweeper asks for this and drives the pool itself."""
        from speechtrain.sweep.plugin import pool_options

        return pool_options(self.config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of jobs, for sweepers that know no other way."""
        from speechtrain.sweep.plugin import launch_in_pool

        return launch_in_pool(job_overrides, initial_job_idx, self.hydra_context, self.task_function, self.config)


class RayLauncher(_WarmLauncher):
    """`hydra/launcher=ray`: warm workers on a Ray cluster; its keys are described in `conf/hydra/launcher/ray.yaml`."""

    @property
    def ray_options(self) -> RayOptions:
        """Return what a trial asks for, and of which cluster; the Optuna sweeper asks for this and drives the actors itself."""
        from speechtrain.sweep.plugin import ray_options

        return ray_options(self.config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of jobs, for sweepers that know no other way."""
        from speechtrain.sweep.plugin import launch_on_ray

        return launch_on_ray(job_overrides, initial_job_idx, self.hydra_context, self.task_function, self.config)


class SshLauncher(Launcher):
    """`hydra/launcher=ssh`: another machine; its keys are described in `conf/hydra/launcher/ssh.yaml`."""

    def __init__(self, **_options: object) -> None:
        """Accept the options, which `check` and `launch` read from the config."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:  # noqa: ARG002
        """Remember the config of the sweep."""
        self.config = config

    def check(self) -> None:
        """Refuse a machine that cannot be reached, before any job starts."""
        from speechtrain.sweep.plugin import check_remote

        check_remote(self.config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of jobs on the machine, one after another."""
        from speechtrain.sweep.plugin import launch_remote

        return launch_remote(job_overrides, initial_job_idx, self.config)
