"""Every utterance once an epoch, batches within their bounds, and the same numbers whoever computes them."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, prepared

from speechtrain.data.batches import Batch
from speechtrain.data.batching import epoch_batches
from speechtrain.data.loader import Loader
from speechtrain.data.task_data import TaskData


def make(*overrides: str) -> TaskData:
    return prepared([*TINY, *overrides])


def loader(data: TaskData, **options: Any) -> Loader:
    found = data.loader("train", **options)
    assert found is not None
    return found


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        one.ids == two.ids and np.array_equal(one.features, two.features) and np.array_equal(one.targets, two.targets)
        for one, two in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("buckets", [1, 4, 100])
@pytest.mark.parametrize("seconds", [0.1, 4, 1000])
def test_every_utterance_comes_exactly_once_an_epoch(buckets: int, seconds: float) -> None:
    batches = loader(make(f"data.num_buckets={buckets}", f"data.batch_seconds={seconds}"), shuffle=True)
    for epoch in range(3):
        batches.set_epoch(epoch)
        ids = [utterance for batch in batches for utterance in batch.ids]
        assert sorted(ids) == sorted(f"train-{index:05d}" for index in range(40))
        assert len(list(batches)) == len(batches)


def test_every_epoch_has_as_many_batches_as_the_first_also_in_a_resumed_run() -> None:
    data = make("data.train_size=60", "data.batch_seconds=3", "data.num_buckets=8")
    batches = loader(data, shuffle=True)
    durations = [cut.duration for cut in data.corpus.splits["train"]]
    divided = [len(epoch_batches(durations, data.limits, shuffle=True, seed=data.seed, epoch=epoch)) for epoch in range(12)]
    assert min(divided) < divided[0] < max(divided), "the numbers themselves are to differ here"
    for epoch in range(12):
        batches.set_epoch(epoch)
        resumed = loader(data, shuffle=True)
        resumed.set_epoch(epoch)
        assert batches.batch_ids() == resumed.batch_ids()
        assert len(batches) == divided[0]
        assert sorted(each for ids in batches.batch_ids() for each in ids) == sorted(f"train-{index:05d}" for index in range(60))
        assert all(batches.batch_ids())


def test_a_batch_stays_within_its_seconds_and_size() -> None:
    data = make("data.batch_seconds=5", "data.batch_size=6")
    for batch in loader(data, shuffle=True):
        frames = batch.features.shape[0] * batch.features.shape[1]
        assert frames / data.features.frame_rate <= 5 + len(batch.ids) / data.features.frame_rate
        assert len(batch.ids) <= 6


def test_a_batch_says_its_lengths_and_is_zero_behind_them() -> None:
    batch = next(iter(loader(make("data.num_buckets=1"))))
    assert batch.features.dtype == np.float32
    for row in range(len(batch.ids)):
        assert not batch.features[row, batch.feature_lengths[row] :].any()
        assert batch.features[row, : batch.feature_lengths[row]].any(axis=1).all()
        assert not batch.targets[row, batch.target_lengths[row] :].any()
        assert (batch.targets[row, : batch.target_lengths[row]] > 0).all()
        assert batch.target_lengths[row] == len(batch.texts[row])


def test_the_number_of_worker_processes_changes_nothing() -> None:
    found = []
    for workers in (0, 2):
        batches = loader(make(f"data.num_workers={workers}", "data.batch_seconds=10"), shuffle=True, augment=True)
        batches.set_epoch(3)
        found.append(list(batches))
    assert same(*found)


def test_memory_for_the_cache_changes_nothing() -> None:
    assert same(list(loader(make("data.cache_gb=0"), augment=True)), list(loader(make("data.cache_gb=1"), augment=True)))


def test_epochs_differ_and_an_epoch_repeats_itself() -> None:
    batches = loader(make("data.batch_seconds=10"), shuffle=True, augment=True)
    batches.set_epoch(0)
    first = list(batches)
    batches.set_epoch(1)
    second = list(batches)
    batches.set_epoch(0)
    assert same(first, list(batches))
    assert not same(first, second)


def test_augmentation_of_an_utterance_does_not_depend_on_its_batch() -> None:
    def by_id(*overrides: str) -> dict[str, Any]:
        batches = list(loader(make(*overrides), shuffle=True, augment=True))
        return {batch.ids[row]: batch.features[row, : batch.feature_lengths[row]] for batch in batches for row in range(len(batch.ids))}

    small, large = by_id("data.batch_size=3"), by_id("data.batch_seconds=1000", "data.num_buckets=1")
    assert all(np.array_equal(small[utterance], large[utterance]) for utterance in large)


def test_evaluation_is_not_augmented() -> None:
    data = make("augment=specaugment")
    assert same(list(loader(data)), list(loader(make("augment=none"), augment=True)))


def test_views_of_an_utterance_share_their_length_and_differ_otherwise() -> None:
    for batch in loader(make("augment=light"), shuffle=True, augment=True, views=2):
        half = len(batch.ids) // 2
        assert batch.ids[:half] == batch.ids[half:]
        assert np.array_equal(batch.feature_lengths[:half], batch.feature_lengths[half:])
        assert np.array_equal(batch.targets[:half], batch.targets[half:])
        assert not np.array_equal(batch.features[:half], batch.features[half:])


def test_utterances_of_an_epoch_are_augmented_each_in_its_own_way() -> None:
    def lengths(**options: Any) -> dict[str, int]:
        batches = loader(make("augment=light"), **options)
        return {utterance: int(frames) for batch in batches for utterance, frames in zip(batch.ids, batch.feature_lengths, strict=True)}

    plain, augmented = lengths(), lengths(augment=True)
    tempos = {round(augmented[utterance] / frames, 1) for utterance, frames in plain.items()}
    assert len(tempos) > 2


def test_what_goes_wrong_in_a_batch_is_raised_where_it_would_come_and_no_thread_is_left() -> None:
    def threads() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name.startswith("batches")}

    earlier = threads()  # of other tests in this process
    batches = loader(make("data.batch_size=4", "augment=none"))
    third = batches.batch_ids()[2]
    cut = batches._builder._cuts[third[0]]
    cut.text = None  # type: ignore[assignment]
    coming = iter(batches)
    seen = [next(coming).ids, next(coming).ids]
    with pytest.raises(AttributeError):
        next(coming)
    assert [list(ids) for ids in seen] == batches.batch_ids()[:2]
    cut.text = "a"
    several = iter(batches)
    next(several)
    assert threads() - earlier
    several.close()  # type: ignore[attr-defined]
    assert not threads() - earlier


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_batches_are_made_beside_a_model_of_any_precision(dtype: torch.dtype) -> None:
    options = [
        "augment=specaugment",
        "augment.delay=0.2",
        "augment.noise_prob=1",
        "augment.gain_db=6",
        "augment.lowpass_prob=1",
        "augment.codec_prob=1",
    ]
    plain = list(loader(make(*options), shuffle=True, augment=True))
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        beside = list(loader(make(*options), shuffle=True, augment=True))
    finally:
        torch.set_default_dtype(before)
    assert same(plain, beside)
