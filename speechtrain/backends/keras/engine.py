"""The engine that Keras runs on: it is chosen before Keras is imported, and then for the whole process."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from speechtrain.errors import ConfigError, Problem

TENSORFLOW, JAX, TORCH = "tensorflow", "jax", "torch"


def start(engine: str, threads: int, *, deterministic: bool = False) -> ModuleType:
    """Import Keras on an engine.

    Args:
        engine: `tensorflow`, `jax` or `torch`.
        threads: threads of one operation on the CPU; an engine that runs already keeps those that it was started with.
        deterministic: refuse or replace operations that give other numbers each time.

    Raises:
        ConfigError: this process already runs Keras on another engine.
    """
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = engine
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        if engine == JAX and "jax" not in sys.modules:
            one = "--xla_cpu_multi_thread_eigen=false" if threads == 1 else ""
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {one}".strip()
    with _quiet():
        import keras

        if keras.config.backend() != engine:
            message = f"is {engine}, but this process runs Keras on {keras.config.backend()}"
            raise ConfigError([Problem("backend.engine", message, "an engine is chosen once a process: start another one")])
        if engine == TENSORFLOW:
            _tensorflow(threads, deterministic=deterministic)
    import torch  # features are made with it on every engine

    torch.set_num_threads(threads)
    if engine == TORCH:
        torch.use_deterministic_algorithms(deterministic)
    return keras  # type: ignore[no-any-return]


def _tensorflow(threads: int, *, deterministic: bool) -> None:
    import tensorflow as tf

    if deterministic:
        tf.config.experimental.enable_op_determinism()
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    except RuntimeError:  # TensorFlow has computed something already
        return


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what TensorFlow's C++ part prints while it is loaded, which no setting turns off."""
    sys.stderr.flush()
    stderr = os.dup(2)
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(devnull)
