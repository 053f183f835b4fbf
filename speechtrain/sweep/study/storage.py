"""Opens the storage of a study, a journal file by default or what a URL names, and lets one process at a time plan its trials."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import filelock
import optuna
import sqlalchemy
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from speechtrain.addresses import masked
from speechtrain.config.extras import needed
from speechtrain.errors import ConfigError, Problem, first_line
from speechtrain.files import absolute_sqlite_address, sqlite_file
from speechtrain.sweep.study.internals import JournalLock

optuna.logging.set_verbosity(optuna.logging.WARNING)
logging.getLogger("alembic").setLevel(logging.ERROR)

_URL_FORMS = "journal:///FILE.journal, sqlite:///FILE.db, postgresql+psycopg://USER@HOST/DATABASE or grpc://HOST:PORT"


_GRACE_SECONDS = 30.0
"""Age at which a lock counts as left by a dead process, as in `JournalFileSymlinkLock`."""


class JournalLocks(JournalLock):
    """Locks a journal against our own processes and against all that write it by Optuna alone, such as optuna-dashboard.

    The kernel's lock dies with its process; Optuna's symbolic link outlives it, and would hold others up for 30 s. Who has the kernel's
    lock knows that a link of ours was left by a dead process and removes it, and a line that one left half written, for what is appended
    to half a line makes the file unreadable.

    Args:
        path: absolute path of the journal.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ours = filelock.FileLock(f"{path}.writers.lock")
        self._target = f"{path.parent}/./{path.name}"  # the journal, written as nobody else writes it: links of ours are known by it
        self._everyones = JournalFileSymlinkLock(self._target)

    def __reduce__(self) -> tuple[type[JournalLocks], tuple[Path]]:
        """Return what a pickle makes a lock of the same journal from; filelock's cannot be pickled."""
        return JournalLocks, (self._path,)

    def acquire(self) -> bool:
        """Wait until both locks are free, take them and repair the journal's end; always returns True."""
        self._ours.acquire()
        try:
            self._remove_lock_of_the_dead()
            self._everyones.acquire()
        except BaseException:
            self._ours.release()
            raise
        with contextlib.suppress(FileNotFoundError), self._path.open("rb+") as file:
            size = file.seek(0, os.SEEK_END)
            if size and file.seek(size - 1) is not None and file.read(1) != b"\n":
                file.truncate(_end_of_last_line(file, size))
        return True

    def release(self) -> None:
        """Give the locks back to other processes."""
        with contextlib.suppress(RuntimeError):  # another process removed the link, for this one stood still for 30 s
            self._everyones.release()
        self._ours.release()

    def _remove_lock_of_the_dead(self) -> None:
        """Remove a link of ours, or the file that an earlier version used and left; the caller has the kernel's lock."""
        lock = Path(f"{self._path}.lock")
        with contextlib.suppress(OSError):
            is_ours = lock.is_symlink() and os.readlink(lock) == self._target  # noqa: PTH115 # pathlib leaves the dot out
            is_old = not lock.is_symlink() and time.time() - lock.stat().st_mtime > _GRACE_SECONDS
            if is_ours or is_old:
                lock.unlink()


def _end_of_last_line(file: BinaryIO, size: int) -> int:
    end = size
    while end > 0:
        begin = max(0, end - 4096)
        file.seek(begin)
        newline = file.read(end - begin).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
        end = begin
    return 0


_opened: dict[tuple[str, int], BaseStorage] = {}


