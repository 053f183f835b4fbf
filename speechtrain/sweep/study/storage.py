"""Where a study lives: a journal file by default, or what a URL names."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import filelock
import optuna
import sqlalchemy
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock

from speechtrain.errors import ConfigError, Problem, without_passwords

optuna.logging.set_verbosity(optuna.logging.WARNING)
logging.getLogger("alembic").setLevel(logging.ERROR)

_WRITTEN = "journal:///FILE.journal, sqlite:///FILE.db, postgresql+psycopg://USER@HOST/DATABASE or grpc://HOST:PORT"


class KernelLock(BaseJournalFileLock):
    """A lock on a journal that ends with its process, and mends a line that a killed process left half written.

    Optuna's own lock files outlive a killed process by 30 s, and what is appended to half a line makes the file unreadable.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = filelock.FileLock(f"{path}.lock")

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._lock.acquire()
        with contextlib.suppress(FileNotFoundError), self._path.open("rb+") as file:
            size = file.seek(0, os.SEEK_END)
            if size and file.seek(size - 1) is not None and file.read(1) != b"\n":
                file.truncate(_end_of_last_line(file, size))
        return True

    def release(self) -> None:
        """Let go."""
        self._lock.release()


def _end_of_last_line(file: Any, size: int) -> int:
    position = size
    while position > 0:
        begin = max(0, position - 4096)
        file.seek(begin)
        found = file.read(position - begin).rfind(b"\n")
        if found >= 0:
            return int(begin + found + 1)
        position = begin
    return 0


_opened: dict[tuple[str, int], BaseStorage] = {}


def open_storage(url: str) -> BaseStorage:
    """The storage of a URL; opened once a process.

    Raises:
        ConfigError: there is no such kind of storage, its driver is not installed, or it cannot be reached.
    """
    key = (url, os.getpid())
    if key not in _opened:
        _opened[key] = _open(url)
    return _opened[key]


def _open(url: str) -> BaseStorage:
    parts = urlsplit(url)
    try:
        if parts.scheme == "journal":
            path = Path(url.removeprefix("journal:///"))
            path.parent.mkdir(parents=True, exist_ok=True)
            return JournalStorage(JournalFileBackend(str(path), lock_obj=KernelLock(path)))
        if parts.scheme == "grpc":
            return optuna.storages.GrpcStorageProxy(host=parts.hostname or "localhost", port=parts.port or 13000)
        if parts.scheme == "memory":
            return optuna.storages.InMemoryStorage()
        if parts.scheme.startswith("sqlite"):
            return _open_sqlite(url)
        return _open_database(url)
    except ImportError as error:
        raise _unusable(url, str(error), "pip install 'speechtrain[postgresql]' or 'speechtrain[grpc]'") from error
    except Exception as error:  # each database has errors of its own
        reason = next((line for line in str(error).strip().splitlines() if line.strip()), type(error).__name__)
        raise _unusable(url, reason, f"write {_WRITTEN}") from error


def _open_database(url: str) -> BaseStorage:
    """A database whose tables another process may be making at this moment."""
    for wait in (0.2, 0.5, 1.0, 2.0):
        try:
            return optuna.storages.get_storage(url)
        except sqlalchemy.exc.SQLAlchemyError as error:
            if not any(word in str(error) for word in ("already exists", "duplicate key")):
                raise
            time.sleep(wait)
    return optuna.storages.get_storage(url)


def _open_sqlite(url: str) -> BaseStorage:
    path = Path(url.partition("///")[2].partition("?")[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{path}.lock"):  # tables are made by one process
        storage = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})
    return optuna.storages.get_storage(storage)


def _unusable(url: str, reason: str, fix: str) -> ConfigError:
    return ConfigError([Problem("hydra.sweeper.storage", f"{without_passwords(url)} cannot be used: {reason[:300]}", fix)])


def storage_url(given: str | None, folder: Path) -> str:
    """The storage that a config asks for; relative files are made absolute, as jobs may run elsewhere."""
    if given is None:
        return f"journal:///{folder.absolute() / 'study.journal'}"
    for scheme in ("journal", "sqlite"):
        head = f"{scheme}:///"
        if given.startswith(head) and not given.startswith(f"{head}/") and ":memory:" not in given:
            return f"{head}{Path(given.removeprefix(head)).absolute()}"
    if "://" not in given and given.endswith((".journal", ".log")):
        return f"journal:///{Path(given).absolute()}"
    return given


@contextlib.contextmanager
def exclusively(url: str, storage: BaseStorage, study: str) -> Iterator[bool]:
    """Only one process at a time adds trials to the plan of a study; gives False where the storage has no lock to offer.

    Without one (a gRPC proxy) two sweepers may plan a trial too many between them; the ledger never runs it.
    """
    parts = urlsplit(url)
    if parts.scheme == "journal" or (parts.scheme.startswith("sqlite") and ":memory:" not in url):
        path = url.partition(":///")[2].partition("?")[0]
        with filelock.FileLock(f"{path}.plan.lock"):
            yield True
        return
    engine = getattr(getattr(storage, "_backend", storage), "engine", None)
    if engine is not None and engine.dialect.name == "postgresql":
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(hashtext(:name))"), {"name": f"speechtrain/{study}"})
            try:
                yield True
            finally:
                connection.execute(sqlalchemy.text("SELECT pg_advisory_unlock(hashtext(:name))"), {"name": f"speechtrain/{study}"})
        return
    yield url.startswith("memory:")
