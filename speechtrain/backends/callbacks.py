"""What follows a training: the events, how a callback stops it, and where the time of an epoch goes."""

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
    """How a callback asks the training to end.

    Attributes:
        stop_reason: None while it goes on.
        pruned: whether it ended because others do better, so that its result is not wanted.
    """

    stop_reason: str | None = None
    pruned: bool = False

    def stop(self, reason: str) -> None:
        """End after this epoch; the first reason given is kept."""
        self.stop_reason = self.stop_reason or reason

    def prune(self, reason: str) -> None:
        """End after this epoch and leave it at that: no test, no result."""
        self.pruned = True
        self.stop(reason)


class Callback:
    """Something that follows a training; the same events in the same order on every backend."""

    def on_model_ready(self, facts: Mapping[str, float]) -> None:
        """Before training: counts of the data and of the model (`model/parameters`).

        Raises:
            RunPruned: the run is not worth training.
        """

    def on_train_start(self, total_epochs: int, first_epoch: int) -> None:
        """Before the first batch; `first_epoch` is above 0 in a resumed run."""

    def on_batch_end(self, epoch: int, batch_index: int, batch_count: int, loss: float, lr: float) -> None:
        """After each training batch, with the loss and the learning rate of its step."""

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, float], control: Control) -> None:
        """After training and validation of an epoch, counted from 0."""

    def on_train_end(self, result: TrainResult) -> None:
        """After the last epoch, also when a callback stopped the training."""


@dataclass
class TrainResult:
    """What a training leaves.

    Attributes:
        history: metrics of each epoch of this process.
        best_checkpoint, last_checkpoint, mean_checkpoint: None where none was asked for.
        best_value: of the monitored metric.
        stop_reason: why it ended before its last epoch, if it did.
        pruned: whether a callback asked for that with `Control.prune`.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    best_checkpoint: Path | None = None
    last_checkpoint: Path | None = None
    mean_checkpoint: Path | None = None
    best_value: float | None = None
    stop_reason: str | None = None
    pruned: bool = False


class EpochClock:
    """Where the time of an epoch goes: the model's steps, evaluation, and waiting for data, which is the rest where nobody measures it."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """An epoch begins."""
        self._started = time.perf_counter()
        self._step = self._eval = self._audio = 0.0
        self._waited: float | None = None

    def waiting(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, with the time measured that each is waited for."""
        following = iter(batches)
        while True:
            started = time.perf_counter()
            batch = next(following, None)
            self._waited = (self._waited or 0.0) + time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def step(self, seconds: float, audio: float) -> None:
        """A step took so long, on so many seconds of audio."""
        self._step += seconds
        self._audio += audio

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """A pass over the validation data."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._eval += time.perf_counter() - started

    def metrics(self) -> dict[str, float]:
        """Seconds, and the speed of the steps in seconds of audio a second."""
        rest = time.perf_counter() - self._started - self._step - self._eval
        return {
            "train/audio_s_per_s": self._audio / max(1e-9, self._step),
            "time/data_s": max(0.0, rest) if self._waited is None else self._waited,
            "time/step_s": self._step,
            "time/eval_s": self._eval,
        }
