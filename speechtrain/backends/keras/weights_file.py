"""Checks a `.keras` file, which may be from anywhere, without importing Keras: the state beside the model, and the weights in HDF5."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from speechtrain.backends import zip_files
from speechtrain.backends.checkpoint_files import STATE

_WEIGHTS = "model.weights.h5"


def read_state(path: Path) -> dict[str, Any]:
    """Return the state that training left in a file, once its checksums and its weights are known to be right.

    Raises:
        One of `zip_files.UNREADABLE`: the file is no checkpoint, is damaged, or was made to do harm.
    """
    with zip_files.opened(path) as archive:
        zip_files.verify(archive)
        state = json.loads(zip_files.read_text(archive, STATE))
        with archive.open(_WEIGHTS) as weights, h5py.File(weights, "r") as content:
            _check_group(content, set())
    return {**state, "extra": dict(state["extra"])}


def _check_group(group: h5py.Group, seen: set[int]) -> None:
    """Check that a group of an HDF5 file holds its weights itself: no links, no numbers of other files, none that are only declared.

    Raises:
        ValueError: it does not, or a weight holds NaN.
    """
    for name in group:
        link = group.get(name, getlink=True)
        item = group[name] if isinstance(link, h5py.HardLink) else None
        if item is None or (address := h5py.h5o.get_info(item.id).addr) in seen:
            raise ValueError(f"{name!r:.80} is a link to another place")
        seen.add(address)
        if isinstance(item, h5py.Group):
            _check_group(item, seen)
        elif item.external or item.is_virtual or item.id.get_storage_size() < item.nbytes:
            raise ValueError(f"the numbers of {item.name!r:.80} are not in it")
        elif item.dtype.kind == "f" and bool(np.isnan(item[()]).any()):
            raise ValueError(f"its weight {item.name!r:.80} holds NaN")


def head(path: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the weights (D, V) and biases (V,) of a model's head.

    Raises:
        One of `zip_files.UNREADABLE`: the file cannot be read, or has none.
    """
    with zip_files.opened(path) as archive, archive.open(_WEIGHTS) as weights, h5py.File(weights, "r") as content:
        return content["head/vars/0"][()], content["head/vars/1"][()]


def sizes(path: Path) -> list[int]:
    """Return how many numbers each weight of a file has; the states of random numbers are no weights.

    Raises:
        One of `zip_files.UNREADABLE`: the file cannot be read.
    """
    found: list[int] = []
    with zip_files.opened(path) as archive, archive.open(_WEIGHTS) as weights, h5py.File(weights, "r") as content:

        def add(name: str, item: object) -> None:
            if isinstance(item, h5py.Dataset) and "seed_generator" not in name:
                found.append(item.size)

        content.visititems(add)
    return found
