"""What `resume=` needs of a run, among its artifacts in MLflow: put there by the sender, fetched where its folder is not."""

from __future__ import annotations

import speechtrain.tracking.mlflow.settings  # noqa: F401  # before MLflow

# isort: split
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from speechtrain.addresses import masked
from speechtrain.errors import ConfigError, Problem, RunError, UserError, first_line
from speechtrain.tracking.mlflow.lookup import open_reader
from speechtrain.tracking.mlflow.reader import Reader, Record
from speechtrain.tracking.mlflow.resume_files import (
    ARTIFACTS,
    LIST,
    LONGEST_LIST,
    FetchedRun,
    ResumeFile,
    as_list,
    described,
    digest_of,
    link_or_copy,
    read_list,
)
from speechtrain.tracking.mlflow.runs import FOLDER
from speechtrain.tracking.mlflow.settings import transfer_timeout

_TRIES = 3
"""Times that files are fetched while the run, which is still going on somewhere, replaces them."""
_SPARE = 1 << 26
"""Bytes that stay free on a disk that files are fetched to."""


class ResumeStore:
    """The files of one run that `resume=` needs, in MLflow.

    Args:
        client: client of the run's server.
        run_id: the run.
    """

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client = client
        self._run_id = run_id
        self._present: dict[str, int] | None = None

    def put(self, snapshot: Path) -> None:
        """Put a snapshot in place of the one before: what is there already is not sent again, and what belongs to none is deleted.

        Raises:
            Exception: the server cannot be reached, or refuses; the snapshot before this one is still whole then.
        """
        if self._present is None:
            self._present = self._listed()
        files = described(snapshot)
        with tempfile.TemporaryDirectory(dir=snapshot) as folder:
            for file, path in files.items():
                if self._present.get(file.artifact) != file.bytes:
                    link_or_copy(path, Path(folder) / file.artifact)
                    with transfer_timeout(file.bytes):
                        self._client.log_artifact(self._run_id, str(Path(folder) / file.artifact), ARTIFACTS)
                    self._present[file.artifact] = file.bytes
        self._client.log_text(self._run_id, as_list(list(files)), f"{ARTIFACTS}/{LIST}")
        needed = {file.artifact for file in files}
        for name in [name for name in self._present if name not in needed]:
            with contextlib.suppress(Exception):  # some stores delete nothing
                self._delete(name)
            del self._present[name]

    def remove(self) -> None:
        """Delete all of these files, the list first."""
        for name in (LIST, *self._listed()):
            self._delete(name)
        self._present = {}

    def _listed(self) -> dict[str, int]:
        """Return the sizes of the files that are there, by name, without the list."""
        listed = {Path(item.path).name: int(item.file_size or 0) for item in self._client.list_artifacts(self._run_id, ARTIFACTS)}
        return {name: size for name, size in listed.items() if name != LIST}

    def _delete(self, name: str) -> None:
        place = self._client.get_run(self._run_id).info.artifact_uri
        get_artifact_repository(place, self._client.tracking_uri).delete_artifacts(f"{ARTIFACTS}/{name}")  # type: ignore[no-untyped-call]


def fetch(uri: str | None, experiment: str | None, name: str, folder: Path, *, key: str = "resume") -> FetchedRun:
    """Download what `resume=` needs of a run; called in a process of its own, in which no file grows larger than was announced.

    Args:
        uri: server or database, see `location.tracking_address`.
        experiment: the experiment in which names are looked for, see `location.experiment_name`.
        name: the run's id, the first letters of it, or its name.
        folder: an empty folder.
        key: the key of the config that names the run, for messages.

    Raises:
        ConfigError: there is no such run, or it has kept nothing.
        UserError: what it has kept is not what `ResumeStore.put` writes, there is no room for it, or the server does not answer.
    """
    reader = open_reader(uri, experiment, runs=[name], key=key, uri_key="tracking.mlflow.tracking_uri")
    try:
        return _fetch(reader, name, folder, key)
    except (UserError, RunError):
        raise
    except (MlflowException, OSError) as error:
        message = f"MLflow at {masked(reader.uri)} does not give what run '{name}' goes on from ({first_line(error)})"
        raise UserError(f"{message}\n    -> try again, or look at the server's log") from error


