"""Which utterances make up each batch: each once an epoch, alike in duration, and the same batches as ever."""

from __future__ import annotations

import hashlib
import json
import random

import numpy as np
import pytest

from speechtrain.data import batching
from speechtrain.data.batching import Limits, epoch_batches, equalize_count


def durations_of(count: int, seed: int = 0) -> list[float]:
    """About 12 s each, from 0.5 to 45 s."""
    values: list[float] = np.random.default_rng(seed).gamma(4.0, 3.0, size=count).round(3).tolist()
    return values


def seconds_of(batch: list[int], durations: list[float]) -> float:
    """Of a batch, padding included."""
    return len(batch) * max(durations[place] for place in batch)


@pytest.mark.parametrize(
    ("count", "limits", "digest"),
    [
        (400, Limits(60.0, None, 10), "88b862fd1a65"),
        (400, Limits(60.0, 4, 10), "fd70ca16e485"),
        (400, Limits(200.0, None, 30), "c60a933c9bda"),
        (400, Limits(60.0, None, 1), "f9a5839ff949"),
        (5, Limits(1.0, None, 10), "1d3d458a4468"),
        (10_000, Limits(60.0, 9, 8), "45a9a094cef8"),
    ],
)
def test_batches_are_those_that_scores_were_measured_with(count: int, limits: Limits, digest: str) -> None:
    """The digests are of what Lhotse 1.33 divided, whose samplers made the batches up to version 0.1."""
    batches = [
        epoch_batches(durations_of(count), limits, shuffle=shuffle, seed=3, epoch=epoch) for shuffle in (True, False) for epoch in (0, 5)
    ]
    assert hashlib.blake2b(json.dumps(batches).encode(), digest_size=6).hexdigest() == digest


@pytest.mark.parametrize("count", [1, 2, 300, 12_000])
@pytest.mark.parametrize("num_buckets", [1, 8])
@pytest.mark.parametrize("shuffle", [True, False])
def test_each_utterance_is_in_one_batch_of_an_epoch(count: int, num_buckets: int, shuffle: bool) -> None:
    batches = epoch_batches(durations_of(count), Limits(60.0, 9, num_buckets), shuffle=shuffle, seed=1, epoch=2)
    assert sorted(place for batch in batches for place in batch) == list(range(count))
    assert all(1 <= len(batch) <= 9 for batch in batches)


@pytest.mark.parametrize("count", [9_000, 12_000])
def test_a_batch_exceeds_its_seconds_by_its_last_utterance_alone_and_only_where_that_is_the_longest(count: int) -> None:
    durations = durations_of(count)
    batches = epoch_batches(durations, Limits(60.0, None, 8), shuffle=True, seed=1, epoch=0)
    over = [batch for batch in batches if len(batch) > 1 and seconds_of(batch, durations) > 60]
    assert len(over) < 0.1 * len(batches)
    for batch in over:
        assert seconds_of(batch[:-1], durations) <= 60
        assert durations[batch[-1]] == max(durations[place] for place in batch)
    one_list = epoch_batches(durations, Limits(60.0, None, 1), shuffle=True, seed=1, epoch=0)
    assert all(len(batch) == 1 or seconds_of(batch, durations) <= 60 for batch in one_list)


def test_a_corpus_that_grows_past_ten_thousand_utterances_is_divided_by_the_same_rules() -> None:
    measures = []
    for count in (batching._REDRAWN, batching._REDRAWN + 1):
        durations = durations_of(count)
        batches = epoch_batches(durations, Limits(60.0, None, 8), shuffle=True, seed=1, epoch=0)
        padded = np.array([seconds_of(batch, durations) for batch in batches])
        measures.append((len(batches), padded.mean(), sum(durations) / padded.sum()))
    for before, after in zip(*measures, strict=True):
        assert after == pytest.approx(before, rel=0.01)
    evaluated = [
        epoch_batches(durations_of(10_001)[:count], Limits(60.0, None, 8), shuffle=False, seed=1, epoch=0) for count in (10_000, 10_001)
    ]
    assert abs(len(evaluated[0]) - len(evaluated[1])) <= 8


@pytest.mark.parametrize("count", [2_000, 30_000])
def test_the_order_follows_from_seed_and_epoch_and_mixes_the_whole_list(count: int) -> None:
    durations = (2.0 + np.random.default_rng(0).uniform(0, 0.01, size=count)).tolist()

    def divided(seed: int, epoch: int) -> list[list[int]]:
        return epoch_batches(durations, Limits(60.0, None, 4), shuffle=True, seed=seed, epoch=epoch)

    assert divided(1, 0) == divided(1, 0)
    assert divided(1, 0) != divided(1, 1)
    assert divided(1, 0) != divided(7, 0)
    spread = [max(batch) - min(batch) for batch in divided(1, 0) if len(batch) > 10]
    assert np.median(spread) > 0.67 * count, "a batch is drawn from all of the list, not from a part of it"
    first = [place for batch in divided(1, 0)[:50] for place in batch]
    assert max(first) - min(first) > 0.83 * count
    quarter = np.quantile(durations, 0.25)
    assert 0 < sum(durations[place] < quarter for place in first) < len(first) / 2, "and short and long ones take turns"


def test_without_shuffling_a_bucket_keeps_the_order_of_the_list() -> None:
    assert epoch_batches([1.0] * 100, Limits(1e9, None, 1), shuffle=False, seed=0, epoch=0) == [list(range(100))]
    for batch in epoch_batches(durations_of(500), Limits(60.0, None, 6), shuffle=False, seed=0, epoch=0):
        assert batch == sorted(batch)


@pytest.mark.parametrize("count", [3, 4, 5, 6])
def test_batches_become_as_many_as_asked_for_by_joining_the_shortest_or_halving_the_largest(count: int) -> None:
    durations = [1.0, 1.0, 1.0, 1.0, 9.0, 2.0, 2.0]
    batches = [[0, 1, 2, 3], [4], [5], [6]]
    made = equalize_count(batches, durations, count)
    assert len(made) == count
    assert sorted(place for batch in made for place in batch) == list(range(7))
    expected = {3: [[0, 1, 2, 3], [4], [5, 6]], 4: batches, 5: [[0, 1], [2, 3], [4], [5], [6]], 6: [[0], [1], [2, 3], [4], [5], [6]]}
    assert made == expected[count]


@pytest.mark.parametrize(("shuffle", "digest", "joined"), [(True, "03a3d4c425f6", "c77d5e437d69"), (False, "aa95b81d7bc1", "5375844eb831")])
def test_batches_of_a_long_list_are_those_of_version_0_2(shuffle: bool, digest: str, joined: str) -> None:
    rng = random.Random(5)
    durations = [round(rng.gammavariate(2, 3) + 0.2, 3) for _ in range(12_000)]
    batches = epoch_batches(durations, Limits(60.0, None, 10), shuffle=shuffle, seed=3, epoch=2)
    assert hashlib.md5(repr(batches).encode()).hexdigest()[:12] == digest
    fewer = equalize_count(batches, durations, len(batches) - 9)
    assert hashlib.md5(repr(fewer).encode()).hexdigest()[:12] == joined
