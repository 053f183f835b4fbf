"""Where the checkpoints of both backends lie, and the config and vocabulary in one, read without executing code or building a model."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechtrain.errors import UserError, first_line

FOLDER = "checkpoints"
"""Name of the folder of checkpoints in a run's folder."""

SUFFIXES = (".ckpt", ".keras")
"""Endings of the checkpoints of the Torch and of the Keras backend."""

LAST = "last"
"""Name, without its ending, of the checkpoint that is written over after each epoch."""

BEST = "best-"
"""Beginning of the names of checkpoints with the best values of the objective."""

MEAN = "mean"
"""Name, without its ending, of the mean of the last ones (`trainer.average_last`)."""

STATE = "speechtrain.json"
"""In a `.keras` archive: what training needs to go on, as JSON."""


def last_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint of the last epoch of the run in a folder, or None if it has none."""
    paths = (folder / FOLDER / f"{LAST}{suffix}" for suffix in SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def best_checkpoint(folder: Path) -> Path | None:
    """Return the newest of the best checkpoints of the run in a folder, or None if it has none."""
    return max((folder / FOLDER).glob(f"{BEST}*"), key=lambda path: path.stat().st_mtime, default=None)


def other_checkpoints(checkpoint: Path) -> list[Path]:
    """Return the checkpoints that training can go on from in the folder of one, without that one, the newest first."""
    paths = checkpoint.parent.glob(f"*{checkpoint.suffix}")
    others = [path for path in paths if path != checkpoint and not path.name.startswith((".", MEAN))]
    return sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)


def read_extra(path: Path) -> Mapping[str, Any]:
    """Return the `extra` that a model or checkpoint was written with: its `config` and its `vocabulary`.

    Raises:
        UserError: the file is not of speechtrain, or damaged.
    """
    import torch  # a command that only looks for a run does not need it

    try:
        if path.suffix == ".keras":
            with zipfile.ZipFile(path) as archive:
                return dict(json.loads(archive.read(STATE))["extra"])
        import torch

        return dict(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["extra"])
    except (OSError, zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, KeyError, ValueError, EOFError, TypeError) as error:
        reason = first_line(error, most=120)
        raise UserError(f"{path}: is not a model of speechtrain ({reason})\n    -> give a checkpoint, or a model from MLflow") from error
