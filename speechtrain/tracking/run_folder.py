"""The folder of a run: its `run.json`, and how a run is found by a name that a user types."""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from contextlib import suppress
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from speechtrain.addresses import owner_key, state_folder
from speechtrain.backends.checkpoint_files import FOLDER, SUFFIXES, best_checkpoint, last_checkpoint
from speechtrain.errors import ConfigError, Problem
from speechtrain.files import is_file, is_folder, launch_folder, user_path, write_json

RUN_FILE = "run.json"
"""Name of the file in every run's folder with what is needed to find it again: MLflow's run id, the status."""

RUN_FOLDERS = ("outputs", "multirun")
"""The folders, below the one where the command is given, that runs and sweeps lie in where no other is named."""

NUMBERED_FROM = "epochs_in_names_from"
"""Key of `run.json`: the number that names of checkpoints have for the first epoch; a run without it began when that was 0."""

BEST_CHECKPOINT = "best_checkpoint"
"""Key of `run.json`: the file name of the best checkpoint, which is known at the end of the training."""


UTTERANCES = "utterances"
"""Key of `run.json`: the fingerprint of the utterances of each split, without their audio, which is not always read in advance."""


_PLACES, _SIGNATURE = "places", "places_signature"


def note_places(folder: Path, places: Mapping[str, Mapping[str, str]]) -> None:
    """Note in `run.json` where trackers keep a run, by tracker, signed by this user."""
    before, is_own = places_of(folder)
    noted = {name: _as_named_before(place, before.get(name, {}) if is_own else {}) for name, place in places.items()}
    write_run_file(folder, {_PLACES: noted, _SIGNATURE: _signature(noted)})


def _as_named_before(place: Mapping[str, str], before: Mapping[str, str]) -> Mapping[str, str]:
    """Return a place with the relative address of its database, if the run was begun with it: it holds where both are moved together."""
    same = "database" in before and before["database"] == place.get("tracking_uri")
    return {**place, "tracking_uri": before["tracking_uri"], "database": before["database"]} if same else place


def places_of(folder: Path) -> tuple[dict[str, dict[str, str]], bool]:
    """Return what `note_places` has noted in a folder, and whether this user has: another's run may name any server."""
    run = read_run_file(folder)
    places, signature = run.get(_PLACES), run.get(_SIGNATURE)
    if not isinstance(places, dict):
        return {}, False
    texts = {str(name): {str(key): str(value) for key, value in place.items()} for name, place in places.items() if isinstance(place, dict)}
    expected = _signature(texts)
    return texts, expected is not None and hmac.compare_digest(expected.encode(), str(signature).encode(errors="replace"))


