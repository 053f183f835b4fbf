"""Where the checkpoints of both backends lie, and the config and vocabulary in one, read without executing code or building a model."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speechtrain.backends import zip_files
from speechtrain.errors import UserError, first_line

FOLDER = "checkpoints"
"""Name of the folder of checkpoints in a run's folder."""

SUFFIXES = (".ckpt", ".keras")
"""Endings of the checkpoints of the Torch and of the Keras backend."""

LAST = "last"
"""Name, without its ending, of the checkpoint that is written over after each epoch."""

BEST = "best-"
"""Beginning of the names of checkpoints with the best values of the objective."""

RECENT = "recent-"
"""Beginning of the names of the latest checkpoints, of which a mean is made."""

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
        with zip_files.opened(path) as archive:
            content = json.loads(zip_files.read_text(archive, STATE)) if path.suffix == ".keras" else _structure(archive)
            return dict(content["extra"])
    except zip_files.UNREADABLE as error:
        reason = first_line(error, most=120)
        raise UserError(f"{path}: is not a model of speechtrain ({reason})\n    -> give a checkpoint, or a model from MLflow") from error


def another_model(path: Path, reason: str) -> UserError:
    """Return the error for weights that do not fit the model that they are to be put into."""
    return UserError(f"{path} holds another model: {reason}\n    -> use the model and data it was trained with")


def label_pairs(labels: Sequence[int | None], size: int, path: Path) -> tuple[list[int], list[int]]:
    """Return the values of a model's head that a file has too, and what they are in the head of the file, see `Backend.warm_start`.

    Raises:
        UserError: the head of the file has no more than `size` values, fewer than its vocabulary.
    """
    pairs = [(index, label) for index, label in enumerate(labels) if label is not None]
    if any(label >= size for _, label in pairs):
        raise another_model(path, f"its head has {size} values, and its vocabulary more")
    return [index for index, _ in pairs], [label for _, label in pairs]


def check_depth(model: Mapping[str, Any], count: int, path: Path) -> None:
    """Check that a config asks for no more layers than a file has weights, before they are built one by one.

    Args:
        model: node of the config in the file, or a mapping in it.
        count: number of the file's weights.
        path: the file.

    Raises:
        UserError: it does.
    """
    for key, value in model.items():
        if isinstance(value, Mapping):  # the architecture of a pretrained model
            check_depth(value, count, path)
        items = value if isinstance(value, list) else [value]
        depths = [len(items), *(items if "layers" in key or key == "repeats" else ())]
        if any(isinstance(depth, int) and depth > count for depth in depths):
            raise another_model(path, f"model.{key} of its config is {value!s:.80}, and it has {count} weights")


def check_torch_file(path: Path) -> None:
    """Check what `torch.load` does not: the checksum of each file inside, and that no tensor reaches beyond its file.

    Raises:
        One of `zip_files.UNREADABLE`: the file is damaged, or was made to do harm.
    """
    with zip_files.opened(path) as archive:
        zip_files.verify(archive)
        _structure(archive)


def _structure(archive: zipfile.ZipFile) -> Any:
    """Return what `torch.save` wrote, with its plain values; tensors and all other objects are placeholders."""
    name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
    content = zip_files.read_text(archive, name)
    _check_pickle(content)
    folder = name.removesuffix("data.pkl")
    sizes = {entry.filename.removeprefix(f"{folder}data/"): entry.file_size for entry in archive.infolist()}
    return _PlainUnpickler(content, sizes).load()


def _check_pickle(content: bytes) -> None:
    """Check that no instruction of a pickle asks for more memory than the pickle has bytes: Python makes room before it reads on."""
    for instruction, argument, _ in pickletools.genops(content):
        if instruction.name == "LONG_BINPUT" and isinstance(argument, int) and argument > len(content):
            raise pickle.UnpicklingError(f"it names value {argument:,} of {len(content):,} bytes")


_ITEM_SIZES = {
    "DoubleStorage": 8,
    "FloatStorage": 4,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "ComplexDoubleStorage": 16,
    "ComplexFloatStorage": 8,
    "LongStorage": 8,
    "IntStorage": 4,
    "ShortStorage": 2,
    "CharStorage": 1,
    "ByteStorage": 1,
    "BoolStorage": 1,
    "UntypedStorage": 1,
}
"""The bytes of a number in a file of `torch.save`, by the name of its storage."""


class _PlainUnpickler(pickle.Unpickler):
    """Reads the plain values of what `torch.save` wrote, without PyTorch; tensors and all other objects become placeholders.

    Args:
        content: the pickle.
        sizes: the bytes of each file that the numbers of tensors are in.
    """

    def __init__(self, content: bytes, sizes: Mapping[str, int]) -> None:
        super().__init__(io.BytesIO(content))
        self._sizes = sizes

    def find_class(self, module: str, name: str) -> object:
        """Return the class that stands for another one: no code of that is run."""
        if name in _ITEM_SIZES:
            return name
        if name.endswith("Tensor") or name == "bytearray":  # called with a number, they make room for so many bytes
            raise pickle.UnpicklingError(f"it makes a {module}.{name}, which no checkpoint does")
        return OrderedDict if (module, name) == ("collections", "OrderedDict") else _Placeholder

    def persistent_load(self, pid: tuple[str, str, str, str, int]) -> None:
        """Leave out the storage of a tensor, which is a file of its own, once it is known to have all its numbers."""
        kind, storage, key, _, count = pid
        if kind != "storage" or not isinstance(count, int) or _ITEM_SIZES[storage] * count > self._sizes[key] or count < 0:
            raise pickle.UnpicklingError(f"it has a tensor of {count:,} numbers, which are not in its file {key!r:.40}")


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