def _fetch(reader: Reader, name: str, folder: Path, key: str) -> FetchedRun:
    run = reader.run(name, key=key)
    place = f"run {run.id} in MLflow at {masked(reader.uri)}"
    client = MlflowClient(reader.uri)
    for attempt in range(_TRIES):
        try:
            files = _files(client, run, folder, place, key)
            _check_room(files, folder, place)
            for file in files:
                _download(client, run.id, file, folder, place, local=reader.uri.startswith("sqlite:"))
        except _ReplacedError as error:
            if attempt + 1 == _TRIES:
                raise UserError(f"{error}\n    -> wait until the run has ended, or try again") from error
        else:
            info = client.get_run(run.id).info
            return FetchedRun(run.id, run.status, client.get_experiment(info.experiment_id).name, run.tags.get(FOLDER, ""), files)
    raise AssertionError


class _ReplacedError(Exception):
    """A file is not what the list said."""


def _files(client: MlflowClient, run: Record, folder: Path, place: str, key: str) -> tuple[ResumeFile, ...]:
    """Return the files of a run by its list.

    Raises:
        ConfigError: it has none.
        UserError: the list cannot be read.
    """
    sizes = {Path(item.path).name: item.file_size for item in client.list_artifacts(run.id, ARTIFACTS)}
    if LIST not in sizes:
        message = f"{place} has nothing to go on from among its artifacts"
        fix = "tracking.mlflow.log_last=true keeps it there from the first checkpoint on; go on where its folder is, or train anew"
        raise ConfigError([Problem(key, message, fix)])
    with _largest_file(LONGEST_LIST):
        try:
            text = Path(client.download_artifacts(run.id, f"{ARTIFACTS}/{LIST}", str(folder))).read_text(encoding="utf-8")
        except (MlflowException, OSError, ValueError) as error:
            raise UserError(f"{place}: {ARTIFACTS}/{LIST} cannot be read ({first_line(error)})\n    -> try again") from error
    return read_list(text, place)


def _check_room(files: tuple[ResumeFile, ...], folder: Path, place: str) -> None:
    needed, free = sum(file.bytes for file in files), shutil.disk_usage(folder).free
    if needed + _SPARE > free:
        message = f"{place}: {needed / 1e9:.1f} GB are to be fetched, and {folder} has room for {free / 1e9:.1f} GB"
        raise UserError(f"{message}\n    -> make room, or start in a folder on another disk")


def _download(client: MlflowClient, run_id: str, file: ResumeFile, folder: Path, place: str, *, local: bool) -> None:
    """Download a file and compare it with the list.

    Raises:
        _ReplacedError: it is another one, or there is none.
    """
    if (folder / file.artifact).is_file():
        return
    scratch = Path(tempfile.mkdtemp(dir=folder))
    try:
        with _largest_file(None if local else file.bytes), transfer_timeout(file.bytes):
            path = Path(client.download_artifacts(run_id, f"{ARTIFACTS}/{file.artifact}", str(scratch)))
    except (MlflowException, OSError) as error:
        raise _ReplacedError(f"{place}: {file.name} cannot be fetched ({first_line(error)})") from error
    if not path.is_file() or path.is_symlink() or path.stat().st_size != file.bytes or digest_of(path) != file.sha256:
        raise _ReplacedError(f"{place}: {file.name} is not the file that its list names")
    path.rename(folder / file.artifact)
    shutil.rmtree(scratch)


@contextlib.contextmanager
def _largest_file(most: int | None) -> Iterator[None]:
    """Have the system refuse to let a file grow beyond a number of bytes while the block runs, whatever a server sends; None: no limit."""
    if most is None or sys.platform == "win32":
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    bounds = [each for each in (soft, hard, most + 1) if each != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_FSIZE, (min(bounds), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
