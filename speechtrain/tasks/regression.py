"""Signals frame by frame: extraction, denoising, contours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from speechtrain.config.targets import Direction
from speechtrain.data.batches import Batch, Reference
from speechtrain.errors import ConfigError, Problem
from speechtrain.tasks.base import Array, Head, Ops, Outputs, Sample, Scorer, Task

LIMIT_DB = 100.0
"""Bound in dB of reported signal-to-noise ratios, because that of a perfect output is infinite."""

_SHOWN = 16
"""Number of utterances whose signals are stored for pictures."""

_ZERO, _PERFECT = 1e-30, 1e-24


class Regression(Task):
    """A value for each channel of each input frame.

    Args:
        target_size: C, channels that the corpus wants.
        input_size: F, channels of the features.
        criterion: `mse`, `mae`, `huber` or `smooth_l1`, each averaged over frames and channels.
        delta: where `huber` (Huber 1964) turns from a parabola into a line; `smooth_l1` (Girshick 2015) is huber / delta.
        mixture_channel: channel of the features that the signals are mixed in; then `snr_gain_db` is how much better the output is than
            that channel. None: there is none.
    """

    directions: Mapping[str, Direction] = {
        "loss": "minimize",
        "mse": "minimize",
        "rmse": "minimize",
        "mae": "minimize",
        "pearson_r": "maximize",
        "r2": "maximize",
        "snr_db": "maximize",
        "snr_gain_db": "maximize",
    }
    shown = ("loss", "snr_db", "snr_gain_db")
    report = "signals"

    def __init__(
        self,
        target_size: int,
        input_size: int,
        criterion: Literal["mse", "mae", "huber", "smooth_l1"] = "mse",
        delta: float = 1.0,
        mixture_channel: int | None = None,
    ) -> None:
        if target_size < 1:
            fix = "use data with signals, such as data=signals or data=hdf5_signals, or another task"
            raise ConfigError([Problem("task", "is regression, but the data wants no signals", fix)])
        if mixture_channel is not None and mixture_channel >= input_size:
            message = f"is {mixture_channel}, and the features have {input_size} channels, counted from 0"
            raise ConfigError([Problem("task.mixture_channel", message, "set it to the channel of the mixture, or to null")])
        self.target_size = target_size
        self.criterion = criterion
        self.delta = delta
        self.mixture_channel = mixture_channel
        if mixture_channel is None:
            self.directions = {name: way for name, way in type(self).directions.items() if name != "snr_gain_db"}

    @property
    def head(self) -> Head:
        """Describe a head of C values for each input frame."""
        return Head(self.target_size, log_softmax=False, per_input_frame=True)

    def target(self, reference: Reference) -> npt.NDArray[np.float32]:
        """Return the target signal (T, C) of an utterance."""
        assert reference.signal is not None
        return reference.signal()

    def loss(self, ops: Ops, values: Array, lengths: Array, targets: Array, target_lengths: Array) -> Array:  # noqa: ARG002
        """Compute the loss (B,) of each utterance, averaged over channels and summed over frames."""
        error = ops.absolute(values - targets)
        if self.criterion == "mse":
            each = error * error
        elif self.criterion == "mae":
            each = error
        else:
            each = ops.where(error < self.delta, 0.5 * error * error, self.delta * (error - 0.5 * self.delta))
            each = each / self.delta if self.criterion == "smooth_l1" else each
        return ops.sum(ops.mean(each, axis=2) * ops.mask(target_lengths, targets), axis=1)

    def scorer(self, *, detailed: bool = False) -> Scorer:
        """Return a new scorer; if it is detailed, with the measures of each utterance and the signals of some."""
        return RegressionScorer(self.mixture_channel, detailed=detailed)


@dataclass
class SignalTotals:
    """Sums over pairs of a wanted and a found value, kept as means and squared deviations, so that no offset costs precision.

    Merged as Chan, Golub and LeVeque (1983) merge variances.
    """

    count: int = 0
    wanted_mean: float = 0.0
    found_mean: float = 0.0
    wanted_spread: float = 0.0  # sum of squared deviations from the mean
    found_spread: float = 0.0
    together: float = 0.0  # sum of products of both deviations
    squared: float = 0.0  # of the errors
    absolute: float = 0.0  # of the errors
    energy: float = 0.0  # of the target signal

    @classmethod
    def of(cls, wanted: npt.NDArray[np.float32], found: npt.NDArray[np.float32]) -> SignalTotals:
        """Compute the sums over two signals of the same shape."""
        if wanted.size == 0:
            return cls()
        first, second = wanted.astype(np.float64).ravel(), found.astype(np.float64).ravel()
        error, a, b = second - first, first - first.mean(), second - second.mean()
        return cls(
            first.size,
            float(first.mean()),
            float(second.mean()),
            float(a @ a),
            float(b @ b),
            float(a @ b),
            float(error @ error),
            float(np.abs(error).sum()),
            float(first @ first),
        )

    def __add__(self, other: SignalTotals) -> SignalTotals:
        count = self.count + other.count
        if count == 0:
            return SignalTotals()
        weight = self.count * other.count / count
        wanted, found = other.wanted_mean - self.wanted_mean, other.found_mean - self.found_mean
        return SignalTotals(
            count,
            self.wanted_mean + wanted * other.count / count,
            self.found_mean + found * other.count / count,
            self.wanted_spread + other.wanted_spread + wanted * wanted * weight,
            self.found_spread + other.found_spread + found * found * weight,
            self.together + other.together + wanted * found * weight,
            self.squared + other.squared,
            self.absolute + other.absolute,
            self.energy + other.energy,
        )

    def metrics(self) -> dict[str, float]:
        """`mse`, `rmse`, `mae`, `pearson_r`, `r2`, `snr_db`; every one is a number, whatever the signals.

        Where nothing varies, r is 0, and R² is 1 for a perfect output and else 0, as scikit-learn has it. Of nothing, all are 0.
        """
        count = max(1, self.count)
        spread = math.sqrt(self.wanted_spread * self.found_spread)
        varies = self.wanted_spread > _ZERO * max(1.0, self.energy)
        perfect = self.squared <= _PERFECT * max(1.0, self.energy)
        r2 = 1 - self.squared / self.wanted_spread if varies else float(perfect and self.count > 0)
        return {
            "mse": self.squared / count,
            "rmse": math.sqrt(self.squared / count),
            "mae": self.absolute / count,
            "pearson_r": min(1.0, max(-1.0, self.together / spread)) if spread > _ZERO else 0.0,
            "r2": r2,
            "snr_db": decibels(self.energy, self.squared),
        }


def decibels(signal: float, noise: float) -> float:
    """Return the ratio of two energies in dB, within +-`LIMIT_DB`; 0 where both are 0."""
    if signal <= _ZERO and noise <= _ZERO:
        return 0.0
    if noise <= _ZERO:
        return LIMIT_DB
    return max(-LIMIT_DB, min(LIMIT_DB, 10 * math.log10(max(signal, _ZERO) / noise)))


class RegressionScorer(Scorer):
    """Metrics on the totals over all frames and channels of a split."""

    def __init__(self, mixture_channel: int | None, *, detailed: bool = False) -> None:
        self._channel = mixture_channel
        self._detailed = detailed
        self._loss, self._frames = 0.0, 0
        self._totals, self._before = SignalTotals(), SignalTotals()
        self.samples: list[Sample] = []

    def update(self, batch: Batch, outputs: Outputs) -> None:
        """Add the outputs for a batch to the sums."""
        self._loss += float(outputs.losses.sum())
        for row, utterance in enumerate(batch.ids):
            frames = int(batch.target_lengths[row])
            self._frames += frames
            wanted, found = np.asarray(batch.targets[row, :frames], dtype=np.float32), outputs.values[row, :frames]
            totals = SignalTotals.of(wanted, found)
            self._totals += totals
            measures = totals.metrics()
            arrays = {"wanted": wanted, "found": found}
            if self._channel is not None:
                mixture = np.broadcast_to(batch.features[row, :frames, self._channel, None], wanted.shape)
                before = SignalTotals.of(wanted, mixture)
                self._before += before
                measures["snr_gain_db"] = measures["snr_db"] - decibels(before.energy, before.squared)
                arrays["mixture"] = batch.features[row, :frames, self._channel, None].copy()
            keep = arrays if self._detailed and len(self.samples) < _SHOWN else {}
            self.samples.append(Sample(utterance, measures=measures if self._detailed else {}, arrays=keep))

    def totals(self) -> tuple[Any, ...]:
        """Return the summed loss, the number of frames, the sums and the samples."""
        return self._loss, self._frames, self._totals, self._before, self.samples

    def add(self, totals: tuple[Any, ...]) -> None:
        """Add the counts of another process."""
        loss, frames, sums, before, samples = totals
        self._loss += loss
        self._frames += frames
        self._totals += sums
        self._before += before
        self.samples += samples

    def compute(self) -> dict[str, float]:
        """Compute the `loss` per frame and the metrics of `SignalTotals`; also `snr_gain_db` where an input channel is the mixture."""
        if not self.samples:
            return {}
        found = {"loss": self._loss / max(1, self._frames), **self._totals.metrics()}
        if self._channel is not None:
            found["snr_gain_db"] = found["snr_db"] - decibels(self._before.energy, self._before.squared)
        return found
