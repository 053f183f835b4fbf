"""Signals: metrics on totals, in numbers whatever the signals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from speechtrain.data.batches import Batch
from speechtrain.errors import ConfigError
from speechtrain.tasks.base import Outputs
from speechtrain.tasks.regression import LIMIT_DB, Regression, SignalTotals, decibels

NAMES = {"loss", "mse", "rmse", "mae", "pearson_r", "r2", "snr_db"}


def batch_of(wanted: list[np.ndarray], found: list[np.ndarray], mixture: list[np.ndarray]) -> tuple[Batch, Outputs]:
    lengths = np.array([len(each) for each in wanted])
    shape = (len(wanted), max(1, lengths.max()), 1)
    arrays = []
    for signals in (mixture, wanted, found):
        array = np.full(shape, 7.0 if signals is found else 0.0, np.float32)  # what lies behind the end must not count
        for row, values in enumerate(signals):
            array[row, : len(values), 0] = values
        arrays.append(array)
    names = tuple(map(str, range(len(wanted))))
    return (
        Batch(arrays[0], lengths, arrays[1], lengths, names, ("",) * len(wanted), 1.0),
        Outputs(arrays[2], lengths, np.ones(len(wanted), np.float32)),
    )


def test_metrics_are_totals_over_all_frames_and_not_means_of_utterances() -> None:
    rng = np.random.default_rng(1)
    wanted = [rng.normal(3, 1, size) for size in (50, 5, 200)]
    found = [each + rng.normal(0, 0.3, len(each)) for each in wanted]
    mixture = [each + rng.normal(0, 2, len(each)) for each in wanted]
    scorer = Regression(1, 1, mixture_channel=0).scorer(detailed=True)
    scorer.update(*batch_of(wanted[:2], found[:2], mixture[:2]))
    scorer.update(*batch_of(wanted[2:], found[2:], mixture[2:]))
    one, two, mixed = (np.concatenate(each) for each in (wanted, found, mixture))
    result = scorer.compute()
    assert set(result) == NAMES | {"snr_gain_db"}
    assert result["loss"] == pytest.approx(3 / 255)
    assert result["mse"] == pytest.approx(metrics.mean_squared_error(one, two), rel=1e-5)
    assert result["rmse"] == pytest.approx(math.sqrt(result["mse"]))
    assert result["mae"] == pytest.approx(metrics.mean_absolute_error(one, two), rel=1e-5)
    assert result["r2"] == pytest.approx(metrics.r2_score(one, two), rel=1e-4)
    assert result["pearson_r"] == pytest.approx(np.corrcoef(one, two)[0, 1], rel=1e-5)
    snr, before = (10 * np.log10((one**2).sum() / ((one - each) ** 2).sum()) for each in (two, mixed))
    assert result["snr_db"] == pytest.approx(snr, rel=1e-4)
    assert result["snr_gain_db"] == pytest.approx(snr - before, rel=1e-4)
    assert scorer.samples[1].measures["mae"] == pytest.approx(np.abs(found[1] - wanted[1]).mean(), rel=1e-5)
    np.testing.assert_allclose(scorer.samples[1].arrays["wanted"][:, 0], wanted[1], rtol=1e-6)


@pytest.mark.parametrize(
    ("wanted", "found", "expected"),
    [
        ([], [], {"mse": 0, "pearson_r": 0, "r2": 0, "snr_db": 0}),
        ([0, 0, 0], [0, 0, 0], {"mse": 0, "pearson_r": 0, "r2": 1, "snr_db": 0}),
        ([2, 2, 2], [2, 2, 2], {"mse": 0, "pearson_r": 0, "r2": 1, "snr_db": LIMIT_DB}),
        ([2, 2, 2], [1, 2, 3], {"mae": 2 / 3, "pearson_r": 0, "r2": 0}),
        ([0, 0, 0], [1, 2, 3], {"pearson_r": 0, "r2": 0, "snr_db": -LIMIT_DB}),
        ([1, 2, 3], [1, 2, 3], {"mse": 0, "pearson_r": 1, "r2": 1, "snr_db": LIMIT_DB}),
        ([1, 2, 3], [5, 5, 5], {"pearson_r": 0}),
        ([1, 2, 3], [-1, -2, -3], {"pearson_r": -1}),
    ],
)
def test_constant_and_empty_signals_have_values(wanted: list[float], found: list[float], expected: dict[str, float]) -> None:
    scorer = Regression(1, 1).scorer()
    first, second = (np.array(each, np.float32) for each in (wanted, found))
    scorer.update(*batch_of([first], [second], [first]))
    result = scorer.compute()
    assert set(result) == NAMES
    assert all(math.isfinite(value) for value in result.values())
    for name, value in expected.items():
        assert result[name] == pytest.approx(value), name


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 9), min_size=1, max_size=5), st.floats(-1e3, 1e3))
def test_totals_are_the_same_however_the_signal_is_cut(seed: int, sizes: list[int], offset: float) -> None:
    rng = np.random.default_rng(seed)
    pieces = [(rng.normal(offset, 1, size).astype(np.float32), rng.normal(offset, 1, size).astype(np.float32)) for size in sizes]
    total = SignalTotals()
    for wanted, found in pieces:
        total = total + SignalTotals.of(wanted, found)
    whole = SignalTotals.of(*(np.concatenate(each) for each in zip(*pieces, strict=True)))
    assert total.metrics() == pytest.approx(whole.metrics(), rel=1e-6, abs=1e-6)


def test_decibels_are_within_their_limits() -> None:
    assert decibels(1, 0.1) == pytest.approx(10)
    assert decibels(0, 0) == 0
    assert decibels(1, 1e-40) == LIMIT_DB
    assert decibels(0, 1) == -LIMIT_DB


def test_a_gain_is_only_promised_where_there_is_a_mixture() -> None:
    assert "snr_gain_db" in Regression(1, 1, mixture_channel=0).directions
    assert "snr_gain_db" not in Regression(1, 1).directions
    with pytest.raises(ConfigError, match="the data wants no signals"):
        Regression(0, 1)
    with pytest.raises(ConfigError, match=r"task.mixture_channel: is 5, and the features have 5 channels, counted from 0"):
        Regression(1, 5, mixture_channel=5)
