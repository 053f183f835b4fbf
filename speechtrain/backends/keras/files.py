"""Checkpoints: a `.keras` file that Keras itself can load, with what training needs to go on beside it in the same archive."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from speechtrain.backends import zip_files
from speechtrain.backends.checkpoint_files import STATE, another_model, label_pairs
from speechtrain.backends.keras import weights_file
from speechtrain.backends.zip_files import UNREADABLE
from speechtrain.data.arrays import read_array
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
    """Return the `state` that a file was written with, whose checksums are compared first.

    Raises:
        UserError: the file is no checkpoint, or damaged.
    """
    try:
        return weights_file.read_state(path)
    except UNREADABLE as error:
        raise damaged(path, error) from error


def check_resumable(path: Path) -> None:
    """Check that training can go on from a file, as far as its state says.

    Raises:
        UserError: see `read_state`; or it holds a model alone.
    """
    training = read_state(path).get("training")
    if not isinstance(training, dict) or "schedule" not in training:
        raise damaged(path, KeyError("training"))


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
        except UNREADABLE as error:
            raise another_model(path, first_line(error)) from error
    if (found := len(weights_file.sizes(path))) > len(model.weights):
        raise another_model(path, f"it has {found} weights, and its config asks for {len(model.weights)}")
    for weight, value in zip(model.weights, model.get_weights(), strict=True):
        if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
            raise UserError(
                f"{path} is damaged: its weight '{weight.path}' holds NaN or infinity\n    -> give another checkpoint of the run"
            )


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
        except UNREADABLE as error:
            model.set_weights(before)
            raise another_model(path, first_line(error)) from error
    after = model.get_weights()
    left = [real and bool(np.isnan(value).any()) for value, real in zip(after, floats, strict=True)]
    model.set_weights([old if kept else new for old, new, kept in zip(before, after, left, strict=True)])
    encoder = {id(weight) for weight in model.encoder.weights}
    if all(kept for weight, kept, real in zip(model.weights, left, floats, strict=True) if real and id(weight) in encoder):
        model.set_weights(before)
        raise another_model(path, "none of its encoder's weights fits")
    return [weight.path for weight, kept in zip(model.weights, left, strict=True) if kept]


def read_head(head: Any, path: Path, labels: Sequence[int | None]) -> bool:
    """Put those columns of a file's head into another one that stand for the same labels; returns whether the encoders have the same width.

    Raises:
        UserError: the file has no head, or a smaller one than its vocabulary.
    """
    weights, biases = head.get_weights()
    try:
        former_weights, former_biases = weights_file.head(path)
    except UNREADABLE as error:
        raise another_model(path, first_line(error)) from error
    if former_weights.shape[:1] != weights.shape[:1]:
        return False
    into, taken = label_pairs(labels, len(former_biases), path)
    weights[:, into], biases[into] = former_weights[:, taken], former_biases[taken]
    head.set_weights([weights, biases])
    return True


def read_optimizer(optimizer: Any, path: Path) -> None:
    """Put the variables of a file into a built optimizer.

    Raises:
        UserError: the file has no optimizer, or another one.
    """
    try:
        with zip_files.opened(path) as archive, zipfile.ZipFile(io.BytesIO(archive.read(_OPTIMIZER))) as arrays:
            values = [read_array(io.BytesIO(arrays.read(f"arr_{index}.npy"))) for index in range(len(arrays.namelist()))]
    except UNREADABLE as error:
        raise damaged(path, error) from error
    wanted = [tuple(variable.shape) for variable in optimizer.variables]
    if [value.shape for value in values] != wanted:
        raise UserError(f"{path} holds the state of another optimizer\n    -> resume with the optimizer it was trained with")
    for variable, value in zip(optimizer.variables, values, strict=True):
        variable.assign(value)


def damaged(path: Path, error: Exception) -> UserError:
    """Return the error for a file that cannot be read as a checkpoint."""
    return UserError(
        f"{path} is not a Keras checkpoint that can be read ({first_line(error, most=120)})\n    -> give another checkpoint of the run"
    )
