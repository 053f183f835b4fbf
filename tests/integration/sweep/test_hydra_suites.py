"""Hydra's own suites for launchers, on the pool, for a program that is not speechtrain."""

from __future__ import annotations

import pytest
from conftest import REPOSITORY
from hydra.test_utils.launcher_common_tests import BatchedSweeperTestSuite, LauncherTestSuite

import speechtrain.config  # noqa: F401  makes the schema of the pool known

pytestmark = pytest.mark.slow

CONF = f"hydra.searchpath=[file://{REPOSITORY / 'conf'}]"


@pytest.mark.parametrize(("launcher_name", "overrides"), [("pool", [CONF, "hydra.launcher.n_workers=1"])])
class TestPoolPassesHydrasLauncherSuite(LauncherTestSuite):
    """Each test of `LauncherTestSuite`."""


@pytest.mark.parametrize(("launcher_name", "overrides"), [("pool", [CONF, "hydra.launcher.n_workers=1", "hydra.sweeper.max_batch_size=2"])])
class TestPoolPassesHydrasSuiteOfBatches(BatchedSweeperTestSuite):
    """Each test of `BatchedSweeperTestSuite`."""
