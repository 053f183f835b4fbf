"""The events of a training, how a callback stops it, and where the time of an epoch goes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from speechtrain.data.batches import Batch


@dataclass
class Control:
    """Lets a callback ask the training to end.

    Attributes:
        stop_reason: why it ends; None while it goes on.
        pruned: whether it ends because other trials do better, so that its result is not wanted.
        paused: whether it is pruned for the time being, and may be resumed.
    """

    stop_reason: str | None = None
    pruned: bool = False
    paused: bool = False

    def stop(self, reason: str) -> None:
        """End the training after this epoch; of several reasons the first is kept."""
        self.stop_reason = self.stop_reason or reason

    def prune(self, reason: str) -> None:
        """End the training after this epoch, without a test and without a result."""
        self.pruned = True
        self.stop(reason)

    def pause(self, reason: str) -> None:
        """End the training after this epoch and its checkpoint, without a test and without a result so far; it may be resumed."""
        self.paused = True
        self.prune(reason)


class Callback:
    """Receives the events of a training: the same ones in the same order on every backend."""

    def on_model_ready(self, facts: Mapping[str, float]) -> None:
        """Receive counts of the data and of the model (`model/parameters`) before training.

        Raises:
            RunPruned: the run is not worth training.
        """

    def on_train_start(self, total_epochs: int, first_epoch: int) -> None:
        """Receive the number of epochs before the first batch; `first_epoch` is above 0 in a resumed run."""

    def on_epoch_start(self, epoch: int) -> None:
        """Receive the number of an epoch, counted from 0, before its first batch, or the first that a resumed run has left of it."""

    def on_batch_start(self, epoch: int, batch_index: int, batch_count: int) -> None:
        """Receive which batch of which epoch comes next, before it is trained on."""

    def on_batch_end(self, epoch: int, batch_index: int, batch_count: int, loss: float, lr: float) -> None:
        """Receive the loss and the learning rate of a step, after each training batch."""

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, float], control: Control) -> None:
        """Receive the metrics of an epoch, counted from 0, after its training and validation."""

    def on_checkpoint(self, path: Path) -> None:
        """Receive the last checkpoint each time it was written; those of the best epochs up to then are there as well."""

    def on_train_end(self, result: TrainResult) -> None:
        """Receive the result after the last epoch, also when a callback stopped the training."""


@dataclass
class TrainResult:
    """The result of one training by a backend.

    Attributes:
        history: metrics of each epoch that this process trained.
        best_checkpoint, last_checkpoint, mean_checkpoint: None where none was asked for.
        best_value: best value of the metric that checkpoints are chosen by.
        stop_reason: why it ended before its last epoch; None: it did not.
        pruned: whether a callback ended it with `Control.prune`.
        paused: whether a callback ended it with `Control.pause`.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    best_checkpoint: Path | None = None
    last_checkpoint: Path | None = None
    mean_checkpoint: Path | None = None
    best_value: float | None = None
    stop_reason: str | None = None
    pruned: bool = False
    paused: bool = False


class EpochClock:
    """Measures where the time of an epoch goes: steps of the model, evaluation, and waiting for data, which is the rest if not measured."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begin to measure an epoch."""
        self._started = time.perf_counter()
        self._step = self._eval = self._audio = 0.0
        self._waited: float | None = None

    def waiting(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches, and measure how long each is waited for."""
        iterator = iter(batches)
        while True:
            started = time.perf_counter()
            batch = next(iterator, None)
            self._waited = (self._waited or 0.0) + time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def step(self, seconds: float, audio: float) -> None:
        """Add the seconds of a step, and the seconds of audio in its batch."""
        self._step += seconds
        self._audio += audio

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Measure a pass over the validation data."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._eval += time.perf_counter() - started

    def metrics(self) -> dict[str, float]:
        """Return the seconds of each part, and the speed of the steps in seconds of audio a second."""
        rest = time.perf_counter() - self._started - self._step - self._eval
        return {
            "train/audio_s_per_s": self._audio / max(1e-9, self._step),
            "time/data_s": max(0.0, rest) if self._waited is None else self._waited,
            "time/step_s": self._step,
            "time/eval_s": self._eval,
        }
