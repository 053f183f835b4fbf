"""How the workers of speechtrain's own sweeps are started."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.types import HydraContext, RunMode

from speechtrain.__main__ import run
from speechtrain.config.composition import CONF_DIR
from speechtrain.config.schemas.sweeps import PoolOptions
from speechtrain.sweep.plugin import pool_options
from speechtrain.sweep.trial.runner import Program
from speechtrain.sweep.workers import starting
from speechtrain.sweep.workers.messages import Setup
from speechtrain.sweep.workers.starting import ForkedProcess, WorkerStarter

Make = Callable[..., WorkerStarter]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Return what starts workers of a sweep of trainings; their folder is that of the test."""
    made = []

    def starter(*overrides: str) -> WorkerStarter:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3", job_name="speechtrain"):
            loader = GlobalHydra.instance().config_loader()
            config = loader.load_configuration("config", ["hydra/launcher=pool", *overrides], RunMode.MULTIRUN)
        task: Any = run
        options: PoolOptions = pool_options(config)
        setup = Setup.of_this_process(Program(HydraContext(loader, Callbacks()), config, task.__wrapped__))
        made.append(WorkerStarter(setup, 2, tmp_path, options))
        return made[-1]

    yield starter
    for each in made:
        each.close()


@pytest.mark.parametrize("threads", [pytest.param(2, marks=[pytest.mark.cold, pytest.mark.slow]), 1])
def test_the_workers_of_a_sweep_of_trainings_are_forked_once_the_first_is_needed(
    make: Make, tmp_path: Path, threads: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    starter = make(f"hydra.launcher.threads={threads}")
    assert not (tmp_path / "workers.log").exists()  # no process was started

    process, connection = starter.start(0, ["seed=1"])
    connection.close()

    assert isinstance(process, ForkedProcess), caplog.text
    assert process.wait(60) == 0


def test_a_line_says_that_a_package_is_missing_without_which_workers_are_not_forked(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(starting, "find_spec", lambda _name: None)
    starter = make("hydra.launcher.threads=2")

    for slot in (0, 1):
        process, connection = starter.start(slot, ["seed=1"])
        connection.close()
        process.kill()
        process.wait()

    assert caplog.messages == ["workers start cold: threadpoolctl is not installed, so they could not be given 2 threads after a fork"]
