"""Checkpoints: a `.keras` file that Keras itself can load, with what training needs to go on beside it in the same archive."""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from speechtrain.backends.files import STATE
from speechtrain.errors import UserError, first_line

_OPTIMIZER = "optimizer.npz"


def write(model: Any, path: Path, state: Mapping[str, Any], optimizer: Any = None) -> None:
    """Write a model, `state` (JSON) and the optimizer's variables; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp.keras")
    try:
        keras.saving.save_model(model, temporary)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr(STATE, json.dumps(state))
            if optimizer is not None:
                buffer = io.BytesIO()
                np.savez(buffer, *[np.asarray(keras.ops.convert_to_numpy(variable)) for variable in optimizer.variables])
                archive.writestr(_OPTIMIZER, buffer.getvalue())
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def copy(source: Path, target: Path) -> None:
    """The same file under another name, whole or not at all."""
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.copyfile(source, temporary)
    temporary.replace(target)


def read_state(path: Path) -> dict[str, Any]:
    """The `state` that was written.

    Raises:
        UserError: the file is no checkpoint, or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if (bad := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"{bad} is damaged")
            found: dict[str, Any] = json.loads(archive.read(STATE))
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise _damaged(path, error) from error
    return found


def read_weights(model: Any, path: Path) -> None:
    """Put the weights of a file into a model.

    Raises:
        UserError: they belong to another model.
    """
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "model.keras"  # Keras goes by the ending
        link.symlink_to(path.absolute())
        try:
            model.load_weights(link)
        except (ValueError, KeyError, OSError) as error:
            raise UserError(
                f"{path} holds another model: {first_line(error)}\n    -> use the model and data it was trained with"
            ) from error


def read_optimizer(optimizer: Any, path: Path) -> None:
    """Put the variables of a file into a built optimizer.

    Raises:
        UserError: the file holds none, or those of another one.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            stored = np.load(io.BytesIO(archive.read(_OPTIMIZER)), allow_pickle=False)
            values = [stored[f"arr_{index}"] for index in range(len(stored.files))]
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise _damaged(path, error) from error
    wanted = [tuple(variable.shape) for variable in optimizer.variables]
    if [value.shape for value in values] != wanted:
        raise UserError(f"{path} holds the state of another optimizer\n    -> resume with the optimizer it was trained with")
    for variable, value in zip(optimizer.variables, values, strict=True):
        variable.assign(value)


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} is not a Keras checkpoint that can be read ({first_line(error, most=120)})\n    -> give another checkpoint of the run"
    )
