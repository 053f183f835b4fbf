"""What holds for Keras on TensorFlow holds on its other engines: the same tests, each engine in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

pytestmark = pytest.mark.long

ENGINES = [engine for engine in ("jax", "torch") if importlib.util.find_spec("keras") and importlib.util.find_spec(engine)]
HERE = Path(__file__).parent


def run_tests(engine: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "SPEECHTRAIN_TEST_ENGINE": engine, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout or "100%" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_losses_and_optimizers_are_those_of_torch(engine: str) -> None:
    run_tests(engine, str(HERE / "test_keras_equals_torch.py"), "-k", "ctc or consistency or adamw")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_models_and_trainings_are_those_of_torch(engine: str) -> None:
    run_tests(engine, str(HERE / "test_keras_equals_torch.py"))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_the_backend_keeps_the_contract(engine: str) -> None:
    run_tests(engine, str(HERE / "test_keras_conformance.py"))
