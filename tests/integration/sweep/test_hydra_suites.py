"""Hydra's own suites for launchers, on the pool, for a program that is not speechtrain."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conftest import REPOSITORY
from hydra.test_utils.launcher_common_tests import BatchedSweeperTestSuite, IntegrationTestSuite, LauncherTestSuite

import speechtrain.config  # noqa: F401  makes the schema of the pool known

pytestmark = pytest.mark.slow

CONF = f"hydra.searchpath=[file://{REPOSITORY / 'conf'}]"


@pytest.mark.parametrize(("launcher_name", "overrides"), [("pool", [CONF, "hydra.launcher.n_workers=1"])])
class TestPoolPassesHydrasLauncherSuite(LauncherTestSuite):
    """Each test of `LauncherTestSuite`."""


@pytest.mark.parametrize(("launcher_name", "overrides"), [("pool", [CONF, "hydra.launcher.n_workers=1", "hydra.sweeper.max_batch_size=2"])])
class TestPoolPassesHydrasSuiteOfBatches(BatchedSweeperTestSuite):
    """Each test of `BatchedSweeperTestSuite`."""


@pytest.mark.parametrize(("task_launcher_cfg", "extra_flags"), [({}, ["-m", CONF, "hydra/launcher=pool", "hydra.launcher.n_workers=1"])])
class TestPoolPassesHydrasIntegrationSuite(IntegrationTestSuite):
    """Each test of `IntegrationTestSuite`."""

    def generate_custom_cmd(self) -> Callable[[list[str], str], list[str]]:
        """Run the suite's program with our schemas, as `tests/toy/app.py` imports them."""
        code = "import runpy, sys; import speechtrain.config; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
        return lambda cmd, _filename: [cmd[0], "-c", code, *cmd[1:]]
