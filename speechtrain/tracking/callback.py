"""Sends the events of a training to trackers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from speechtrain.backends.callbacks import Callback, Control
from speechtrain.tracking.base import Tracker


class Track(Callback):
    """Sends the metrics of each epoch, once; the first epoch is step 1, what is known before it is step 0.

    Args:
        trackers: the trackers of the run.
        every_n_steps: also `step/loss` and `step/lr` of every n-th batch, the first batch of the run being step 1; None sends none.
    """

    def __init__(self, trackers: Iterable[Tracker], every_n_steps: int | None = None) -> None:
        self._trackers = list(trackers)
        self._every = every_n_steps

    def on_batch_end(self, epoch: int, batch_index: int, batch_count: int, loss: float, lr: float) -> None:
        """Send loss and learning rate of every n-th batch."""
        step = epoch * batch_count + batch_index + 1
        if self._every is not None and step % self._every == 0:
            for tracker in self._trackers:
                tracker.log_metrics({"step/loss": loss, "step/lr": lr}, step)

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, float], control: Control) -> None:  # noqa: ARG002
        """Send the metrics of an epoch."""
        for tracker in self._trackers:
            tracker.log_metrics(metrics, epoch + 1)

    def on_checkpoint(self, path: Path) -> None:
        """Have the trackers keep what a resumed run needs."""
        for tracker in self._trackers:
            tracker.log_last(path.parent.parent)
