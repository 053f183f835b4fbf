"""What Hydra looks for: thin shells around `speechtrain.sweep`, which is imported when a sweep starts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper

if TYPE_CHECKING:
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.utils import JobReturn
    from hydra.types import HydraContext, TaskFunction
    from omegaconf import DictConfig


class OptunaSweeper(Sweeper):
    """`hydra/sweeper=optuna`; its keys are described in `conf/hydra/sweeper/optuna.yaml`."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what a sweep needs."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> float | None:
        """Run it; returns the best objective."""
        from speechtrain.sweep.plugin import start

        return start(self.options, arguments, self.hydra_context, self.task_function, self.config)


class WithoutOfficialSchemas(SearchPathPlugin):
    """Takes the official Optuna sweeper's schemas away from a program that uses ours: Hydra would check our keys against them.

    Both name their options `hydra/sweeper=optuna`. Other programs in the same environment keep the official plugin as it is.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:  # noqa: ARG002
        """Called once all plugins are known; the search path stays as it is."""
        if "speechtrain.config.schema" not in sys.modules:
            return
        sweepers = ConfigStore.instance().repo.get("hydra", {}).get("sweeper", {})
        for group in (sweepers, sweepers.get("sampler", {})):
            for name in [name for name, node in group.items() if getattr(node, "provider", None) == "optuna_sweeper"]:
                del group[name]


class PoolLauncher(Launcher):
    """`hydra/launcher=pool`: warm worker processes; its keys are described in `conf/hydra/launcher/pool.yaml`."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what a launch needs."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    @property
    def pool_options(self) -> Any:
        """How workers are set up; the Optuna sweeper then drives them itself."""
        from speechtrain.sweep.plugin import pool_options

        return pool_options(self.options)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """A batch, for sweepers that know no other way."""
        from speechtrain.sweep.plugin import launch_batch

        return launch_batch(self.options, job_overrides, initial_job_idx, self.hydra_context, self.task_function, self.config)


class SshLauncher(Launcher):
    """`hydra/launcher=ssh`: another machine; its keys are described in `conf/hydra/launcher/ssh.yaml`."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:  # noqa: ARG002
        """Keep what a launch needs."""
        self.config = config

    def check(self) -> None:
        """Refuse a machine that cannot be reached, before anything starts."""
        from speechtrain.sweep.plugin import check_remote

        check_remote(self.options)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run them there."""
        from speechtrain.sweep.plugin import launch_remote

        return launch_remote(self.options, job_overrides, initial_job_idx, self.config)
