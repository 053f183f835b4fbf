"""Where the checkpoints of both backends lie, and the config and vocabulary in one, read without executing code or building a model."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
import zlib
from collections import OrderedDict
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
    try:
        with zipfile.ZipFile(path) as archive:
            if path.suffix == ".keras":
                return dict(json.loads(archive.read(STATE))["extra"])
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            return dict(_PlainUnpickler(io.BytesIO(archive.read(name))).load()["extra"])
    except _UNREADABLE as error:
        reason = first_line(error, most=120)
        raise UserError(f"{path}: is not a model of speechtrain ({reason})\n    -> give a checkpoint, or a model from MLflow") from error


_UNREADABLE = (
    *(OSError, zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, EOFError, StopIteration),
    *(LookupError, ValueError, TypeError, AttributeError, RuntimeError),
)
"""The errors of reading a damaged file, or one of another program."""


class _PlainUnpickler(pickle.Unpickler):
    """Reads the plain values of what `torch.save` wrote, without PyTorch; tensors and all other objects become placeholders."""

    def find_class(self, module: str, name: str) -> type:
        return OrderedDict if (module, name) == ("collections", "OrderedDict") else _Placeholder

    def persistent_load(self, _pid: object) -> None:
        """Leave out the storage of a tensor, which is a file of its own."""


class _Placeholder:
    """Stands for an object that is not read; nothing of its class is run."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __call__(self, *_: object, **__: object) -> _Placeholder:
        return self

    def __setstate__(self, _state: object) -> None:
        pass

    def __setitem__(self, _key: object, _value: object) -> None:
        pass

    def extend(self, _items: object) -> None:
        """Leave out the items of a list of another class."""