def without_places(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a `run.json` without those that `note_places` has noted."""
    return {key: value for key, value in run.items() if key not in (_PLACES, _SIGNATURE)}


def _signature(places: Mapping[str, Mapping[str, str]]) -> str | None:
    key = owner_key()
    return None if key is None else hmac.digest(key, json.dumps(places, sort_keys=True).encode(), "sha256").hex()


def read_run_file(folder: Path) -> dict[str, Any]:
    """Return the content of `run.json` in a folder; empty if there is none that can be read."""
    try:
        values = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def write_run_file(folder: Path, values: dict[str, Any]) -> None:
    """Add values to `run.json`, which is written whole or not at all."""
    content = {**read_run_file(folder), **values}
    write_json(folder / RUN_FILE, content)


_FOLDERS_FILE = "runs.json"
"""Name of the file, in the user's folder of state, with the folders of runs that lie elsewhere, by the folder they were started in."""
_MOST_FOLDERS = 100
"""Folders that are noted at most, and runs of each."""

_ARCHIVE = ".zip"
"""Ending of the archives that have a model's weights, but not what training goes on from."""

_FIX = "give last, a run's folder, a checkpoint, or an MLflow run id or its first letters"

_FIRST = "train first, as with python -m speechtrain experiment=quick, or give a run's folder or a checkpoint"


def fold_folder(folder: Path, fold: int) -> Path:
    """Return the folder of a fold, counted from 0, in that of a cross-validation."""
    return folder / f"fold_{fold}"


def fold_folders(folder: Path) -> list[Path]:
    """Return the folders of the folds that a cross-validation has begun, in order."""
    return list(takewhile(is_folder, (fold_folder(folder, fold) for fold in count())))


class RunNotFoundError(ConfigError):
    """There is no run of a name that a user has typed; it may be elsewhere."""


def find_run(name: str, key: str = "resume") -> tuple[Path, Path | None]:
    """Return the folder of a run, and the checkpoint to go on from, or None if it has none yet and must start again.

    Args:
        name: `last` (runs that trained nothing aside), a folder, a checkpoint file, or an MLflow run id or its first letters.
        key: the key of the config that holds the name, for messages.

    Raises:
        RunNotFoundError: there is no such run.
        ConfigError: several runs have such an id, or the file or folder is none of a run.
    """
    path = user_path(name.strip("'\""))
    if is_file(path):
        suffixes = SUFFIXES if key == "resume" else (*SUFFIXES, _ARCHIVE)
        if path.suffix not in suffixes:
            raise ConfigError([Problem(key, f"{path} is no checkpoint, whose name ends in {' or '.join(suffixes)}", _FIX)])
        return path.absolute().parent.parent, path.absolute()
    if is_folder(path):
        if not any((path / name).exists() for name in (RUN_FILE, ".hydra", FOLDER)):
            raise ConfigError([Problem(key, f"{path} is no folder of a run", _FIX)])
        return path.absolute(), last_checkpoint(path.absolute())
    below = (
        file.parent.absolute() for base in map(user_path, RUN_FOLDERS) for file in base.glob(f"**/{RUN_FILE}") if _is_whole(file, base)
    )
    elsewhere = (folder for folder in _remembered() if (folder / RUN_FILE).is_file())
    runs = sorted({*below, *elsewhere}, key=_started)
    matches = ([run for run in runs if _may_be_last(run, key)] or runs) if name == "last" else _of_id(runs, name, key)
    if not matches:
        where = " or ".join(str(launch_folder() / base) for base in RUN_FOLDERS)
        message, fix = f"no run '{name}' under {where}", _FIX
        if not runs:
            message, fix = f"{message}: nothing has been trained in this folder yet", _FIRST
        raise RunNotFoundError([Problem(key, message, fix)])
    return matches[-1].absolute(), last_checkpoint(matches[-1].absolute())


def _is_whole(file: Path, base: Path) -> bool:
    """Return whether a file does not lie in a folder of a temporary name, as of a run that is being fetched."""
    return not any(part.startswith(".") and part.endswith(".tmp") for part in file.relative_to(base).parts)


def _of_id(runs: list[Path], name: str, key: str) -> list[Path]:
    """Return the folders of the one run whose id in MLflow is, or begins with, a name; empty if there is none.

    Raises:
        ConfigError: several ids begin so.
    """
    ids = {run: str(run_id) for run in runs if (run_id := read_run_file(run).get("mlflow_run_id")) is not None}
    found = {run_id for run_id in ids.values() if run_id == name} or {run_id for run_id in ids.values() if name and run_id.startswith(name)}
    if len(found) > 1:
        raise ConfigError([Problem(key, f"{len(found)} runs have an id that begins with '{name}': {', '.join(sorted(found)[:8])}", _FIX)])
    return [run for run, run_id in ids.items() if run_id in found]


def _may_be_last(folder: Path, key: str) -> bool:
    """Return whether `last` may mean a run: one with a model, or, where none is asked for, one that trained or was interrupted before."""
    run = read_run_file(folder)
    if "folds" in run or last_checkpoint(folder) is not None or best_checkpoint(folder) is not None:
        return True
    trained = (folder / "history.jsonl").is_file()
    return key not in ("from", "init_from") and (trained or run.get("status") not in ("FAILED", "FINISHED"))


def remember(folder: Path) -> None:
    """Note for this user the folder of a run that lies outside of `RUN_FOLDERS`, so that `last` finds it from that of the command."""
    if any(folder.is_relative_to(launch_folder() / base) for base in RUN_FOLDERS):
        return
    with suppress(OSError, RuntimeError):
        path, here = state_folder() / _FOLDERS_FILE, str(launch_folder())
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        noted = _noted()
        folders = [*(each for each in noted.pop(here, []) if each != str(folder)), str(folder)]
        write_json(path, dict([*noted.items(), (here, folders[-_MOST_FOLDERS:])][-_MOST_FOLDERS:]))


def _remembered() -> list[Path]:
    """Return the folders that `remember` noted for the folder of the command."""
    return [Path(each) for each in _noted().get(str(launch_folder()), [])]


def _noted() -> dict[str, list[str]]:
    with suppress(OSError, RuntimeError, ValueError, RecursionError, AttributeError):
        values = json.loads((state_folder() / _FOLDERS_FILE).read_text(encoding="utf-8"))
        return {str(here): [str(each) for each in folders] for here, folders in values.items() if isinstance(folders, list)}
    return {}


def find_weights(name: str, key: str) -> Path:
    """Return the checkpoint that a name means, see `find_run`: of a run the best one that was kept, else the last.

    Raises:
        ConfigError: there is no such run, or it has no checkpoint.
    """
    folder, checkpoint = find_run(name, key)
    if is_file(user_path(name.strip("'\""))) and checkpoint is not None:
        return checkpoint
    named = folder / FOLDER / Path(str(read_run_file(folder).get(BEST_CHECKPOINT, ""))).name
    weights = named if is_file(named) else best_checkpoint(folder) or checkpoint
    if weights is None:
        raise ConfigError([Problem(key, f"{folder} has no checkpoint", "give a run that has finished an epoch, or a checkpoint")])
    return weights


def _started(folder: Path) -> str:
    return str(read_run_file(folder).get("started", ""))
