"""Where a run goes in MLflow: the server or database, and the experiment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from speechtrain.addresses import whole
from speechtrain.files import absolute_sqlite_address, launch_folder, sqlite_address

_EXPERIMENT = "speechtrain"
_SET_BY_MLFLOW = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME")


def local_uri(folder: Path) -> str:
    """Return the absolute address of the database in a folder."""
    return sqlite_address(folder / "mlflow.db")


def tracking_address(tracking_uri: str | None) -> str:
    """Return the address of the server or database, that of a file with its absolute path.

    Args:
        tracking_uri: as the config has it, perhaps masked; None takes `MLFLOW_TRACKING_URI`, or else `mlflow.db` in `launch_folder`.
    """
    named = whole(tracking_uri) if tracking_uri else os.environ.get("MLFLOW_TRACKING_URI")
    return absolute_sqlite_address(named) if named else local_uri(launch_folder())


def experiment_name(experiment: str | None) -> str:
    """Return the name of the experiment; None takes `MLFLOW_EXPERIMENT_NAME`, or else `speechtrain`."""
    return experiment if experiment is not None else os.environ.get("MLFLOW_EXPERIMENT_NAME") or _EXPERIMENT


@contextmanager
def variables_kept() -> Iterator[None]:
    """Restore the variables that MLflow's `set_tracking_uri` and `set_experiment` set: later runs would take them for the user's."""
    before = {name: os.environ.get(name) for name in _SET_BY_MLFLOW}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
