"""Hydra's own suites for launchers, for a program that is not speechtrain: on the pool, the in-process executor and the sweeper."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.test_utils.launcher_common_tests import BatchedSweeperTestSuite, IntegrationTestSuite, LauncherTestSuite
from hydra.types import HydraContext, TaskFunction
from hydra.version import VersionBase
from omegaconf import DictConfig
from packaging.version import Version

import hydra_plugins
from speechtrain.errors import RunError
from speechtrain.sweep import plugin
from speechtrain.sweep.trial.outcome import Outcome, SweepJob
from speechtrain.sweep.trial.runner import JobRunner, Program
from speechtrain.sweep.workers.executors import InProcess

SWEEPER = ["hydra/sweeper=optuna", "hydra.sweeper.retries=0"]


class InProcessLauncher(Launcher):
    """Runs the jobs of Hydra's own sweeper with the executor."""

    __module__ = "hydra_plugins.in_process"  # Hydra takes plugins from there only

    def __init__(self, **_options: object) -> None:
        """Take no options."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.program = Program(hydra_context, config, task_function)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        executor = InProcess(self.program, Path(str(self.program.config.hydra.sweep.dir)))
        before = len(RETURNED)
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            executor.submit(SweepJob(number, list(overrides), {}))
        assert len(executor.wait(0)) == len(job_overrides)
        return RETURNED[before:]


RETURNED: list[JobReturn] = []
"""What Hydra returns of the jobs that ran in this process, in their order."""


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps what jobs return, and has the sweeper return it in the batches that a test asks for, as the suites expect of a sweeper."""
    run, sweep = JobRunner.run, plugin.start_sweep
    RETURNED.clear()
    monkeypatch.setattr(
        VersionBase.instance(), "version_base", Version("1.1")
    )  # the suites say none, and an earlier test of this process did

    def recording(self: JobRunner, job: SweepJob) -> tuple[Outcome, JobReturn | None]:
        outcome, returned = run(self, job)
        assert returned is not None
        RETURNED.append(returned)
        return outcome, returned

    def in_batches(arguments: Sequence[str], *program: Any) -> list[list[JobReturn]]:
        with contextlib.suppress(RunError):  # a job of the suites returns a text, of which there is no best one
            sweep(arguments, *program)
        size = 2 if len(RETURNED) == 6 else len(RETURNED)  # the suite of batches has 6 jobs and wants them by two
        return [RETURNED[index : index + size] for index in range(0, len(RETURNED), size)]

    monkeypatch.setattr(JobRunner, "run", recording)
    monkeypatch.setattr(plugin, "start_sweep", in_batches)
    monkeypatch.setitem(sys.modules, InProcessLauncher.__module__, sys.modules[__name__])
    monkeypatch.setattr(hydra_plugins, "in_process", sys.modules[__name__], raising=False)
    Plugins.instance().register(InProcessLauncher)
    node: dict[str, Any] = {"_target_": "hydra_plugins.in_process.InProcessLauncher"}
    ConfigStore.instance().store(group="hydra/launcher", name="in_process", node=node)


@pytest.mark.slow
@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize(("launcher_name", "overrides"), [("in_process", []), ("basic", SWEEPER)], ids=["executor", "sweeper"])
class TestThisProcessPassesHydrasLauncherSuite(LauncherTestSuite):
    """Each test of `LauncherTestSuite`."""


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize(
    ("launcher_name", "overrides"),
    [("in_process", ["hydra.sweeper.max_batch_size=2"]), ("basic", SWEEPER)],
    ids=["executor", "sweeper"],
)
class TestThisProcessPassesHydrasSuiteOfBatches(BatchedSweeperTestSuite):
    """Each test of `BatchedSweeperTestSuite`."""


@pytest.mark.slow
@pytest.mark.parametrize(("launcher_name", "overrides"), [("pool", ["hydra.launcher.n_workers=1"])])
class TestPoolPassesHydrasLauncherSuite(LauncherTestSuite):
    """Each test of `LauncherTestSuite`."""


@pytest.mark.slow
@pytest.mark.parametrize(("launcher_name", "overrides"), [("pool", ["hydra.launcher.n_workers=1", "hydra.sweeper.max_batch_size=2"])])
class TestPoolPassesHydrasSuiteOfBatches(BatchedSweeperTestSuite):
    """Each test of `BatchedSweeperTestSuite`."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task_launcher_cfg", "extra_flags"),
    [({}, ["-m", "hydra/launcher=pool", "hydra.launcher.n_workers=1"]), ({}, ["-m", *SWEEPER])],
    ids=["pool", "sweeper"],
)
class TestHydrasIntegrationSuite(IntegrationTestSuite):
    """Each test of `IntegrationTestSuite`."""

    def generate_custom_cmd(self) -> Callable[[list[str], str], list[str]]:
        """Run the suite's program, which returns nothing; that counts as 0 here."""
        code = "import runpy, sys; from speechtrain.sweep.trial import handle; handle._numbers = lambda *_: [0.0]; "
        code += "del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
        return lambda cmd, _filename: [cmd[0], "-c", code, *cmd[1:]]

    def test_to_absolute_path_multirun(self, tmpdir: Path, task_launcher_cfg: DictConfig, extra_flags: list[str]) -> None:
        """Run the suite's test, but on the sweeper: it gives one command twice, which goes on with the study there, and runs nothing."""
        if extra_flags[1:] == SWEEPER:
            pytest.skip("the same command goes on with the study, in which nothing is left to do")
        super().test_to_absolute_path_multirun(tmpdir, task_launcher_cfg, extra_flags)
