"""Keeps a sweep's folder to one study: the folders of trials in it are named by their numbers, which each study counts from 0."""

from __future__ import annotations

import contextlib
import json
import re
import uuid
from dataclasses import dataclass
from pathlib import Path

from speechtrain.errors import ConfigError, DiskError, Problem, unwritable
from speechtrain.files import is_file, write_json

OWNER = "study.json"
"""File in a sweep's folder that says which study it belongs to."""


MARK_FILE = ".remote"
"""File in a sweep's folder with a random token: a machine that sees the same token sees the same folder."""


@dataclass(frozen=True)
class SharedFile:
    """A file of the sweeper that jobs on other machines have to see as well.

    Attributes:
        key: the key of the config that names it.
        path: its absolute path.
        fix: what to do where it is not seen.
    """

    key: str
    path: str
    fix: str


def token_of(folder: Path) -> str:
    """Return a random token that is kept in the sweep's folder, so that a sweep started anew gets no runs of an earlier one."""
    path = folder / MARK_FILE
    if not path.is_file():
        temporary = folder / f"{MARK_FILE}.{uuid.uuid4().hex}"
        temporary.write_text(uuid.uuid4().hex, encoding="ascii")
        with contextlib.suppress(FileExistsError):  # another thread was first
            path.hardlink_to(temporary)
        temporary.unlink()
    return path.read_text(encoding="ascii")


def own_folder(folder: Path, study: str, url: str) -> None:
    """Make the folder of a sweep, and write down that it belongs to a study.

    Args:
        folder: the folder.
        study: name of the study.
        url: URL of the study's storage.

    Raises:
        ConfigError: the folder belongs to another study, or lies in a sweep's folder, or one lies in it.
        UserError: it cannot be written.
    """
    owner = {"study": study, "storage": place_of(url, folder)}
    fix = "give another folder, or leave hydra.sweep.dir out: then it is named after the study"
    if (before := read_owner(folder)) is not None:
        if before != owner:
            where = "" if before["storage"] == owner["storage"] else f" in {before['storage']}"
            raise ConfigError([Problem("hydra.sweep.dir", f"{folder} holds the trials of the study '{before['study']}'{where}", fix)])
        return
    others = [path for path in (*folder.absolute().parents, *_folders_in(folder)) if is_file(path / OWNER)]
    if others:
        raise ConfigError([Problem("hydra.sweep.dir", f"{folder} and {others[0]}, the folder of another sweep, lie in each other", fix)])
    try:
        write_json(folder / OWNER, owner)
    except DiskError as error:
        raise unwritable(folder, error, "hydra.sweep.dir") from error


def _folders_in(folder: Path) -> list[Path]:
    try:
        return list(folder.glob("*/"))
    except OSError:  # its name is too long, which is told when it is made
        return []


def read_owner(folder: Path) -> dict[str, str] | None:
    """Return the name of the study that a folder belongs to, and the place of its storage; None if it is no folder of a sweep."""
    try:
        owner = json.loads((folder / OWNER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return owner if isinstance(owner, dict) and {"study", "storage"} <= set(owner) else None


def place_of(url: str, folder: Path) -> str:
    """Return a storage's URL without who asks; a file inside of the folder by its name there, so that the folder may be moved."""
    without_user = re.sub(r"(?<=://)[^/]*@", "", url.partition("?")[0])
    return without_user.replace(f":///{folder.absolute()}/", ":///./")
