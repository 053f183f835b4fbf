"""Opens clients of MLflow's servers and databases, says at once when there is none, and finds or creates experiments there."""

from __future__ import annotations

import speechtrain.tracking.mlflow.settings  # noqa: F401  # before MLflow

# isort: split
import contextlib
import errno
import logging
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import filelock
import requests
import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import Experiment, LifecycleStage
from mlflow.exceptions import MlflowException

from speechtrain.addresses import masked
from speechtrain.errors import UserError, first_line
from speechtrain.files import absolute_sqlite_address, is_file, sqlite_file
from speechtrain.tracking.mlflow.internals import relocate_artifacts
from speechtrain.tracking.mlflow.view import ALL_RUNS, ONLY_REAL, REAL_RUNS, runs_link, view_tags

ARTIFACTS = "mlartifacts"
"""Name of the folder of artifacts beside a local database."""

EXPERIMENT_KEY = "tracking.mlflow.experiment"
_KIND = "mlflow.experimentKind"  # makes the UI show what belongs to trained models first
_LOCK_SECONDS = 60.0  # that another process may take to make a database
_CONNECT_SECONDS = 5
_DATABASES = ("postgresql", "mysql", "mssql", "mariadb")
_WITH_CONNECT_TIMEOUT = ("psycopg", "psycopg2", "pymysql", "mysqldb")


def open_client(uri: str) -> MlflowClient:
    """Return a client; a local database is created by one process at a time, and put in write-ahead mode.

    Raises:
        ConnectionError: there is no server or database, with the cause. MLflow itself would try for minutes, and not tell it.
    """
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if uri.startswith("sqlite:///"):
        uri = absolute_sqlite_address(uri)
        path = sqlite_file(uri)
        if uri.startswith("sqlite:///:memory:"):
            raise ConnectionError("a database in memory is gone when the run ends; name a file")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _check_writable(path)  # where no file can be made, the lock would be waited for without end
        except OSError as error:
            raise ConnectionError(f"{path} cannot be opened: {error.strerror}") from error
        with _lock(path):
            with contextlib.closing(sqlite3.connect(path)) as database:
                database.execute("PRAGMA journal_mode=WAL")
                if (artifacts := path.parent.absolute() / ARTIFACTS).is_dir():
                    relocate_artifacts(database, artifacts)
            with _without_misread_folder(uri):
                client = MlflowClient(uri)
                client.search_experiments(max_results=1)
            return client
    _check_server(uri)
    return MlflowClient(uri)


def _check_writable(path: Path) -> None:
    """Make a file that is missing, and refuse one that cannot be written, without opening one that is there.

    A process that closes a file loses all locks that it has on it. Were it a database that is open in this process, another one would take
    itself for the last that has it open, and remove the log of writes with what this one writes from then on.

    Raises:
        OSError: it cannot be written, or made.
    """
    if not is_file(path):
        path.open("ab").close()
    elif not os.access(path, os.R_OK | os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@contextlib.contextmanager
def _without_misread_folder(uri: str) -> Iterator[None]:
    """Remove the empty folder that MLflow makes because it takes an encoded address for a path."""
    misread = Path(uri.removeprefix("sqlite:///")).parent
    made = [folder for folder in (misread, *misread.parents) if not folder.exists()]
    try:
        yield
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _lock(database: Path) -> filelock.FileLock:
    return filelock.FileLock(f"{database}.lock", timeout=_LOCK_SECONDS)


def _check_server(uri: str) -> None:
    """Raise an error with the cause if a server or a database cannot be reached."""
    scheme = uri.partition("://")[0]
    if scheme in ("http", "https"):
        with contextlib.suppress(requests.exceptions.SSLError):  # MLflow has settings of its own for certificates
            requests.get(uri.partition("?")[0].rstrip("/") + "/health", timeout=(_CONNECT_SECONDS, 2 * _CONNECT_SECONDS))
    elif scheme.partition("+")[0] in _DATABASES:
        driver = sqlalchemy.engine.make_url(uri).get_dialect().driver
        limit = {"connect_timeout": _CONNECT_SECONDS} if driver in _WITH_CONNECT_TIMEOUT else {}
        engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.pool.NullPool, connect_args=limit)
        try:
            engine.connect().close()
        except sqlalchemy.exc.DBAPIError as error:
            raise ConnectionError(f"{str(error.orig).strip()}") from error
        except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
            raise ConnectionError(first_line(error)) from error


def status_of(error: MlflowException) -> int:
    """Return the status of HTTP that stands for an error of MLflow; 500 where it may be anything."""
    return int(error.get_http_status_code())  # type: ignore[no-untyped-call]


def experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    """Return the id of an experiment, which is created if it does not exist; a local database keeps artifacts in its folder.

    Raises:
        UserError: it is deleted.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        if experiment.lifecycle_stage == LifecycleStage.DELETED:
            restore = f"restore it with `mlflow experiments restore --experiment-id {experiment.experiment_id}`"
            raise UserError(f"the experiment '{name}' is deleted there\n    -> {restore}, or set {EXPERIMENT_KEY} to another")
        keep_views(client, experiment)
        return str(experiment.experiment_id)
    local = uri.startswith("sqlite:///")
    artifacts = (sqlite_file(uri).absolute().parent / ARTIFACTS).as_uri() if local else None
    try:
        return str(client.create_experiment(name, artifact_location=artifacts, tags={_KIND: "custom_model_development", **view_tags()}))
    except MlflowException:  # another process was first
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            raise
        return str(experiment.experiment_id)


def keep_views(client: MlflowClient, experiment: Experiment) -> None:
    """Give an experiment the views that links to the list of its runs name, if it has them not, or those of another version."""
    for name, value in view_tags().items():
        if experiment.tags.get(name) != value:
            with contextlib.suppress(MlflowException):  # a server on which this user may not change experiments
                client.set_experiment_tag(experiment.experiment_id, name, value)


def link_to_runs(uri: str, name: str, address: str) -> str:
    """Return the link to the list of an experiment's runs; test runs are in it only where there are no others, or the server is too old.

    Args:
        uri: the server or database.
        name: the experiment; the list of all experiments if there is none of this name.
        address: where the UI on it is.

    Raises:
        ConnectionError: there is no server or database.
        UserError: the server refuses to answer, as without a password.
    """
    try:
        client = open_client(uri)
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            return f"{address.rstrip('/')}/#/experiments?workflowType=machine_learning"
        keep_views(client, experiment)
        view = REAL_RUNS if _has_real_runs(client, experiment) else ALL_RUNS
    except MlflowException as error:
        fix = "look whether MLflow's own page opens there"
        if status_of(error) in (401, 403):
            fix = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to those of a user who may see it"
        raise UserError(f"MLflow at {masked(uri)} refuses to show the experiment '{name}' ({first_line(error)})\n    -> {fix}") from error
    return runs_link(address, experiment.experiment_id, view)


def _has_real_runs(client: MlflowClient, experiment: Experiment) -> bool:
    """Return whether an experiment has runs that do not only test the settings; False of a server that cannot search for them."""
    try:
        return bool(client.search_runs([experiment.experiment_id], ONLY_REAL, max_results=1))
    except MlflowException as error:
        if status_of(error) != 400:
            raise
        return False  # an older MLflow; the view with this filter would show an error there
