"""The files of a run that `resume=` needs, on their way to MLflow and back.

A snapshot holds them as they were at one moment: checkpoints are links to files that are replaced and never changed, the rest is small and
copied. In MLflow each lies under the digest of its content, and a list says which belong together; what comes back is a stranger's until
it is checked. MLflow itself is used by `resume_store.py` alone.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from speechtrain.backends.checkpoint_files import BEST, FOLDER, LAST, RECENT, SUFFIXES
from speechtrain.errors import UserError, first_line
from speechtrain.files import make_folder, write_json
from speechtrain.tracking.run_folder import RUN_FILE, without_places

ARTIFACTS = "resume"
"""The folder of these files among a run's artifacts."""
LIST = "files.json"
"""The list of them, which is written last."""
LONGEST_LIST = 1_000_000
"""Bytes of a list that is read."""

_SMALL = (RUN_FILE, "history.jsonl", ".hydra/overrides.yaml", ".hydra/signature")
"""The config is in each checkpoint, and read there by the rules for configs of strangers."""
_LARGEST_SMALL = 100_000_000
_MOST_FILES = 1000
_CHECKPOINT = re.compile(rf"{FOLDER}/(?:{LAST}|{BEST}|{RECENT})[^/\\\x00-\x1f\ud800-\udfff]*(?:{'|'.join(map(re.escape, SUFFIXES))})")
_LONGEST_NAME = 240  # bytes, behind which a file system takes no more
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ENDING = ".kept"
"""Ending of the names in a snapshot, in which nothing may be taken for a run or a checkpoint."""


@dataclass(frozen=True)
class ResumeFile:
    """A file of a run, as the list in MLflow names it.

    Attributes:
        name: path in the run's folder, with slashes.
        bytes: its size.
        sha256: digest of its content.
    """

    name: str
    bytes: int
    sha256: str

    @property
    def artifact(self) -> str:
        """Return its name among the artifacts, and where it is downloaded to."""
        return self.sha256 + PurePosixPath(self.name).suffix

    @property
    def is_checkpoint(self) -> bool:
        """Return whether it holds weights."""
        return self.name.startswith(f"{FOLDER}/")


@dataclass(frozen=True)
class FetchedRun:
    """What was downloaded of a run.

    Attributes:
        run_id: its id in MLflow.
        status: how MLflow says that it ended, `RUNNING` if it has not.
        experiment: name of its experiment.
        folder: where it was trained, on whichever machine.
        files: what was downloaded, each under the name `ResumeFile.artifact`.
    """

    run_id: str
    status: str
    experiment: str
    folder: str
    files: tuple[ResumeFile, ...]


