"""The history of a run's metrics, in a file of its folder: the latest and the best value of each, and whether it still improves."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

from speechtrain.backends.callbacks import Callback, Control
from speechtrain.config.targets import Direction
from speechtrain.files import append, write_text

HISTORY = "history.jsonl"
"""The file in a run's folder, one line an epoch."""


class History(Callback):
    """Records the metrics of a run's epochs, counted from 0; a resumed run continues its history.

    Args:
        direction: returns which way a metric is better; raises KeyError for one that has no better and worse.
        path: the file; None: the history is only in memory.
    """

    def __init__(self, direction: Callable[[str], Direction], path: Path | None = None) -> None:
        self.epochs: list[dict[str, float]] = []
        self._direction = direction
        self._path = path

    def on_train_start(self, total_epochs: int, first_epoch: int) -> None:  # noqa: ARG002
        """Read the epochs before the first one of this process."""
        if self._path is None:
            return
        before = read_history(self._path)[:first_epoch] if first_epoch else []
        self.epochs = [{}] * (first_epoch - len(before)) + before
        write_text(self._path, "".join(json.dumps(each) + "\n" for each in self.epochs))

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, float], control: Control) -> None:  # noqa: ARG002
        """Add the metrics of an epoch."""
        self.epochs.append(dict(metrics))
        if self._path is not None:
            append(self._path, (json.dumps(self.epochs[-1]) + "\n").encode())

    def values(self, metric: str) -> list[tuple[int, float]]:
        """Return (epoch, value) wherever the metric was measured and is a number."""
        return [(epoch, each[metric]) for epoch, each in enumerate(self.epochs) if metric in each and not math.isnan(each[metric])]

    def latest(self, metric: str) -> float | None:
        """Return the value measured last; None: it was never measured."""
        values = self.values(metric)
        return values[-1][1] if values else None

    def best(self, metric: str) -> tuple[int, float] | None:
        """Return (epoch, value) of the best value, the last of equals, as the best checkpoint is; None: it was never measured.

        Raises:
            KeyError: the metric has no better and worse.
        """
        sign = 1 if self._direction(metric) == "minimize" else -1
        return min(reversed(self.values(metric)), key=lambda item: sign * item[1], default=None)

    def average(self, metric: str, count: int) -> float | None:
        """Return the mean of the last `count` values; None: it was never measured."""
        values = [value for _, value in self.values(metric)[-count:]]
        return statistics.fmean(values) if values else None

    def improved_within(self, metric: str, epochs: int) -> bool:
        """Return whether the best value was reached for the first time in the last `epochs` epochs."""
        best = self.best(metric)
        return best is not None and all(value != best[1] for epoch, value in self.values(metric) if epoch < len(self.epochs) - epochs)


def read_history(path: Path) -> list[dict[str, float]]:
    """Return the epochs in a file, up to the first line that is damaged; empty if there is no file."""
    epochs: list[dict[str, float]] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return epochs
    for line in lines:
        try:
            epochs.append({str(name): float(value) for name, value in json.loads(line).items()})
        except (ValueError, AttributeError, TypeError, RecursionError):
            break
    return epochs
