"""Gives Keras the batches of a loader, padded to few shapes where each shape is compiled."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from speechtrain.backends.keras.engine import TENSORFLOW
from speechtrain.backends.schedules import round_up
from speechtrain.data.batches import Batch
from speechtrain.data.loader import Loader


def arrays_of(batch: Batch) -> dict[str, Any]:
    """Return the arrays of a batch as Keras takes them: numbers in float32, labels and lengths in int32."""
    names = ("features", "feature_lengths", "targets", "target_lengths")
    arrays = {name: np.asarray(getattr(batch, name)) for name in names}
    return {name: array.astype(np.float32 if array.dtype.kind == "f" else np.int32, copy=False) for name, array in arrays.items()}


class Shapes:
    """Pads batches to few shapes, each of which is compiled once; added rows have length 0 and count nowhere.

    Sizes are rounded up to the next of a geometric row: (4, 5, 6, 7) x 2^n for frames and rows, 2^n for labels.
    """

    def __init__(self, *, active: bool) -> None:
        self._active = active

    def inputs(self, batch: Batch, views: int = 1) -> dict[str, Any]:
        """Return arrays for the model; the rows of each view are padded by themselves, so that views stay halves of the batch."""
        arrays = arrays_of(batch)
        if not self._active:
            return arrays
        rows, frames, labels = (
            round_up(len(batch.ids) // views, 4),
            round_up(batch.features.shape[1], 4),
            round_up(batch.targets.shape[1], 1),
        )
        if batch.targets.ndim == 3 and batch.targets.shape[1] == batch.features.shape[1]:
            labels = frames
        wanted = {"features": frames, "targets": labels}
        return {name: _pad(array, views, rows, wanted.get(name)) for name, array in arrays.items()}

    def features(self, features: npt.NDArray[np.float32], lengths: npt.NDArray[np.int64]) -> dict[str, Any]:
        """Return features (B, T, F) and lengths (B,) as a model takes them, padded to one of the few shapes."""
        arrays: dict[str, Any] = {"features": features.astype(np.float32, copy=False), "feature_lengths": lengths.astype(np.int32)}
        if not self._active:
            return arrays
        rows, frames = round_up(len(features), 4), round_up(features.shape[1], 4)
        return {name: _pad(array, 1, rows, frames if name == "features" else None) for name, array in arrays.items()}

    def outputs(self, padded: dict[str, Any], batch: Batch) -> dict[str, Any]:
        """Return the outputs of a model for such arrays without the added rows."""
        rows = len(batch.ids)
        return {name: value[:rows] for name, value in padded.items()}


def _pad(array: Any, views: int, rows: int, columns: int | None) -> Any:
    blocks = array.reshape(views, -1, *array.shape[1:])
    widths = [(0, 0), (0, rows - blocks.shape[1]), *((0, 0) for _ in array.shape[1:])]
    if columns is not None:
        widths[2] = (0, columns - array.shape[1])
    return np.pad(blocks, widths).reshape(views * rows, *(blocks.shape[2:] if columns is None else (columns, *array.shape[2:])))


class Feed:
    """Yields the training batches of consecutive epochs, and remembers each until it has been trained on.

    Args:
        loader: the training batches.
        shapes: the shapes that batches are padded to.
        views: differently augmented copies of an utterance in a batch.
        epochs: numbers of the epochs.
        done: number of batches of the first epoch that are skipped.

    Attributes:
        pending: batches that were yielded and not yet trained on, the oldest first.
    """

    def __init__(self, loader: Loader, shapes: Shapes, views: int, epochs: range, done: int = 0) -> None:
        self._loader = loader
        self._shapes = shapes
        self._views = views
        self._epochs = epochs
        self._done = done
        self.pending: deque[Batch] = deque()

    def __iter__(self) -> Iterator[tuple[dict[str, Any]]]:
        for epoch in self._epochs:
            self._loader.set_epoch(epoch, self._done if epoch == self._epochs.start else 0)
            for batch in self._loader:
                self.pending.append(batch)
                yield (self._shapes.inputs(batch, self._views),)

    def source(self, engine: str) -> Any:
        """Return the batches in the form that `fit` takes on an engine."""
        if engine != TENSORFLOW:
            return iter(self)
        import tensorflow as tf

        # the shapes are declared: Keras would guess from the first two batches which sizes change
        first = arrays_of(self._loader.example())
        free = {name: (None,) * min(2, array.ndim) for name, array in first.items()}
        shapes = {name: tf.TensorSpec((*free[name], *array.shape[2:]), array.dtype) for name, array in first.items()}
        signature = (shapes,)
        # TensorFlow never lets go of the function that it calls, nor of what the function holds
        reference = weakref.ref(self)

        def batches() -> Iterator[tuple[dict[str, Any]]]:
            feed = reference()
            return iter(feed if feed is not None else ())

        return tf.data.Dataset.from_generator(batches, output_signature=signature).prefetch(1)
