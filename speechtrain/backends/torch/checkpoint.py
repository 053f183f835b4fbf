"""Torch checkpoints: how one is written whole or not at all, read, and found to be damaged."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from speechtrain.backends.checkpoint_files import check_torch_file
from speechtrain.backends.zip_files import UNREADABLE
from speechtrain.errors import UserError, first_line
from speechtrain.files import atomically, make_folder

PREFIX = "model."
"""What the names of weights begin with, as Lightning has them."""

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
    write({"state_dict": {f"{PREFIX}{name}": value for name, value in weights.items()}, "extra": dict(extra)}, path)


def read(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint, whose checksums are compared first.

    Raises:
        UserError: the file is damaged, or no checkpoint.
    """
    try:
        check_torch_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        for name, value in (*content["state_dict"].items(), *content.get("trained", {}).items()):
            _check_weight(name, value)
        return {**content, "extra": dict(content["extra"])}
    except UNREADABLE as error:
        raise damaged(path, error) from error


def read_weights(path: Path) -> tuple[dict[str, torch.Tensor], Mapping[str, Any]]:
    """Return the weights of a checkpoint by their names in the model, and its `extra`.

    Raises:
        UserError: see `read`.
    """
    content = read(path)
    return {name.removeprefix(PREFIX): value for name, value in content["state_dict"].items()}, content["extra"]


def check_resumable(path: Path) -> None:
    """Check that training can go on from a checkpoint, as far as the file says.

    Raises:
        UserError: see `read`; or it holds a model alone.
    """
    content = read(path)
    if missing := [key for key in RESUME_KEYS if key not in content]:
        raise damaged(path, KeyError(missing[0]))


def _check_weight(name: object, value: object) -> None:
    """Check that a weight is a plain tensor that its file has all numbers of, none of which is NaN.

    Raises:
        TypeError, ValueError: it is not.
    """
    if not isinstance(name, str) or not isinstance(value, torch.Tensor):
        raise TypeError(f"its weight {name!r:.80} is no tensor")
    if (
        value.layout != torch.strided
        or value.device.type != "cpu"
        or value.numel() * value.element_size() > value.untyped_storage().nbytes()
    ):
        raise ValueError(f"its weight {name!r:.80} is no plain tensor")
    if value.is_floating_point() and bool(value.isnan().any()):
        raise ValueError(f"its weight {name.removeprefix(PREFIX)!r:.80} holds NaN")


def damaged(path: Path, error: Exception) -> UserError:
    """Return the error for a file that cannot be read as a checkpoint."""
    return UserError(
        f"{path} is not a checkpoint that can be read ({first_line(error, most=120)})\n    -> give another checkpoint of the run"
    )
