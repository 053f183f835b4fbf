"""Torch checkpoints: how one is written whole or not at all, read, and found to be damaged."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from speechtrain.errors import UserError, first_line
from speechtrain.files import atomically, make_folder

RESUME_KEYS = (
    "pytorch-lightning_version",
    "state_dict",
    "schedule",
    "loops",
    "callbacks",
    "optimizer_states",
    "lr_schedulers",
    "epoch",
    "global_step",
    "extra",
)
"""Keys of a checkpoint without which a training cannot be resumed from it."""


def write(content: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint so that it appears under its name whole or not at all."""
    make_folder(path.parent)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomically(path, durable=True) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def write_weights(weights: Mapping[str, torch.Tensor], extra: Mapping[str, Any], path: Path) -> None:
    """Write the weights of a model, and what belongs to it, as a checkpoint that cannot be resumed from."""
    write({"state_dict": {f"model.{name}": value for name, value in weights.items()}, "extra": dict(extra)}, path)


def read_weights(path: Path) -> tuple[dict[str, torch.Tensor], Mapping[str, Any]]:
    """Return the weights of a checkpoint by their names in the model, and its `extra`.

    Raises:
        UserError: the file is damaged, or no checkpoint.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return {name.removeprefix("model."): value for name, value in content["state_dict"].items()}, content["extra"]
    except (pickle.UnpicklingError, RuntimeError, KeyError, EOFError, OSError, AttributeError, TypeError) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> UserError:
    """Return the error for a file that cannot be read as a checkpoint."""
    return UserError(
        f"{path} is not a checkpoint that can be read ({first_line(error, most=120)})\n    -> give another checkpoint of the run"
    )
