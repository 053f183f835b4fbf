"""What `resume=` needs of a run, among its artifacts in MLflow: put there by the sender, fetched where its folder is not.

Below MLflow's stores of artifacts lie libraries with errors of their own (requests, botocore, those of other clouds): whatever they raise
is told apart here by the status that a server has answered with.
"""

from __future__ import annotations

import speechtrain.tracking.mlflow.settings  # noqa: F401  # before MLflow

# isort: split
import contextlib
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from speechtrain.addresses import masked
from speechtrain.errors import Problem, UserError, first_line
from speechtrain.tracking.base import NothingKeptError
from speechtrain.tracking.mlflow.client import status_of
from speechtrain.tracking.mlflow.lookup import open_reader
from speechtrain.tracking.mlflow.reader import NoAnswerError, Reader, Record
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
    taken_at,
)
from speechtrain.tracking.mlflow.runs import FOLDER
from speechtrain.tracking.mlflow.settings import transfer_timeout

KEPT = "speechtrain.resume"
"""Tag of a run: when the last checkpoint was taken that MLflow has of it, and who has sent it; or `DELETED`."""
DELETED = "deleted"
"""Value of the tag of a run that will not go on, of which nothing is kept any more."""

_ANOTHER = "another process goes on with the run, too"
_SPARE = 1 << 26
"""Bytes that stay free on a disk that files are fetched to."""
_PASSING = (408, 409, 423, 425, 429)
"""Statuses of HTTP below 500 after which the same may be accepted a little later."""
_NOT_IMPLEMENTED = 501
_ANYTHING = 500
"""Status that stands for all errors of MLflow without one of their own."""


