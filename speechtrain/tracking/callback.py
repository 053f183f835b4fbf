"""From training events to trackers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from speechtrain.backends.base import Callback, Control
from speechtrain.tracking.base import Tracker


class TrackEpochs(Callback):
    """Sends the metrics of each epoch, once; the first epoch is step 1, what is known before it is step 0."""

    def __init__(self, trackers: Iterable[Tracker]) -> None:
        self._trackers = list(trackers)

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, float], control: Control) -> None:  # noqa: ARG002
        """Send them."""
        for tracker in self._trackers:
            tracker.log_metrics(metrics, epoch + 1)
