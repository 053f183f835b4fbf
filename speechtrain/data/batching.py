"""Which utterances make up each batch of an epoch.

Lhotse's bucketing sampler serves corpora that its buffer holds. From larger ones it draws within the buffer only, so that lists that stand
speaker by speaker are trained on speaker by speaker, and it takes 17 s for 280,000 utterances; those are divided here, all at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from lhotse import CutSet
from lhotse.dataset.sampling import DynamicBucketingSampler, SimpleCutSampler

BUFFER = 10_000
"""Utterances that Lhotse's sampler chooses from."""


@dataclass(frozen=True)
class Limits:
    """How large a batch may be; see `conf/schema/loading.yaml`."""

    batch_seconds: float
    batch_size: int | None
    num_buckets: int
    num_workers: int


def sampled(ids: Sequence[str], durations: Sequence[float], limits: Limits, *, shuffle: bool, seed: int, epoch: int) -> list[list[str]]:
    """The batches of an epoch by Lhotse's samplers.

    Args:
        ids: of the utterances.
        durations: s.
        limits: of a batch.
        shuffle: another order for each (seed, epoch).
        seed: of the order.
        epoch: from 0.
    """
    cuts = CutSet([_Sized(name, duration) for name, duration in zip(ids, durations, strict=True)])
    buckets = min(limits.num_buckets, len(ids))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lhotse's advice on lazy manifests, and its mean of no bucket's bounds
        options = {
            "max_duration": limits.batch_seconds,
            "max_cuts": limits.batch_size,
            "shuffle": shuffle,
            "seed": seed,
            "world_size": 1,
            "rank": 0,
        }
        sampler = DynamicBucketingSampler(cuts, num_buckets=buckets, **options) if buckets > 1 else SimpleCutSampler(cuts, **options)
        sampler.set_epoch(epoch)
        return [[cut.id for cut in batch] for batch in sampler]


def divided(durations: npt.NDArray[np.float64], limits: Limits, *, shuffle: bool, seed: int, epoch: int) -> list[npt.NDArray[np.int64]]:
    """The batches of an epoch as indices, in buckets of equal total duration, each shuffled whole.

    What a bucket leaves over begins the first batch of the next, whose utterances are longer.

    Args:
        durations: s of each utterance (N,).
        limits: of a batch.
        shuffle: another order for each (seed, epoch); otherwise utterances of a bucket keep theirs.
        seed: of the order.
        epoch: from 0.
    """
    rng = np.random.default_rng([seed, epoch])
    order = np.argsort(durations, kind="stable")
    before = np.cumsum(durations[order])
    edges = np.searchsorted(before, before[-1] * np.arange(1, limits.num_buckets) / limits.num_buckets)
    buckets = [rng.permutation(part) if shuffle else np.sort(part) for part in np.split(order, edges)]
    row = np.concatenate(buckets)
    starts = [0]
    longest, most = 0.0, limits.batch_size or len(row)
    for place, duration in enumerate(durations[row].tolist()):
        longest = max(longest, duration)
        count = place - starts[-1] + 1
        if count > 1 and (count > most or count * longest > limits.batch_seconds):
            starts.append(place)
            longest = duration
    batches = np.split(row, starts[1:])
    return [batches[index] for index in rng.permutation(len(batches))] if shuffle else batches


@dataclass(slots=True)
class _Sized:
    """As much of a cut as Lhotse's samplers look at."""

    id: str
    duration: float
    dataloading_info: object = None