def http_status(error: BaseException) -> int | None:
    """Return the status of HTTP in an error of MLflow, requests or botocore, or in one of its causes; None where there is none."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, MlflowException) and status_of(cause) != _ANYTHING:
            return status_of(cause)
        response = getattr(cause, "response", None)
        if isinstance(response, dict):  # of botocore
            response = response.get("ResponseMetadata", {})
            status = response.get("HTTPStatusCode") if isinstance(response, dict) else None
        else:
            status = getattr(response, "status_code", None)
        if isinstance(status, int):
            return status
        cause = cause.__cause__ or cause.__context__
    return None


def is_refusal(error: BaseException) -> bool:
    """Return whether a server would refuse the same again, as what is too large or not allowed; all else may pass."""
    status = http_status(error)
    return status is not None and (400 <= status < 500 or status == _NOT_IMPLEMENTED) and status not in _PASSING


class ResumeStore:
    """The files of one run that `resume=` needs, in MLflow.

    Args:
        client: client of the run's server.
        run_id: the run.
    """

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client = client
        self._run_id = run_id
        self._id = uuid.uuid4().hex[:8]
        self._own: set[str] | None = None

    def put(self, snapshot: Path) -> str:
        """Put a snapshot in place of the one before: what is there already is not sent again, and what belongs to none is deleted.

        Nothing is deleted before all of the snapshot, and the list of it, is there. A snapshot that is older than what the run has is not
        sent, and none of a run that will not go on.

        Returns:
            Why what belongs to none could not be deleted, in a line; empty: it was, or there was nothing.

        Raises:
            IncompleteSnapshotError: something of it is missing.
            Exception: the server cannot be reached, or refuses; the snapshot before this one is still whole then.
        """
        files = described(snapshot)
        needed = {file.artifact: file.bytes for file in files}
        kept, _, sender = self._client.get_run(self._run_id).data.tags.get(KEPT, "").partition(" ")
        if kept == DELETED or kept > taken_at(snapshot):
            return ""
        there = self._listed()
        is_first = self._own is None
        if self._own is None:  # also what a process has sent that died before it wrote its list
            self._own = {name for name in there if name != LIST}
        self._own |= needed.keys()
        with tempfile.TemporaryDirectory(dir=snapshot) as folder:
            for file, path in files.items():
                if there.get(file.artifact) != file.bytes:
                    link_or_copy(path, Path(folder) / file.artifact)
                    with transfer_timeout(file.bytes):
                        self._client.log_artifact(self._run_id, str(Path(folder) / file.artifact), ARTIFACTS)
                    there[file.artifact] = file.bytes
        self._check_all_there(needed)
        self._client.set_tag(self._run_id, KEPT, f"{taken_at(snapshot)} {self._id}")
        self._client.log_text(self._run_id, as_list(list(files)), f"{ARTIFACTS}/{LIST}")
        if is_first or sender == self._id:
            undeleted = self._delete_all([name for name in sorted(self._own - needed.keys()) if name in there])
        else:
            undeleted = _ANOTHER
        self._check_all_there(needed)  # another process that goes on with the run may delete what it does not need
        return undeleted

    def _check_all_there(self, needed: Mapping[str, int]) -> None:
        """Ask the store whether it has all files of a snapshot.

        Args:
            needed: their sizes by their names.

        Raises:
            ConnectionError: it has not.
        """
        there = self._listed()
        if lost := [name for name, size in needed.items() if there.get(name, -1) not in (size, None)]:
            raise ConnectionError(f"{len(lost)} of {len(needed)} files that were sent are not in the store, as {lost[0]}")

    def _delete_all(self, names: Sequence[str]) -> str:
        """Delete files that no list names, and return why one could not be; those are tried again with the next snapshot."""
        reason = ""
        for name in names:
            try:
                if not self._is_latest():
                    return _ANOTHER
                self._delete(name)
            except Exception as error:  # noqa: BLE001 # some stores delete nothing, each with an error of its own
                reason = reason or first_line(error)
        return reason

    def _is_latest(self) -> bool:
        """Return whether no other process has sent a snapshot of the run since: it may need files that are of no use to this one."""
        return self._client.get_run(self._run_id).data.tags.get(KEPT, "").endswith(self._id)

    def delete(self) -> None:
        """Delete all of these files, the list first, and have none come after it.

        Raises:
            Exception: the server cannot be reached, or refuses.
        """
        self._client.set_tag(self._run_id, KEPT, DELETED)
        there = self._listed()
        for name in sorted(there, key=lambda name: name != LIST):
            self._delete(name)
        self._own = None

    def _listed(self) -> dict[str, int | None]:
        """Return the sizes of the files that are there, by name; None where a store does not tell them."""
        return {Path(item.path).name: item.file_size for item in self._client.list_artifacts(self._run_id, ARTIFACTS)}

    def _delete(self, name: str) -> None:
        place = self._client.get_run(self._run_id).info.artifact_uri
        get_artifact_repository(place, self._client.tracking_uri).delete_artifacts(f"{ARTIFACTS}/{name}")  # type: ignore[no-untyped-call]


def fetch(
    uri: str | None,
    experiment: str | None,
    name: str,
    folder: Path,
    *,
    key: str = "resume",
    pauses: Sequence[float] = (),
    check: Callable[[str], object] = lambda _: None,
) -> FetchedRun:
    """Download what `resume=` needs of a run; called in a process of its own, in which no file grows larger than was announced.

    Args:
        uri: server or database, see `location.tracking_address`.
        experiment: the experiment in which names are looked for, see `location.experiment_name`.
        name: the run's id, the first letters of it, or its name.
        folder: an empty folder.
        key: the key of the config that names the run, for messages.
        pauses: seconds before each time that it is tried again, as while a server starts, or the run goes on and replaces its files.
        check: called with the run's id before anything is downloaded; may raise a UserError.

    Raises:
        RunNotFoundError: there is no such run.
        NothingKeptError: it has kept nothing.
        UserError: what it has kept is not what `ResumeStore.put` writes, there is no room for it, or it cannot be had.
    """
    for pause in (*pauses, None):
        try:
            reader = open_reader(uri, experiment, runs=[name], key=key, uri_key="tracking.mlflow.tracking_uri")
            try:
                return _fetch(reader, name, folder, key, check)
            except (UserError, _PassingError):
                raise
            except Exception as error:
                raise _cannot_be_had(error, f"run '{name}' in MLflow at {masked(reader.uri)}", "what it goes on from") from error
        except (NoAnswerError, _PassingError) as error:
            if pause is None:
                raise UserError(str(error)) from error
        time.sleep(pause)
    raise AssertionError


class _PassingError(Exception):
    """Something cannot be had now; the message says what, and what to do if it stays so."""


def _cannot_be_had(error: Exception, place: str, what: str) -> Exception:
    """Return the error to raise where MLflow, or its store of artifacts, does not give something."""
    message = f"{place}: {what} cannot be fetched ({first_line(error)})"
    if isinstance(error, ImportError):
        package = "'speechtrain[s3]'" if (error.name or "").partition(".")[0] in ("boto3", "botocore") else error.name
        return UserError(f"{message}\n    -> pip install {package}, or have the server pass files on (mlflow server --serve-artifacts)")
    chain = {type(each).__name__ for each in (error, error.__cause__, error.__context__)}
    if chain & _WITHOUT_KEYS or http_status(error) in (401, 403):
        fix = "set the keys of the store (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or of the server (MLFLOW_TRACKING_USERNAME, ..."
        return UserError(f"{message}\n    -> {fix}), or have the server pass files on (mlflow server --serve-artifacts)")
    return _PassingError(f"{message}\n    -> try again, or look at the server's log")


_WITHOUT_KEYS = {"NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "ProfileNotFound", "DefaultCredentialsError"}
"""Names of the errors of stores that miss a password, whose libraries need not be installed."""


def _fetch(reader: Reader, name: str, folder: Path, key: str, check: Callable[[str], object]) -> FetchedRun:
    run = reader.run(name, key=key)
    check(run.id)
    place = f"run {run.id} in MLflow at {masked(reader.uri)}"
    client = MlflowClient(reader.uri)
    files = _files(client, run, folder, place, key)
    wanted = {file.artifact for file in files}
    for path in folder.iterdir():  # of a list that was replaced meanwhile
        if path.is_file() and path.name not in wanted and not path.name.startswith("."):
            path.unlink()
    _check_room(files, folder, place)
    for file in files:
        _download(client, run.id, file, folder, place, local=reader.uri.startswith("sqlite:"))
    info = client.get_run(run.id).info
    return FetchedRun(run.id, run.status, client.get_experiment(info.experiment_id).name, run.tags.get(FOLDER, ""), files)


def _files(client: MlflowClient, run: Record, folder: Path, place: str, key: str) -> tuple[ResumeFile, ...]:
    """Return the files of a run by its list.

    Raises:
        NothingKeptError: it has none.
        UserError: the list is none.
        _PassingError: it cannot be read.
    """
    try:
        names = {Path(item.path).name for item in client.list_artifacts(run.id, ARTIFACTS)}
    except Exception as error:
        raise _cannot_be_had(error, place, f"what is in {ARTIFACTS}/") from error
    if LIST not in names:
        message = f"{place} has nothing to go on from among its artifacts"
        fix = "tracking.mlflow.log_last=true keeps it there from the first checkpoint on; go on where its folder is, or train anew"
        raise NothingKeptError([Problem(key, message, fix)])
    with _largest_file(LONGEST_LIST):
        try:
            text = Path(client.download_artifacts(run.id, f"{ARTIFACTS}/{LIST}", str(folder))).read_text(encoding="utf-8")
        except Exception as error:
            raise _cannot_be_had(error, place, f"{ARTIFACTS}/{LIST}") from error
    return read_list(text, place)


def _check_room(files: tuple[ResumeFile, ...], folder: Path, place: str) -> None:
    missing = {file.artifact: file.bytes for file in files if not (folder / file.artifact).is_file()}
    needed, free = sum(missing.values()), shutil.disk_usage(folder).free
    if needed + _SPARE > free:
        message = f"{place}: {needed / 1e9:.1f} GB are to be fetched, and {folder} has room for {free / 1e9:.1f} GB"
        raise UserError(f"{message}\n    -> make room, or start in a folder on another disk")


def _download(client: MlflowClient, run_id: str, file: ResumeFile, folder: Path, place: str, *, local: bool) -> None:
    """Download a file and compare it with the list, unless it is there.

    Raises:
        UserError: it must not be had.
        _PassingError: it cannot be had now, or is another one.
    """
    if (folder / file.artifact).is_file():
        return
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as scratch:
        try:
            with _largest_file(None if local else file.bytes), transfer_timeout(file.bytes):
                path = Path(client.download_artifacts(run_id, f"{ARTIFACTS}/{file.artifact}", scratch))
        except Exception as error:
            raise _cannot_be_had(error, place, file.name) from error
        if not path.is_file() or path.is_symlink() or path.stat().st_size != file.bytes or digest_of(path) != file.sha256:
            fix = "try again once the run has ended, which may have replaced it; if it stays so, it is damaged there"
            raise _PassingError(f"{place}: {file.name} is not the file that its list names\n    -> {fix}")
        path.rename(folder / file.artifact)


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
