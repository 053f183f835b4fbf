"""Checkpoints: a `.keras` file that Keras itself can load, with what training needs to go on beside it in the same archive."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from speechtrain.backends.checkpoint_files import STATE
from speechtrain.errors import UserError, first_line
from speechtrain.files import atomically, make_folder

_OPTIMIZER = "optimizer.npz"


def write(model: Any, path: Path, state: Mapping[str, Any], optimizer: Any = None) -> None:
    """Write a model, `state` (JSON) and the optimizer's variables; the file appears whole or not at all."""
    make_folder(path.parent)
    with atomically(path, durable=True, suffix=".keras") as temporary:
        keras.saving.save_model(model, temporary)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr(STATE, json.dumps(state))
            if optimizer is not None:
                buffer = io.BytesIO()
                np.savez(buffer, *[np.asarray(keras.ops.convert_to_numpy(variable)) for variable in optimizer.variables])
                archive.writestr(_OPTIMIZER, buffer.getvalue())


def copy(source: Path, target: Path) -> None:
    """Copy a file to another name, where it appears whole or not at all."""
    with atomically(target) as temporary:
        shutil.copyfile(source, temporary)


def read_state(path: Path) -> dict[str, Any]:
    """Return the `state` that a file was written with.

    Raises:
        UserError: the file is no checkpoint, or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if (bad := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"{bad} is damaged")
            state: dict[str, Any] = json.loads(archive.read(STATE))
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise _damaged(path, error) from error
    return state


def read_weights(model: Any, path: Path) -> None:
    """Put the weights of a file into a model.

    Raises:
        UserError: the weights belong to another model.
    """
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "model.keras"  # Keras tells the format by the ending
        link.symlink_to(path.absolute())
        try:
            model.load_weights(link)
        except (ValueError, KeyError, OSError) as error:
            raise _another(path, first_line(error)) from error


def read_fitting_weights(model: Any, path: Path) -> list[str]:
    """Put those weights of a file into a model that fit it; returns the paths of those that did not.

    Raises:
        UserError: no weight of the encoder fits.
    """
    marks = [np.full(weight.shape, np.nan, dtype=np.float32) for weight in model.weights]  # which no weight is
    before = model.get_weights()
    floats = [np.issubdtype(value.dtype, np.floating) for value in before]
    model.set_weights([mark if real else value for mark, value, real in zip(marks, before, floats, strict=True)])
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # Keras warns about each layer that it skips
        link = Path(folder) / "model.keras"  # Keras tells the format by the ending
        link.symlink_to(path.absolute())
        try:
            model.load_weights(link, skip_mismatch=True)
        except (ValueError, KeyError, OSError, IndexError) as error:
            model.set_weights(before)
            raise _another(path, first_line(error)) from error
    after = model.get_weights()
    left = [real and bool(np.isnan(value).any()) for value, real in zip(after, floats, strict=True)]
    model.set_weights([old if kept else new for old, new, kept in zip(before, after, left, strict=True)])
    encoder = {id(weight) for weight in model.encoder.weights}
    if all(kept for weight, kept, real in zip(model.weights, left, floats, strict=True) if real and id(weight) in encoder):
        model.set_weights(before)
        raise _another(path, "none of its encoder's weights fits")
    return [weight.path for weight, kept in zip(model.weights, left, strict=True) if kept]


def _another(path: Path, reason: str) -> UserError:
    return UserError(f"{path} holds another model: {reason}\n    -> use the model and data it was trained with")


def read_optimizer(optimizer: Any, path: Path) -> None:
    """Put the variables of a file into a built optimizer.

    Raises:
        UserError: the file has no optimizer, or another one.
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
