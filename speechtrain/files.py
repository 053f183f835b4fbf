"""Files that appear whole or not at all, errors that name the file which cannot be written, and names as users give them."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

import psutil

from speechtrain.errors import FULL, DiskError, RunError, UserError

_REASONS = (
    *(*FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOENT, errno.ENOTDIR, errno.EISDIR),
    *(errno.ENAMETOOLONG, errno.ESTALE, errno.ENOTCONN),
)
"""Numbers of the errors of a disk or a folder."""
_PROBE_BYTES = 1 << 20
_UNFINISHED = re.compile(r"\..+\.(\d+)\.tmp(\.\w+)?")
"""Matches the temporary names of `atomically`; the group is the number of the process that writes the file."""


def launch_folder() -> Path:
    """Return the folder in which the command was given; with `hydra.job.chdir=true` its jobs have their own as current folder."""
    module = sys.modules.get("hydra.core.hydra_config")  # imported wherever a job runs, and slow to import elsewhere
    if module is None or not module.HydraConfig.initialized():
        return Path.cwd()
    return Path(module.HydraConfig.get().runtime.cwd)


def user_path(name: str | Path) -> Path:
    """Return the path that a user names, seen from `launch_folder`; `~` is the home folder, that of an unknown user stays as it is."""
    path = Path(os.path.expanduser(name))  # noqa: PTH111 # Path.expanduser raises RuntimeError for a user that there is not
    return path if path.is_absolute() or launch_folder() == Path.cwd() else launch_folder() / path


def ignore_in_git(folder: Path) -> None:
    """Have git ignore a folder of outputs with all that is in it, by a file `.gitignore` that is in it too."""
    with contextlib.suppress(OSError):
        if not (folder / ".gitignore").exists():
            (folder / ".gitignore").write_text("*\n", encoding="ascii")


def sqlite_file(address: str) -> Path:
    """Return the file of an address `sqlite:///FILE?OPTIONS`, in which `%3F` stands for a question mark, as SQLAlchemy reads it.

    It is not read by `sqlalchemy.make_url`, whose import every command would wait for.
    """
    return Path(unquote(address.partition(":///")[2].partition("?")[0]))


def sqlite_address(file: Path) -> str:
    """Return the address of a database as SQLAlchemy reads it; only what would be misread is encoded, for MLflow makes folders by it."""
    return "sqlite:///" + re.sub(r"[%?{}]", lambda found: f"%{ord(found[0]):02X}", str(file.absolute()))


def absolute_sqlite_address(address: str) -> str:
    """Return the address of a database with the absolute path of its file, and its options; another address as it is."""
    if not address.startswith("sqlite:///") or address.startswith("sqlite:///:memory:"):
        return address
    _, question_mark, options = address.partition("?")
    return sqlite_address(launch_folder() / sqlite_file(address)) + question_mark + options


def is_file(path: Path) -> bool:
    """Return whether there is a regular file of a name, which may be one that no file can have: there `Path.is_file` raises."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: Path) -> bool:
    """Return whether there is a folder of a name, see `is_file`."""
    return os.path.isdir(path)  # noqa: PTH112


def regular_size(path: Path) -> int:
    """Return the size in bytes of a regular file, or of the one that a link names.

    Raises:
        OSError: there is none; folders, pipes and devices are none, for reading them may never end.
    """
    try:
        status = path.stat()
    except ValueError:  # of os.fsencode, and for a zero byte
        raise OSError(errno.EINVAL, "no file can have such a name", str(path)) from None
    if stat.S_ISREG(status.st_mode):
        return status.st_size
    raise OSError(errno.EINVAL, "is a folder" if stat.S_ISDIR(status.st_mode) else "is no regular file", str(path))


def open_regular(path: Path) -> BinaryIO:
    """Open a file of the user's for reading.

    Raises:
        OSError: there is none, it cannot be read, or it is no regular file.
    """
    regular_size(path)
    return path.open("rb")


@contextmanager
def atomically(path: Path, *, durable: bool = False, suffix: str | None = None) -> Iterator[Path]:
    """Give a temporary path in the folder of `path` that is renamed to `path` when the block ends, and removed when it raises.

    The temporary name is hidden, has the same ending (some libraries choose a format by it) and holds the number of this process, so that
    two processes that write the same file do not write into each other's.

    Args:
        path: the file to write; its folder must exist.
        durable: whether the content must be on the disk before it gets its name, so that it survives a loss of power.
        suffix: ending of the temporary name, where a library insists on another than the file has.

    Raises:
        DiskError: the disk is full or the folder cannot be written, whatever a library makes of it.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix if suffix is None else suffix}")
    try:
        with _naming(path, temporary):
            yield temporary
            if durable:
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def _naming(path: Path, temporary: Path) -> Iterator[None]:
    """Turn what a full disk or a folder that cannot be written makes of the block into a `DiskError` of `path`."""
    try:
        yield
    except (UserError, RunError):
        raise
    except Exception as error:
        number = _reason(error, {str(path), str(temporary), str(path.parent)}, temporary)
        if number is None:
            raise
        raise DiskError(number, os.strerror(number), str(path)) from error


def _reason(error: Exception, names: set[str], probe: Path) -> int | None:
    """Return the number of the disk's error that another one comes from; None: it does not come from the disk.

    Libraries of C and C++ report a short write as a RuntimeError, or as an OSError without a number: then a file is written to see.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in _REASONS and (error.filename is None or str(error.filename) in names) else None
    try:
        with probe.open("ab") as file:
            file.write(bytes(_PROBE_BYTES))
    except OSError as full:
        return full.errno if full.errno in _REASONS else None
    return None


def make_folder(path: Path) -> None:
    """Make a folder, and those that it lies in, if it is not there.

    Raises:
        DiskError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(error.errno, error.strerror, str(path)) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 that appears whole or not at all, and make its folder if there is none; see `atomically`."""
    make_folder(path.parent)
    with atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON that people can read, see `write_text`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False))


def append(path: Path, content: bytes) -> None:
    """Append to a file, which is made if it is not there, in one piece or not at all.

    Raises:
        DiskError: it cannot be written.
    """
    try:
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            before = os.fstat(number).st_size
            if os.write(number, content) < len(content):
                os.ftruncate(number, before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(number)
    except OSError as error:
        raise DiskError(error.errno, error.strerror, str(path)) from error


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files that processes which were killed have left in a folder and those below it."""
    for path in folder.rglob(".*.tmp*"):
        name = _UNFINISHED.fullmatch(path.name)
        if name is not None and path.is_file() and not psutil.pid_exists(int(name.group(1))):
            with contextlib.suppress(OSError):
                path.unlink()


def numbered(name: str, used: set[str]) -> str:
    """Return a name that is not in `used`, with `_2`, `_3`, ... added where needed, and add it to `used`."""
    unique, number = name, 1
    while unique in used:
        number += 1
        unique = f"{name}_{number}"
    used.add(unique)
    return unique
