"""Fetches from MLflow what a run goes on from whose folder is not on this machine; MLflow is asked in a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

from speechtrain.files import is_folder, make_folder, sqlite_file
from speechtrain.processes import fresh
from speechtrain.tracking.mlflow.location import experiment_name, tracking_address
from speechtrain.tracking.mlflow.lookup import check_names
from speechtrain.tracking.mlflow.resume_files import FetchedRun

_UNFINISHED = re.compile(r"\.resume\.(\d+)\.tmp")
"""Matches the names of folders that are fetched to; the group is the number of the process."""


def can_be_asked(uri: str | None) -> bool:
    """Return whether there may be an MLflow to ask: a server, or a database that is there; see `location.tracking_address`."""
    address = tracking_address(uri)
    return not address.startswith("sqlite:///") or sqlite_file(address).is_file()


@contextlib.contextmanager
def downloaded(
    name: str, uri: str | None, experiment: str | None, place: Path, *, key: str = "resume"
) -> Iterator[tuple[FetchedRun, Path]]:
    """Download what `resume=` needs of a run to a folder in `place`, which is removed when the block ends.

    Args:
        name: the run's id, the first letters of it, or its name.
        uri: server or database, see `location.tracking_address`.
        experiment: the experiment in which names are looked for, see `location.experiment_name`.
        place: a folder on the disk that the run is to lie on; it is made if it is not there.
        key: the key of the config that names the run, for messages.

    Yields:
        What was downloaded, and the folder with it.

    Raises:
        UserError: see `resume_store.fetch`.
    """
    address = tracking_address(uri)
    if address.startswith("sqlite:///"):
        check_names(sqlite_file(address), address, experiment_name(experiment), [name], [], key)  # a wrong name is told at once
    was_there = is_folder(place)
    make_folder(place)
    for left in place.glob(".resume.*.tmp"):
        if (process := _UNFINISHED.fullmatch(left.name)) is not None and not psutil.pid_exists(int(process[1])):
            shutil.rmtree(left, ignore_errors=True)
    folder = place / f".resume.{os.getpid()}.tmp"
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder)
    try:
        yield fresh.call(_fetch, address, experiment, name, folder, key, quiet=True), folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # there is something in it
            if not was_there:
                place.rmdir()


def _fetch(uri: str, experiment: str | None, name: str, folder: Path, key: str) -> FetchedRun:
    from speechtrain.tracking.mlflow.resume_store import fetch

    return fetch(uri, experiment, name, folder, key=key)