def open_storage(url: str) -> BaseStorage:
    """Return the storage of a URL, which each process opens once.

    Raises:
        ConfigError: the kind of storage is unknown, its driver is not installed, or it cannot be reached.
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
            return JournalStorage(JournalFileBackend(str(path), lock_obj=JournalLocks(path)))
        if parts.scheme == "grpc":
            return optuna.storages.GrpcStorageProxy(host=parts.hostname or "localhost", port=parts.port or 13000)
        if parts.scheme == "memory":
            return optuna.storages.InMemoryStorage()
        if parts.scheme.startswith("sqlite"):
            return _open_sqlite(url)
        return _open_database(url)
    except ImportError as error:
        driver = "grpc" if parts.scheme == "grpc" else "psycopg" if parts.scheme.startswith("postgresql") else None
        if absent := list(needed("hydra.sweeper.storage", [driver] if driver else [])):
            raise ConfigError([Problem(*rule) for rule in absent]) from error
        raise _unusable(url, first_line(error), f"install the driver of this database, or write {_URL_FORMS}") from error
    except Exception as error:  # each database has errors of its own
        reason = next((line for line in str(error).strip().splitlines() if line.strip()), type(error).__name__)
        raise _unusable(url, reason, f"write {_URL_FORMS}") from error


def _open_database(url: str) -> BaseStorage:
    """Open a database, waiting a moment if another process is just creating its tables."""
    for wait in (0.2, 0.5, 1.0, 2.0):
        try:
            return optuna.storages.get_storage(url)
        except sqlalchemy.exc.SQLAlchemyError as error:
            if not any(word in str(error) for word in ("already exists", "duplicate key")):
                raise
            time.sleep(wait)
    return optuna.storages.get_storage(url)


def _open_sqlite(url: str) -> BaseStorage:
    path = sqlite_file(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{path}.lock"):  # one process creates the tables
        storage = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})
    return optuna.storages.get_storage(storage)


def _unusable(url: str, reason: str, fix: str) -> ConfigError:
    return ConfigError([Problem("hydra.sweeper.storage", f"{masked(url)} cannot be used: {reason[:300]}", fix)])


def storage_url(configured: str | None, folder: Path) -> str:
    """Return the URL of the storage that a config asks for; files become absolute, for jobs may run in other folders.

    Args:
        configured: `hydra.sweeper.storage`; None: a journal in the sweep's folder.
        folder: folder of the sweep.
    """
    if configured is None:
        return f"journal:///{folder.absolute() / 'study.journal'}"
    for scheme in ("journal", "sqlite"):
        head = f"{scheme}:///"
        if configured.startswith(head) and ":memory:" not in configured:
            return absolute_sqlite_address(configured) if scheme == "sqlite" else f"{head}{Path(configured.removeprefix(head)).absolute()}"
    if "://" not in configured and configured.endswith((".journal", ".log")):
        return f"journal:///{Path(configured).absolute()}"
    return configured


@cache
def _engine(url: str) -> sqlalchemy.Engine:
    """Return an engine for the connections that hold locks, because Optuna's own is private."""
    return sqlalchemy.create_engine(url)


@cache
def _file_lock(path: str) -> filelock.BaseFileLock:
    """Return the lock of a path, which takes longer to make than to acquire; each thread holds it for itself."""
    return filelock.FileLock(path)


@contextlib.contextmanager
def study_lock(url: str, study: str) -> Iterator[bool]:
    """Hold the lock under which one process at a time changes the plan of a study; yield False where the storage has no locks.

    Without one (a gRPC proxy) two sweepers may plan a trial too many between them; the ledger never runs it.
    """
    parts = urlsplit(url)
    if parts.scheme == "journal" or (parts.scheme.startswith("sqlite") and ":memory:" not in url):
        path = url.removeprefix("journal:///") if parts.scheme == "journal" else sqlite_file(url)
        with _file_lock(f"{path}.plan.lock"):
            yield True
        return
    if parts.scheme.startswith("postgres"):
        with _engine(url).connect() as connection:
            connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(hashtext(:name))"), {"name": f"speechtrain/{study}"})
            try:
                yield True
            finally:
                connection.execute(sqlalchemy.text("SELECT pg_advisory_unlock(hashtext(:name))"), {"name": f"speechtrain/{study}"})
        return
    yield url.startswith("memory:")
