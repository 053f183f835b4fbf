"""Which utterances make up each batch of an epoch, for corpora of every size.

Utterances are divided by duration into buckets, and each batch is drawn from one bucket, so that little of it is padding. The rules and
their random numbers are those of Lhotse 1.33 (`DynamicBucketingSampler`, and `SimpleCutSampler` for a single bucket), applied to the whole
list instead of to a buffer of it; see docs/decisions/0015.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_REDRAWN = 10_000
"""Utterances up to which a bucket is shuffled before each batch, and not once an epoch: the same distribution, at a quadratic cost."""
_BUCKET_SEED = 1234  # of the order in which the buckets take turns, the same in every epoch


@dataclass(frozen=True)
class Limits:
    """How large a batch may be, and how alike in duration its utterances are.

    Attributes:
        batch_seconds: seconds of audio in a batch, padding included. A batch is full when one more utterance as long as its longest would
            exceed them, so only a last utterance that is longer than all before it can exceed them.
        batch_size: greatest number of utterances in a batch; None: as many as fit.
        num_buckets: number of buckets into which the corpus is divided by duration, each with the same share of its seconds.
    """

    batch_seconds: float
    batch_size: int | None
    num_buckets: int


def epoch_batches(durations: Sequence[float], limits: Limits, *, shuffle: bool, seed: int, epoch: int) -> list[list[int]]:
    """Divide utterances into the batches of one epoch, each utterance once.

    Args:
        durations: duration of each utterance, s (N,).
        limits: the limits of a batch.
        shuffle: draw another order for each sum of `seed` and `epoch`; otherwise the utterances of a bucket keep theirs.
        seed: seed of the order.
        epoch: number of the epoch, counted from 0.

    Returns:
        For each batch the places of its utterances in `durations`.
    """
    rng = random.Random(seed + epoch)  # noqa: S311 # no secret hangs on it
    num_buckets = min(limits.num_buckets, len(durations))
    if num_buckets < 2:
        return _without_buckets(durations, limits, rng if shuffle else None)
    buckets = _buckets(durations, num_buckets)
    redrawn = shuffle and len(durations) <= _REDRAWN
    if shuffle and not redrawn:
        for bucket in buckets:
            rng.shuffle(bucket)
    turns = random.Random(_BUCKET_SEED)  # noqa: S311 # no secret hangs on it
    batches = []
    if not redrawn:
        return _in_turns([_consecutive(bucket, durations, limits) for bucket in buckets], turns)
    while any(buckets):
        bucket = _next_bucket(buckets, turns.randrange(len(buckets)), durations, limits)
        candidates = bucket.copy()
        rng.shuffle(candidates)
        batch = candidates[: _fill(candidates, durations, limits)[0]]
        batches.append(batch)
        drawn = set(batch)
        bucket[:] = [place for place in bucket if place not in drawn]
    return batches


def _consecutive(bucket: Sequence[int], durations: Sequence[float], limits: Limits) -> list[tuple[list[int], bool]]:
    """Divide a bucket into batches of consecutive utterances; each with whether it is full, as all but the last one are."""
    batches: list[tuple[list[int], bool]] = []
    longest, begin = 0.0, 0
    for end, place in enumerate(bucket, start=1):
        longest = max(longest, durations[place])
        count = end - begin
        if count == limits.batch_size or (count + 1) * longest > limits.batch_seconds:
            batches.append((list(bucket[begin:end]), True))
            longest, begin = 0.0, end
    if begin < len(bucket):
        batches.append((list(bucket[begin:]), False))
    return batches


def _in_turns(buckets: Sequence[list[tuple[list[int], bool]]], turns: random.Random) -> list[list[int]]:
    """Take the batches of all buckets in the order in which the buckets have their turns, see `_next_bucket`."""
    nearest = [_nearest(len(buckets), turn) for turn in range(len(buckets))]
    taken = [0] * len(buckets)
    batches: list[list[int]] = []
    for _ in range(sum(map(len, buckets))):
        left = [index for index in nearest[turns.randrange(len(buckets))] if taken[index] < len(buckets[index])]
        index = next((index for index in left if buckets[index][taken[index]][1]), left[0])
        batches.append(buckets[index][taken[index]][0])
        taken[index] += 1
    return batches


def _nearest(count: int, turn: int) -> list[int]:
    """Return the numbers of all buckets, the nearest to `turn` first."""
    return sorted(range(count), key=lambda index: (abs(index - turn), index))


def _buckets(durations: Sequence[float], count: int) -> list[list[int]]:
    """Return the places in `durations` by bucket, the shortest first; about `count` buckets of the same total duration."""
    ordered = np.sort(np.array(durations, dtype=np.float64))
    share = ordered.sum() / count
    bounds: list[float] = []
    total = 0.0
    for duration in ordered.tolist():
        if total > share:
            bounds.append(duration)
            total = 0.0
        total += duration
    bucket_of = np.searchsorted(np.array(bounds), np.asarray(durations, dtype=np.float64), side="left")
    return [np.flatnonzero(bucket_of == bucket).tolist() for bucket in range(len(bounds) + 1)]


def _next_bucket(buckets: Sequence[list[int]], turn: int, durations: Sequence[float], limits: Limits) -> list[int]:
    """Return the bucket nearest to `turn` that still fills a batch; when none does, the nearest that is not empty."""
    nearest = _nearest(len(buckets), turn)
    for index in nearest:
        if _fill(buckets[index], durations, limits)[1]:
            return buckets[index]
    return next(buckets[index] for index in nearest if buckets[index])


def _fill(places: Sequence[int], durations: Sequence[float], limits: Limits) -> tuple[int, bool]:
    """Return how many utterances, counted from the first, make a batch, and whether the batch is full."""
    longest = 0.0
    for count, place in enumerate(places, start=1):
        longest = max(longest, durations[place])
        if count == limits.batch_size or (count + 1) * longest > limits.batch_seconds:
            return count, True
    return len(places), False


def _without_buckets(durations: Sequence[float], limits: Limits, rng: random.Random | None) -> list[list[int]]:
    """Return batches of consecutive utterances, in the order of the list or of `rng`; none of several exceeds the limits."""
    order = list(range(len(durations)))
    if rng is not None:
        rng.shuffle(order)
    batches: list[list[int]] = []
    longest = 0.0
    for place in order:
        longest = max(longest, durations[place])
        count = len(batches[-1]) + 1 if batches else 1
        if count == 1 or count * longest > limits.batch_seconds or (limits.batch_size is not None and count > limits.batch_size):
            batches.append([place])
            longest = durations[place]
        else:
            batches[-1].append(place)
    return batches


def equalize_count(batches: list[list[int]], durations: Sequence[float], count: int) -> list[list[int]]:
    """Make as many batches as another epoch has, so that every epoch has as many steps, in a resumed run too.

    The last batches of a bucket are small: the two shortest are joined while there is one too many, the one of most utterances is halved
    while one is missing.
    """
    batches = list(batches)
    seconds = [sum(durations[place] for place in batch) for batch in batches] if len(batches) > count else []
    while len(batches) > count:
        shortest = heapq.nsmallest(2, range(len(batches)), key=seconds.__getitem__)
        first, second = min(shortest), max(shortest)
        batches[first] = batches[first] + batches.pop(second)
        seconds.pop(second)
        seconds[first] = sum(durations[place] for place in batches[first])
    while len(batches) < count:
        largest = max(range(len(batches)), key=lambda index: len(batches[index]))
        half = len(batches[largest]) // 2
        batches[largest : largest + 1] = [batches[largest][:half], batches[largest][half:]]
    return batches
