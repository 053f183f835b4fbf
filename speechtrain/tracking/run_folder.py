"""The folder of a run: its `run.json`, and how a run is found by a name that a user types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from speechtrain.backends.checkpoint_files import FOLDER, best_checkpoint, last_checkpoint
from speechtrain.errors import ConfigError, Problem
from speechtrain.files import is_file, is_folder, user_path, write_json

RUN_FILE = "run.json"
"""Name of the file in every run's folder with what is needed to find it again: MLflow's run id, the status."""

NUMBERED_FROM = "epochs_in_names_from"
"""Key of `run.json`: the number that names of checkpoints have for the first epoch; a run without it began when that was 0."""

BEST_CHECKPOINT = "best_checkpoint"
"""Key of `run.json`: the file name of the best checkpoint, which is known at the end of the training."""


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


_FIX = "give last, a run's folder, a checkpoint or an MLflow run id"


def find_run(name: str, key: str = "resume") -> tuple[Path, Path | None]:
    """Return the folder of a run, and the checkpoint to go on from, or None if it has none yet and must start again.

    Args:
        name: `last` (runs that failed before their first checkpoint aside), a folder, a checkpoint file, or an MLflow run id.
        key: the key of the config that holds the name, for messages.

    Raises:
        ConfigError: there is no such run.
    """
    path = user_path(name.strip("'\""))
    if is_file(path):
        return path.absolute().parent.parent, path.absolute()
    if is_folder(path):
        if not any((path / name).exists() for name in (RUN_FILE, ".hydra", FOLDER)):
            raise ConfigError([Problem(key, f"{path} is no folder of a run", _FIX)])
        return path.absolute(), last_checkpoint(path.absolute())
    runs = sorted((file.parent for base in ("outputs", "multirun") for file in Path(base).glob(f"**/{RUN_FILE}")), key=_started)
    if name == "last":
        matches = [run for run in runs if not _failed_at_the_start(run)] or runs
    else:
        matches = [run for run in runs if read_run_file(run).get("mlflow_run_id") == name]
    if not matches:
        where = f"{Path('outputs').absolute()} or {Path('multirun').absolute()}"
        raise ConfigError([Problem(key, f"no run '{name}' under {where}", _FIX)])
    return matches[-1].absolute(), last_checkpoint(matches[-1].absolute())


def _failed_at_the_start(folder: Path) -> bool:
    """Return whether a run failed before its first checkpoint; `last` then means the run before it."""
    run = read_run_file(folder)
    return run.get("status") == "FAILED" and "folds" not in run and last_checkpoint(folder) is None and best_checkpoint(folder) is None


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
