"""What trials will come to, from their parameters and from the beginnings of their learning curves: a Gaussian process over both.

The model is that of freeze-thaw optimization (Swersky et al. 2014, arXiv 1406.3896) with simpler kernels: what a trial reports after some
epochs is a smooth function of its parameters and of the logarithm of the epochs, and a deviation of the trial's own that goes on along its
curve. So a trial is judged by its curve, and by how the curves of trials with like parameters went on.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize
from scipy.stats import norm

Array = NDArray[np.float64]

MOST_OBSERVATIONS = 300
"""Reports from which a model is made, for its cost grows with their cube: the last of the best and of the newest trials, then others."""
_BEST_KEPT = 50
"""Trials that have come to their end of which the model always knows."""
_MOST_FITTED, _ITERATIONS = 100, 20
"""Reports to which the kernel's parameters are fitted, spread over the others, and steps of that."""
_JITTER = 1e-6


def features_of(params: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]) -> dict[str, float]:
    """Return the values of a trial's parameters as numbers from 0 to 1.

    A parameter of numbers, or of choices that are numbers, is one feature, on the scale that it is drawn on; any other is a feature for
    each choice, named `key=choice`, of which the chosen one alone is there.
    """
    features: dict[str, float] = {}
    for name, value in params.items():
        distribution = distributions[name]
        if isinstance(distribution, FloatDistribution | IntDistribution):
            scale = math.log if distribution.log else float
            low, high = scale(distribution.low), scale(distribution.high)
            features[name] = (scale(value) - low) / (high - low) if high > low else 0.5
        elif isinstance(distribution, CategoricalDistribution):
            numbers = _numbers(distribution.choices)
            if numbers is None:
                features[f"{name}={value}"] = 1.0
            else:
                features[name] = sorted(numbers).index(float(value)) / max(len(numbers) - 1, 1)
    return features


def _numbers(choices: Sequence[Any]) -> list[float] | None:
    """Return choices as numbers; None if they are not all different numbers."""
    try:
        numbers = [float(choice) for choice in choices]
    except (TypeError, ValueError):
        return None
    return numbers if len(set(numbers)) == len(numbers) and all(map(math.isfinite, numbers)) else None


@dataclass(frozen=True)
class Curve:
    """What is known of a trial.

    Attributes:
        features: its parameters (`features_of`).
        costs: what it reported, by the number of epochs it had then; less is better, and infinite where it was not a number.
        is_complete: whether it has come to its end, so that its last report is its result.
    """

    features: Mapping[str, float]
    costs: Mapping[int, float]
    is_complete: bool = False


@dataclass(frozen=True)
class _Points:
    """Places of the model: parameters (n, features), logarithm of the share of all epochs (n,), trial (n,), -1 for a new one."""

    features: Array
    times: Array
    trials: NDArray[np.int64]


class NothingKnownError(Exception):
    """No trial has reported anything finite, or how long a training is cannot be known yet."""


