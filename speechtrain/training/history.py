"""What each metric has been: latest, best, when, and whether it still gets better. One for both backends, kept beside the run."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

from speechtrain.backends.callbacks import Callback, Control
from speechtrain.config.targets import Direction
from speechtrain.files import write_text

HISTORY = "history.jsonl"
"""In a run's folder: one line an epoch."""


class History(Callback):
    """The metrics of a run's epochs, counted from 0; a resumed run goes on with those that it had.

    Args:
        direction: which way a metric is better; raises KeyError for one that has no better and worse.
        path: file to keep them in; None: only in memory.
    """

    def __init__(self, direction: Callable[[str], Direction], path: Path | None = None) -> None:
        self.epochs: list[dict[str, float]] = []
        self._direction = direction
        self._path = path

    def on_train_start(self, total_epochs: int, first_epoch: int) -> None:  # noqa: ARG002
        """Take up the epochs before the first that comes."""
        if self._path is None:
            return
        before = read_history(self._path)[:first_epoch] if first_epoch else []
        self.epochs = [{}] * (first_epoch - len(before)) + before
        write_text(self._path, "".join(json.dumps(each) + "\n" for each in self.epochs))

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, float], control: Control) -> None:  # noqa: ARG002
        """Add an epoch."""
        self.epochs.append(dict(metrics))
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.epochs[-1]) + "\n")

    def values(self, metric: str) -> list[tuple[int, float]]:
        """(epoch, value) wherever the metric was measured and is a number."""
        return [(epoch, found[metric]) for epoch, found in enumerate(self.epochs) if metric in found and not math.isnan(found[metric])]

    def latest(self, metric: str) -> float | None:
        """The value measured last; None: never."""
        found = self.values(metric)
        return found[-1][1] if found else None

    def best(self, metric: str) -> tuple[int, float] | None:
        """(epoch, value) of the best one, the first of equals; None: never measured.

        Raises:
            KeyError: the metric has no better and worse.
        """
        sign = 1 if self._direction(metric) == "minimize" else -1
        return min(self.values(metric), key=lambda item: sign * item[1], default=None)

    def average(self, metric: str, count: int) -> float | None:
        """Mean of the last `count` values; None: never measured."""
        found = [value for _, value in self.values(metric)[-count:]]
        return statistics.fmean(found) if found else None

    def improved_within(self, metric: str, epochs: int) -> bool:
        """Whether the best value is one of the last `epochs` epochs'."""
        best = self.best(metric)
        return best is not None and best[0] >= len(self.epochs) - epochs


def read_history(path: Path) -> list[dict[str, float]]:
    """The epochs in a file, as far as its lines are whole; empty if there is none."""
    found: list[dict[str, float]] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return found
    for line in lines:
        try:
            found.append({str(name): float(value) for name, value in json.loads(line).items()})
        except (ValueError, AttributeError, TypeError):
            break
    return found
