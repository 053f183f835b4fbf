"""Where a run goes in MLflow: the server or database, and the experiment."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from speechtrain.addresses import MASK, keep, masked_values, whole
from speechtrain.errors import ConfigError, Problem
from speechtrain.files import absolute_sqlite_address, is_file, sqlite_address, sqlite_file

_LOCAL = "sqlite:///mlflow.db"
_EXPERIMENT = "speechtrain"
_SET_BY_MLFLOW = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME")


def local_uri(folder: Path) -> str:
    """Return the absolute address of the database in a folder."""
    return sqlite_address(folder / "mlflow.db")


def named_address(tracking_uri: str | None) -> str:
    """Return the address of the server or database as the user has named it, that of a file perhaps seen from `launch_folder`.

    Args:
        tracking_uri: as the config has it, perhaps masked; None takes `MLFLOW_TRACKING_URI`, or else `mlflow.db` in `launch_folder`.
    """
    return whole(tracking_uri) if tracking_uri else os.environ.get("MLFLOW_TRACKING_URI") or _LOCAL


def tracking_address(tracking_uri: str | None) -> str:
    """Return what `named_address` does, with the absolute path of a file."""
    return absolute_sqlite_address(named_address(tracking_uri))


DATABASE = "database"
"""Key of `run.json`, beside the address of a database that was named by a relative path: its absolute address."""


def place_of_run(address: str, experiment: str) -> dict[str, str]:
    """Return what `run.json` notes of where a run is tracked, without secrets, which are kept for their owner.

    Args:
        address: as `named_address` returns it.
        experiment: the experiment's name.
    """
    absolute = absolute_sqlite_address(address)
    database = {DATABASE: absolute} if absolute != address else {}
    noted: dict[str, str] = keep({"tracking_uri": address, "experiment": experiment, **database})
    return noted


def noted_address(place: Mapping[str, str]) -> str:
    """Return the address in what `place_of_run` returned: of a database in another folder that is still there the absolute one."""
    database = place.get(DATABASE, "")
    elsewhere = database != absolute_sqlite_address(place["tracking_uri"]) and is_file(sqlite_file(database))
    return database if elsewhere else place["tracking_uri"]


def stored_address(tracking_uri: str, key: str) -> str:
    """Return the address that a run has stored, with the password that was masked in it.

    Args:
        tracking_uri: as `run.json` has it.
        key: the key that sets the address, for messages.

    Raises:
        ConfigError: the password is known neither here nor from `MLFLOW_TRACKING_URI`.
    """
    address = whole(tracking_uri)
    if MASK not in address:
        return address
    of_shell = os.environ.get("MLFLOW_TRACKING_URI", "")
    if masked_values(of_shell) == tracking_uri:
        return of_shell
    fix = f"set MLFLOW_TRACKING_URI or {key} to the whole address, or tracking=[] to go without MLflow"
    raise ConfigError([Problem(key, f"the run is in MLflow at {tracking_uri}, whose password is not known here", fix)])


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
