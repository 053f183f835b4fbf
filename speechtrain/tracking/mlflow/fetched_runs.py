"""Fetches from MLflow what a run goes on from whose folder is not on this machine; MLflow is asked in a process of its own."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import filelock

from speechtrain.errors import DiskError
from speechtrain.files import is_folder, make_folder, sqlite_file
from speechtrain.processes import fresh
from speechtrain.tracking.mlflow.location import experiment_name, tracking_address
from speechtrain.tracking.mlflow.lookup import check_names
from speechtrain.tracking.mlflow.resume_files import FetchedRun

_LOCK = ".lock"
"""Name of the file, in a folder that is fetched to, that the process which does so holds locked."""
_YOUNG = 60.0
"""Seconds within which a folder may have no lock because it has only just been made."""


def can_be_asked(uri: str | None) -> bool:
    """Return whether there may be an MLflow to ask: a server, or a database that is there; see `location.tracking_address`."""
    address = tracking_address(uri)
    return not address.startswith("sqlite:///") or sqlite_file(address).is_file()


@contextlib.contextmanager
def downloaded(
    name: str,
    uri: str | None,
    experiment: str | None,
    place: Path,
    *,
    key: str = "resume",
    pauses: Sequence[float] = (),
    check: Callable[[str], object] = lambda _: None,
) -> Iterator[tuple[FetchedRun, Path]]:
    """Download what `resume=` needs of a run to a folder in `place`, which is removed when the block ends.

    Args:
        name: the run's id, the first letters of it, or its name.
        uri: server or database, see `location.tracking_address`.
        experiment: the experiment in which names are looked for, see `location.experiment_name`.
        place: a folder on the disk that the run is to lie on; it is made if it is not there.
        key: the key of the config that names the run, for messages.
        pauses: seconds before each time that it is tried again.
        check: called with the run's id, in another process, before anything is downloaded; may raise a UserError.

    Yields:
        What was downloaded, and the folder with it.

    Raises:
        UserError: see `resume_store.fetch`.
        DiskError: nothing can be written in `place`.
    """
    address = tracking_address(uri)
    if address.startswith("sqlite:///"):
        check_names(sqlite_file(address), address, experiment_name(experiment), [name], [], key)  # a wrong name is told at once
    was_there = is_folder(place)
    make_folder(place)
    _remove_left(place)
    try:
        with _own_folder(place) as folder:
            yield fresh.call(_fetch, address, experiment, name, folder, key, pauses, check, quiet=True), folder
    finally:
        with contextlib.suppress(OSError):  # there is something in it
            if not was_there:
                place.rmdir()


@contextlib.contextmanager
def _own_folder(place: Path) -> Iterator[Path]:
    """Give a new folder in `place` that this process holds locked, and remove it when the block ends."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=".resume.", suffix=".tmp", dir=place))  # numbers of processes are not those of one machine
    except OSError as error:
        raise DiskError(error.errno, error.strerror, str(place)) from error
    try:
        with contextlib.ExitStack() as held:
            with contextlib.suppress(OSError, NotImplementedError):  # a file system without locks: nobody else can take it then
                held.enter_context(_lock(folder))
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_left(place: Path) -> None:
    """Remove the folders of processes that were killed while they fetched, on this machine or on another one that sees the same disk."""
    for left in place.glob(".resume.*.tmp"):
        with contextlib.suppress(OSError, NotImplementedError):  # filelock.Timeout is an OSError: it is in use
            if time.time() - left.stat().st_mtime > _YOUNG:
                with _lock(left):
                    shutil.rmtree(left, ignore_errors=True)


def _lock(folder: Path) -> filelock.FileLock:
    return filelock.FileLock(folder / _LOCK, timeout=0)


def _fetch(
    uri: str, experiment: str | None, name: str, folder: Path, key: str, pauses: Sequence[float], check: Callable[[str], object]
) -> FetchedRun:
    from speechtrain.tracking.mlflow.resume_store import fetch

    return fetch(uri, experiment, name, folder, key=key, pauses=pauses, check=check)
