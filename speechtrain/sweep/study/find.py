"""Finds the study that a user names: by its name in `multirun/`, its folder, or the URL of its storage. Makes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import optuna
import yaml
from optuna.storages import BaseStorage

from speechtrain.addresses import masked, whole_values
from speechtrain.errors import ConfigError, Problem, did_you_mean
from speechtrain.files import is_file, is_folder, sqlite_file, user_path
from speechtrain.sweep.study.folder import OWNER, place_of, read_owner
from speechtrain.sweep.study.storage import open_storage, storage_url

_RUNS = "multirun"
_LAST = "last"
"""Name of the sweep in `multirun/` that was begun last."""


@dataclass(frozen=True)
class FoundStudy:
    """A study in its opened storage.

    Attributes:
        name: name of the study.
        url: URL of the storage.
        storage: the opened storage.
        id: id of the study in it.
    """

    name: str
    url: str
    storage: BaseStorage
    id: int


def find_study(name: str, key: str, storage: str | None = None) -> FoundStudy:
    """Return the study of a name.

    Args:
        name: name of a study in `multirun/` or in `storage`, `last`, a sweep's folder, or `STORAGE_URL#NAME`.
        key: the key that holds the name, for messages.
        storage: URL of the storage; None: the name says where it is.

    Raises:
        ConfigError: there is no such study; the message has the nearest names.
    """
    if storage is None and "#" in name and "://" in name:
        storage, _, name = name.rpartition("#")
    if storage is not None:
        return _in_storage(storage_url(storage, Path()), name, key)
    folder = user_path(name)
    if name == _LAST and not is_folder(folder):
        folder = max((each for each, _ in _sweeps()), key=lambda each: (each / OWNER).stat().st_mtime, default=folder)
    if not is_folder(folder) or read_owner(folder) is None:
        folder = next((each for each, owner in _sweeps() if name in (owner["study"], each.name)), folder)
    owner = read_owner(folder)
    if owner is None:
        known = [each for folder, owner in _sweeps() for each in dict.fromkeys((owner["study"], folder.name))]
        fix = did_you_mean(name, known) or f"there is none in {user_path(_RUNS)}; give its folder, or STORAGE_URL#NAME"
        raise ConfigError([Problem(key, f"there is no study '{name}'", fix)])
    return _in_storage(_url_of(folder, owner["storage"]), owner["study"], key)


def _sweeps() -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield the folders of sweeps in `multirun/`, which may lie deeper where names of studies have slashes, and whose they are."""
    for file in sorted(user_path(_RUNS).glob(f"**/{OWNER}")):
        if (owner := read_owner(file.parent)) is not None:
            yield file.parent, owner


def _url_of(folder: Path, place: str) -> str:
    """Return the URL of a sweep's storage: as it was configured, with its user, or the file that its folder says."""
    try:
        content = yaml.safe_load((folder / "multirun.yaml").read_text(encoding="utf-8"))
        configured = whole_values(content)["hydra"]["sweeper"]["storage"]
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        configured = None
    if isinstance(configured, str) and "${" not in configured:
        url = storage_url(configured, folder)
        if place_of(url, folder) == place:
            return url
    return place.replace(":///./", f":///{folder.absolute()}/")


def _in_storage(url: str, name: str, key: str) -> FoundStudy:
    scheme = url.partition(":")[0]
    file = sqlite_file(url) if scheme == "sqlite" else Path(url.removeprefix("journal:///")) if scheme == "journal" else None
    if file is not None and ":memory:" not in url and not is_file(file):
        raise ConfigError([Problem(key, f"there is no {file}", "give the storage of a sweep that has begun")])
    storage = open_storage(url)
    try:
        return FoundStudy(name, url, storage, storage.get_study_id_from_name(name))
    except KeyError:
        fix = did_you_mean(name, optuna.get_all_study_names(storage)) or "it holds no study"
        raise ConfigError([Problem(key, f"there is no study '{name}' in {masked(url)}", fix)]) from None
