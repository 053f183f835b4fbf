"""What a file of weights says of its model, before there is any: both backends' files, read without executing code."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from speechtrain.errors import UserError, first_line

STATE = "speechtrain.json"
"""In a `.keras` archive."""


def read_extra(path: Path) -> Mapping[str, Any]:
    """The `extra` that a model or checkpoint was written with: its `config` and its `vocabulary`.

    Raises:
        UserError: the file is none of ours, or damaged.
    """
    try:
        if path.suffix == ".keras":
            with zipfile.ZipFile(path) as archive:
                return dict(json.loads(archive.read(STATE))["extra"])
        return dict(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["extra"])
    except (OSError, zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, KeyError, ValueError, EOFError, TypeError) as error:
        reason = first_line(error, most=120)
        raise UserError(f"{path}: is not a model of speechtrain ({reason})\n    -> give a checkpoint, or a model from MLflow") from error