class CurveModel:
    """Predicts the last report of trials from what all have reported.

    Args:
        curves: what is known of each trial, by its number.
        epochs: the numbers of epochs at which curves are looked at, besides where they end.
        horizon: epochs of a training; None: those of the longest that is complete.

    Attributes:
        horizon: epochs of a training.
        best: the best result so far, in the model's own scale; where none is complete, the best of all reports.

    Raises:
        NothingKnownError: nothing finite was reported; or no trial is complete and the horizon is not given.
    """

    def __init__(self, curves: Mapping[int, Curve], epochs: Collection[int], horizon: int | None = None) -> None:
        curves = {number: curve for number, curve in curves.items() if curve.costs}
        ends = {number: max(curve.costs) for number, curve in curves.items()}
        complete = {number for number, curve in curves.items() if curve.is_complete}
        horizon = horizon or max((ends[number] for number in complete), default=0)
        chosen = _chosen(curves, ends, set(epochs))
        raw = np.array([curves[number].costs[at] for number, at in chosen])
        finite = raw[np.isfinite(raw)]
        if not horizon or not len(finite):
            raise NothingKnownError
        self.horizon = horizon
        self._names = sorted({name for curve in curves.values() for name in curve.features})
        self._points = _Points(
            np.array([self._vector(curves[number].features) for number, _ in chosen]),
            np.array([0.0 if at == ends[number] and curves[number].is_complete else self._time(at) for number, at in chosen]),
            np.array([number for number, _ in chosen]),
        )
        raw = np.where(np.isfinite(raw), raw, finite.max())  # one that diverged is as bad as the worst
        scaled = np.log(raw) if (raw > 0).all() else raw
        self._values = (scaled - scaled.mean()) / (float(scaled.std()) or 1.0)
        results = [value for value, (number, at) in zip(self._values, chosen, strict=True) if at == ends[number] and number in complete]
        self.best = float(min(results) if results else self._values.min())
        self._parameters = self._fitted()
        self._condition()

    def _condition(self) -> None:
        covariance = self._covariance(self._points, self._points, self._parameters)
        covariance[np.diag_indices_from(covariance)] += math.exp(self._parameters[-1]) + _JITTER
        self._factor = cho_factor(covariance, lower=True)
        self._weights = cho_solve(self._factor, self._values)

    def expect(self, features: Sequence[Mapping[str, float]]) -> None:
        """Take trials that run and have reported nothing for as good as they are predicted, so that no other is begun beside them."""
        if not features:
            return
        numbers = np.arange(-1 - len(features), -1)  # of no other trial
        mean, _ = self.predict(features, [-1] * len(features))
        self._points = _Points(
            np.concatenate([self._points.features, [self._vector(each) for each in features]]),
            np.concatenate([self._points.times, np.zeros(len(features))]),
            np.concatenate([self._points.trials, numbers]),
        )
        self._values = np.concatenate([self._values, mean])
        self._condition()

    def _vector(self, features: Mapping[str, float]) -> list[float]:
        return [features.get(name, 0.0 if "=" in name else 0.5) for name in self._names]

    def _time(self, epochs: int) -> float:
        return math.log(min(epochs, self.horizon) / self.horizon)

    def predict(self, features: Sequence[Mapping[str, float]], trials: Sequence[int]) -> tuple[Array, Array]:
        """Return mean and standard deviation (n,) of the last reports, in the model's own scale.

        Args:
            features: parameters of the trials.
            trials: the trials, of which some have begun; -1 for one that has not.
        """
        asked = _Points(np.array([self._vector(each) for each in features]), np.zeros(len(features)), np.array(trials))
        across = self._covariance(asked, self._points, self._parameters)
        count = len(self._names)
        before = math.exp(self._parameters[count]) + math.exp(self._parameters[count + 2])
        variance = before - (across * cho_solve(self._factor, across.T).T).sum(axis=1)
        return across @ self._weights, np.sqrt(np.maximum(variance, 1e-9))

    def improvement(self, features: Sequence[Mapping[str, float]], trials: Sequence[int]) -> tuple[Array, Array]:
        """Return by how much each trial is expected to become better than the best one, and with which probability, (n,) each."""
        mean, deviation = self.predict(features, trials)
        z = (self.best - mean) / deviation
        return deviation * (z * norm.cdf(z) + norm.pdf(z)), norm.cdf(z)

    # --- the kernel and its parameters ------------------------------------------------------------------------------------------------

    def _covariance(self, a: _Points, b: _Points, parameters: Array) -> Array:
        return sum(self._terms(a, b, parameters)[:2])  # type: ignore[return-value]

    def _terms(self, a: _Points, b: _Points, parameters: Array) -> tuple[Array, Array, Array, Array, Array]:
        """Return the part of the parameters, that of the trials' own deviations, squares and distance of the features, distance in time."""
        count = len(self._names)
        lengths, (signal, length_t, own, own_t) = np.exp(parameters[:count]), np.exp(parameters[count : count + 4])
        squares = ((a.features[:, None, :] - b.features[None, :, :]) / lengths) ** 2
        r = np.sqrt(5 * squares.sum(axis=2))
        apart = np.abs(a.times[:, None] - b.times[None, :])
        shared = signal * (1 + r + r**2 / 3) * np.exp(-r) * np.exp(-(apart**2) / (2 * length_t**2))  # Matérn 5/2 times squared exponential
        same = (a.trials[:, None] == b.trials[None, :]) & (a.trials != -1)[:, None]
        return shared, np.where(same, own * np.exp(-apart / own_t), 0.0), squares, r, apart

    def _fitted(self) -> Array:
        """Return the most probable logarithms of the kernel's parameters: length of each feature, then as in `_terms`, then noise."""
        count = len(self._names)
        middle = np.log(np.array([0.7] * count + [1.0, 1.0, 0.1, 2.0, 0.003]))
        width = np.array([0.8] * count + [1.0, 0.7, 1.0, 0.7, 1.0])

        some = np.linspace(0, len(self._values) - 1, min(len(self._values), _MOST_FITTED)).round().astype(int)
        points = _Points(self._points.features[some], self._points.times[some], self._points.trials[some])
        values = self._values[some]

        def negative_log_posterior(parameters: Array) -> tuple[float, Array]:
            shared, own, squares, r, apart = self._terms(points, points, parameters)
            noise = math.exp(parameters[-1])
            covariance = shared + own
            covariance[np.diag_indices_from(covariance)] += noise + _JITTER
            factor = cho_factor(covariance, lower=True)
            weights = cho_solve(factor, values)
            inner = cho_solve(factor, np.eye(len(weights))) - np.outer(weights, weights)
            steep = inner * shared * (5 / 3 * (1 + r) / (1 + r + r**2 / 3))
            length_t, own_t = np.exp(parameters[[count + 1, count + 3]])
            slopes = [float((steep * squares[:, :, index]).sum()) for index in range(count)]
            slopes += [
                float((inner * shared).sum()),
                float((inner * shared * apart**2).sum()) / length_t**2,
                float((inner * own).sum()),
                float((inner * own * apart).sum()) / own_t,
                noise * float(np.trace(inner)),
            ]
            z = (parameters - middle) / width
            value = 0.5 * float(values @ weights) + float(np.log(np.diag(factor[0])).sum()) + 0.5 * float(z @ z)
            return value, 0.5 * np.array(slopes) + z / width

        bounds = [(low, high) for low, high in zip(middle - 5 * width, middle + 5 * width, strict=True)]
        found = minimize(negative_log_posterior, middle, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": _ITERATIONS})
        return np.asarray(found.x, dtype=np.float64)


def _chosen(curves: Mapping[int, Curve], ends: Mapping[int, int], epochs: set[int]) -> list[tuple[int, int]]:
    """Return (trial, epochs) of the reports from which a model is made, at most `MOST_OBSERVATIONS`."""
    complete = [number for number, curve in curves.items() if curve.is_complete]
    best = sorted(complete, key=lambda number: curves[number].costs[ends[number]])[:_BEST_KEPT]
    order = list(dict.fromkeys([*best, *sorted(curves, reverse=True)]))
    last = [(number, ends[number]) for number in order]
    earlier = [(number, at) for number in order for at in sorted(epochs & curves[number].costs.keys(), reverse=True) if at != ends[number]]
    return [*last, *earlier][:MOST_OBSERVATIONS]