class Snapshots:
    """The snapshots of a run that wait to be sent: at most one waits and one is being sent.

    A snapshot gets its name when all of it is there, and loses it before anything of it is deleted: what has been claimed is whole.

    Args:
        folder: where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def take(self, run: Path) -> str:
        """Take a snapshot of a run's folder in place of one that waits, and return its name.

        Raises:
            OSError: it cannot be written, or the run has no last checkpoint.
        """
        waiting = self._named()
        name = str(max(time.time_ns(), *(_number(path) + 1 for path in waiting)) if waiting else time.time_ns())
        temporary = self.folder / f".{name}.tmp"
        make_folder(temporary)
        try:
            for path in (run / each for each in _SMALL):
                with contextlib.suppress(FileNotFoundError):
                    shutil.copyfile(path, temporary / _as_kept(path.relative_to(run)))
            for path in (run / FOLDER).iterdir():
                if _is_needed(f"{FOLDER}/{path.name}"):
                    with contextlib.suppress(FileNotFoundError):
                        link_or_copy(path, temporary / _as_kept(path.relative_to(run)))
            _write_sizes(temporary)
            temporary.rename(self.folder / name)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        for other in self._named():
            if other.name.isdecimal() and _number(other) < int(name):
                self.discard(other)
        return name

    def waits(self) -> bool:
        """Return whether a snapshot waits or is being sent."""
        return bool(self._named())

    def claim(self) -> Path | None:
        """Return the latest snapshot, which no later one takes the place of from now on, and delete those before it; None: there is none.

        Raises:
            OSError: the folder cannot be written.
        """
        while named := self._named():
            *earlier, latest = named
            for path in earlier:
                self.discard(path)
            claimed = self.folder / f"{_number(latest)}{_CLAIMED}"
            try:
                return latest.rename(claimed)
            except FileNotFoundError:  # a later one has just taken its place
                continue
        return None

    def discard(self, snapshot: Path) -> None:
        """Delete a snapshot that was sent, or has been replaced; one that a sender has claimed meanwhile stays."""
        nameless = snapshot.with_name(f".{snapshot.name}.deleted")
        with contextlib.suppress(OSError):
            shutil.rmtree(nameless, ignore_errors=True)  # of a process that was killed here
            snapshot.rename(nameless)
            shutil.rmtree(nameless, ignore_errors=True)

    def remove(self) -> None:
        """Remove all snapshots, sent or not."""
        for snapshot in self._named():
            self.discard(snapshot)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _named(self) -> list[Path]:
        """Return the snapshots that wait or were claimed, the latest last."""
        try:
            paths = [] if self.folder.is_symlink() else list(self.folder.iterdir())
        except OSError:
            return []
        return sorted((path for path in paths if path.name.removesuffix(_CLAIMED).isdecimal()), key=_number)


_CLAIMED = ".sending"
"""Ending of the name of a snapshot that is being sent."""
_SIZES = "sizes.json"
"""File of a snapshot with the sizes of all others, which is written last."""


def _number(snapshot: Path) -> int:
    """Return when a snapshot was taken, in nanoseconds since 1970; no two of a run have the same."""
    return int(snapshot.name.removesuffix(_CLAIMED))


def taken_at(snapshot: Path) -> str:
    """Return the time of a snapshot, as text that sorts by time."""
    seconds, nanoseconds = divmod(_number(snapshot), 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09}Z"


def _write_sizes(snapshot: Path) -> None:
    """Note the sizes of the files of a snapshot.

    Raises:
        FileNotFoundError: there is no last checkpoint among them.
    """
    sizes = {path.name: path.stat().st_size for path in snapshot.glob(f"*{_ENDING}")}
    if not any(unquote(name).startswith(f"{FOLDER}/{LAST}") for name in sizes):
        raise FileNotFoundError(errno.ENOENT, "there is no last checkpoint", str(snapshot))
    (snapshot / _SIZES).write_text(json.dumps(sizes), encoding="utf-8")


def _is_needed(name: str) -> bool:
    """Return whether a file of a run, by its path in the run's folder, is one that `resume=` needs."""
    return name in _SMALL or (_CHECKPOINT.fullmatch(name) is not None and len(name.encode()) <= _LONGEST_NAME)


def _as_kept(name: Path) -> str:
    return name.as_posix().replace("%", "%25").replace("/", "%2F") + _ENDING


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file that is never changed a second name; where the file system has no such thing, copy it."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)


def described(snapshot: Path) -> dict[ResumeFile, Path]:
    """Return the files of a snapshot, with where each lies.

    Raises:
        IncompleteSnapshotError: not all that it was taken of is there, or something is a link to another place.
    """
    paths = {path.name: path for path in sorted(snapshot.glob(f"*{_ENDING}")) if path.is_file() and not path.is_symlink()}
    try:
        sizes = json.loads((snapshot / _SIZES).read_text(encoding="utf-8"))
        found = {name: path.stat().st_size for name, path in paths.items()}
        files = {ResumeFile(unquote(name.removesuffix(_ENDING)), found[name], digest_of(path)): path for name, path in paths.items()}
    except (OSError, ValueError, RecursionError) as error:
        raise IncompleteSnapshotError(f"{snapshot} is not whole ({first_line(error)})") from error
    if not files or found != sizes:
        raise IncompleteSnapshotError(f"{snapshot} is not whole")
    return files


