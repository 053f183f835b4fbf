"""What Hydra looks for: shells around `speechtrain.sweep.plugin`, which is imported when a sweep starts.

Hydra imports this file at every start. The options are read from the sweep's config, where their types are known; those that Hydra passes
to a constructor are the same.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hydra.core.config_store import ConfigStore
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper

if TYPE_CHECKING:
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.utils import JobReturn
    from hydra.types import HydraContext, TaskFunction
    from omegaconf import DictConfig

    from speechtrain.config.schemas.sweeps import PoolOptions


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


class WithoutOfficialSchemas(SearchPathPlugin):
    """Removes the official Optuna sweeper's schemas in a program that uses ours: Hydra would check our keys against them.

    Both name their options `hydra/sweeper=optuna`. Other programs in the same environment keep the official plugin as it is.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:  # noqa: ARG002
        """Remove the schemas, for this is called once all plugins are known; the search path stays as it is."""
        if "speechtrain.config.schema" not in sys.modules:
            return
        sweepers = ConfigStore.instance().repo.get("hydra", {}).get("sweeper", {})
        for group in (sweepers, sweepers.get("sampler", {})):
            for name in [name for name, node in group.items() if getattr(node, "provider", None) == "optuna_sweeper"]:
                del group[name]


class PoolLauncher(Launcher):
    """`hydra/launcher=pool`: warm worker processes; its keys are described in `conf/hydra/launcher/pool.yaml`."""

    def __init__(self, **_options: object) -> None:
        """Accept the options, which `launch` and `pool_options` read from the config."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Remember the program and the config of the sweep."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    @property
    def pool_options(self) -> PoolOptions:
        """Return how workers are set up; the Optuna sweeper asks for this and drives the pool itself."""
        from speechtrain.sweep.plugin import pool_options

        return pool_options(self.config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of jobs, for sweepers that know no other way."""
        from speechtrain.sweep.plugin import launch_in_pool

        return launch_in_pool(job_overrides, initial_job_idx, self.hydra_context, self.task_function, self.config)


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