class IncompleteSnapshotError(Exception):
    """A snapshot is not what was taken: something has been deleted, or a disk has lost it."""


def as_list(files: Sequence[ResumeFile]) -> str:
    """Return the list of files that belong together, as JSON."""
    return json.dumps({"version": 1, "files": [asdict(file) for file in files]}, indent=1)


def read_list(text: str, place: str) -> tuple[ResumeFile, ...]:
    """Return the files of a list that somebody has stored in MLflow.

    Args:
        text: what is stored.
        place: the run, for messages.

    Raises:
        UserError: it is no such list, or names files that no run has.
    """
    try:
        content = json.loads(text)
        files = tuple(ResumeFile(each["name"], each["bytes"], each["sha256"]) for each in content["files"])
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise _unreadable(place, "is no list of files") from error
    if content.get("version") != 1:
        raise _unreadable(place, f"is of version {content.get('version')!r:.20}, and this speechtrain reads version 1")
    if not 1 <= len(files) <= _MOST_FILES or len({str(file.name) for file in files}) != len(files):
        raise _unreadable(place, f"has {len(files)} files, or names one twice")
    for file in files:
        if not isinstance(file.name, str) or not _is_needed(file.name):
            raise _unreadable(place, f"names {file.name!r:.200}, which is no file that resume= needs")
        if not isinstance(file.bytes, int) or file.bytes < 0 or (file.bytes > _LARGEST_SMALL and not file.is_checkpoint):
            raise _unreadable(place, f"says that {file.name} has {file.bytes!r:.30} bytes")
        if not isinstance(file.sha256, str) or not _DIGEST.fullmatch(file.sha256):
            raise _unreadable(place, f"gives {file.name} the digest {file.sha256!r:.80}")
    return files


def _unreadable(place: str, what: str) -> UserError:
    return UserError(f"{place}: {ARTIFACTS}/{LIST} {what}\n    -> give the folder of the run, or another run")


def digest_of(path: Path) -> str:
    """Return the digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def arrange(run: FetchedRun, downloaded: Path, folder: Path, *, adapt: Callable[[Path], None] = lambda _: None) -> None:
    """Put what was downloaded of a run into a folder, from which it then goes on; its checkpoints come last.

    Args:
        run: the run.
        downloaded: the folder with the downloads.
        folder: the folder, in which files that are there already stay.
        adapt: called with the folder when all but the checkpoints and `run.json` are there.

    Raises:
        OSError: it cannot be written.
    """
    make_folder(folder)
    with tempfile.TemporaryDirectory(prefix=f".{FOLDER}.", suffix=".tmp", dir=folder) as scratch:  # of no other machine's name
        checkpoints = Path(scratch) / "new"  # and not the name by which checkpoints are looked for
        make_folder(checkpoints)
        values: dict[str, Any] = {}
        for file in run.files:
            source = downloaded / file.artifact
            if file.name == RUN_FILE:
                values = _run_values(source, run)
                continue
            target = checkpoints / PurePosixPath(file.name).name if file.is_checkpoint else folder / file.name
            if not target.exists():
                make_folder(target.parent)
                link_or_copy(source, target)  # two files of one content are one download
        adapt(folder)
        write_json(folder / RUN_FILE, values or _run_values(folder / RUN_FILE, run))
        shutil.rmtree(folder / FOLDER, ignore_errors=True)
        checkpoints.rename(folder / FOLDER)


def _run_values(path: Path, run: FetchedRun) -> dict[str, Any]:
    """Return the values of a downloaded `run.json`, as a run of this machine has them."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        stored = {}
    values = without_places(stored) if isinstance(stored, dict) else {}
    run_ids = values.get("run_ids")
    others = {str(name): str(run_id) for name, run_id in run_ids.items()} if isinstance(run_ids, dict) else {}
    return {**values, "run_ids": {**others, "mlflow": run.run_id}, "mlflow_run_id": run.run_id, "status": run.status}
