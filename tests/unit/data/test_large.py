"""Corpora too large to be read before training: lists are believed, bad files are found on the way, batches are divided at once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import corpora
import numpy as np
import pytest
from conftest import TINY, prepared
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

from speechtrain import compose
from speechtrain.data import batches as batching
from speechtrain.data.batches import Batch
from speechtrain.data.batching import Limits, divided
from speechtrain.data.loader import Loader
from speechtrain.data.prepare import Data
from speechtrain.errors import ConfigError, DataError

Write = Callable[..., Path]
QUIET = ["tracking=[]", "report.enabled=false", "features=logmel_8k", "backend.threads=1"]
UNREAD = "data.check_hours=0"
TRUSTED = ["data.trust_durations=true", "data.sample_rate=8000"]


def loader(data: Data, split: str = "train", **options: Any) -> Loader:
    found = data.loader(split, **options)
    assert found is not None
    return found


def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which cuts are decoded from now on."""
    seen: list[str] = []
    original = MonoCut.load_audio

    def noted(self: MonoCut, *arguments: Any, **options: Any) -> Any:
        seen.append(str(self.id))
        return original(self, *arguments, **options)

    monkeypatch.setattr(MonoCut, "load_audio", noted)
    return seen


def test_of_more_hours_than_are_checked_nothing_is_read_before_training_and_the_batches_are_the_same(
    corpus: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["data=manifest", f"data.root={corpus(['a', 'b c', 'd'])}", "data.feature_cache=null", *QUIET]
    checked = list(loader(prepared(given)))
    seen = decoded(monkeypatch)
    data = prepared([*given, UNREAD])
    assert seen == []
    unread = list(loader(data))
    assert sorted(set(seen)) == ["train-0", "train-1", "train-2"]
    for one, other in zip(checked, unread, strict=True):
        assert one.ids == other.ids
        np.testing.assert_array_equal(one.features, other.features)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_found_to_be_bad_while_training_is_left_out_of_every_view_and_named_once(
    corpus: Write, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    root = corpus(["a", "b", "c", "d"])
    damaged = root / "audio/train-2.wav"
    damaged.write_bytes(damaged.read_bytes()[:60])
    given = [
        "data=manifest",
        f"data.root={root}",
        "data.trust_durations=true",
        "data.sample_rate=8000",
        f"data.num_workers={workers}",
        *QUIET,
    ]
    batches = loader(prepared([*given, UNREAD, "data.num_buckets=1"]), shuffle=True, augment=True, views=2)
    with caplog.at_level(logging.WARNING):
        for epoch in range(2):
            batches.set_epoch(epoch)
            (batch,) = batches
            assert sorted(batch.ids) == ["train-0", "train-0", "train-1", "train-1", "train-3", "train-3"]
            assert batch.ids[:3] == batch.ids[3:]
            assert len(batch.features) == len(batch.targets) == 6
    assert list(batches.left_out) == ["train-2"]
    (record,) = [record for record in caplog.records if "train-2" in record.getMessage()]
    assert f"{damaged}: ends at 0.001 s, before 1.000 s" in record.getMessage()


def test_a_batch_of_which_nothing_can_be_read_holds_another_utterance_in_training_and_is_left_out_in_evaluation(corpus: Write) -> None:
    root = corpus(["a", "b", "c"])
    given = [
        "data=manifest",
        f"data.root={root}",
        "data.trust_durations=true",
        "data.sample_rate=8000",
        "data.batch_size=1",
        UNREAD,
        *QUIET,
    ]
    data = prepared(given)
    (root / "audio/train-1.wav").unlink()
    training = loader(data, shuffle=True)
    ids = [batch.ids for batch in training]
    assert len(ids) == len(training) == 3
    assert sorted(ids) == [("train-0",), ("train-0",), ("train-2",)]
    assert [batch.ids for batch in loader(data)] == [("train-0",), ("train-2",)], "evaluation counts nothing twice"
    strict = prepared([*given, "data.on_bad=error"])
    with pytest.raises(DataError, match=r"no such file: .*train-1\.wav"):
        list(loader(strict))
    for path in (root / "audio").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="no utterance can be read; the first: train-0: no such file"):
        list(loader(prepared(given)))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"duration": None}, "'duration' must be above 0 s, received None; data.trust_durations=true goes by it"),
        ({"duration": 0}, "'duration' must be above 0 s, received 0"),
        ({"duration": float("nan")}, "'duration' must be above 0 s, received nan"),
    ],
)
def test_a_manifest_that_is_trusted_must_say_how_long_each_utterance_is(
    corpus: Write, change: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    root = corpus(["a", "b"], at_1=change)
    for path in (root / "audio").iterdir():
        path.unlink()  # no file is opened
    given = ["data=manifest", f"data.root={root}", "data.trust_durations=true", UNREAD, *QUIET]
    data = prepared([*given, "data.sample_rate=8000"])
    assert [(cut.id, cut.duration, cut.num_samples) for cut in data.corpus.splits["train"]] == [("train-0", 1.0, 8000)]
    assert f"train.jsonl:2: {reason}" in caplog.text
    with pytest.raises(ConfigError, match=r"data\.trust_durations: is true, so no file is opened that could tell its rate"):
        compose(given)


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_large_corpus_is_divided_into_batches_within_the_limits_each_utterance_once(shuffle: bool) -> None:
    durations = np.random.default_rng(0).gamma(4.0, 3.0, size=5000)
    limits = Limits(batch_seconds=60.0, batch_size=9, num_buckets=8, num_workers=0)
    counts = set()
    for epoch in range(4):
        batches = divided(durations, limits, shuffle=shuffle, seed=1, epoch=epoch)
        counts.add(len(batches))
        assert sorted(index for batch in batches for index in batch.tolist()) == list(range(5000))
        assert all(len(batch) == 1 or (len(batch) <= 9 and len(batch) * durations[batch].max() <= 60) for batch in batches)
        assert any(len(batch) == 9 for batch in batches)
        padded = sum(len(batch) * durations[batch].max() for batch in batches)
        assert padded / 60 / len(batches) > 0.8, "batches are filled as far as they may be"
        assert 1 - durations.sum() / padded < 0.12
    assert max(counts) - min(counts) <= 20


def test_the_order_of_a_large_corpus_follows_from_seed_and_epoch_and_mixes_the_whole_list() -> None:
    durations = np.full(30_000, 2.0) + np.random.default_rng(0).uniform(0, 0.01, size=30_000)
    limits = Limits(batch_seconds=60.0, batch_size=None, num_buckets=4, num_workers=0)

    def flat(seed: int, epoch: int) -> list[list[int]]:
        return [batch.tolist() for batch in divided(durations, limits, shuffle=True, seed=seed, epoch=epoch)]

    assert flat(1, 0) == flat(1, 0)
    assert flat(1, 0) != flat(1, 1)
    assert flat(1, 0) != flat(2, 0)
    spread = [max(batch) - min(batch) for batch in flat(1, 0) if len(batch) > 10]
    assert np.median(spread) > 20_000, "a batch is drawn from all of the list, not from a part of it"
    first = [index for batch in flat(1, 0)[:50] for index in batch]
    assert max(first) - min(first) > 25_000
    quarter = np.quantile(durations, 0.25)
    assert 0 < sum(durations[index] < quarter for index in first) < len(first) / 2, "and short and long ones take turns"
    unshuffled = divided(durations[:100], Limits(1e9, None, 1, 0), shuffle=False, seed=0, epoch=0)
    assert [batch.tolist() for batch in unshuffled] == [list(range(100))]


def test_a_loader_divides_what_lhotses_buffer_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    data = prepared([*TINY, "data.batch_seconds=5"])
    small = loader(data, shuffle=True)._plan()
    monkeypatch.setattr(batching, "BUFFER", 39)
    large = loader(data, shuffle=True)
    ids = [cut.id for cut in data.corpus.splits["train"]]
    durations = np.array([cut.duration for cut in data.corpus.splits["train"]])
    expected = divided(durations, data.limits, shuffle=True, seed=data.seed, epoch=0)
    assert large._plan() == [[ids[index] for index in batch] for batch in expected] != small
    for epoch in range(5):
        large.set_epoch(epoch)
        assert len(large._plan()) == len(expected)


def test_an_epoch_goes_on_behind_the_batches_that_are_done() -> None:
    batches = loader(prepared([*TINY, "data.batch_seconds=5"]), shuffle=True, augment=True)
    batches.set_epoch(2)
    whole = list(batches)
    batches.set_epoch(2, done=3)
    rest: list[Batch] = list(batches)
    assert [batch.ids for batch in rest] == [batch.ids for batch in whole[3:]]
    assert all(np.array_equal(one.features, other.features) for one, other in zip(rest, whole[3:], strict=True))
    assert len(batches) == len(whole)


def test_plain_lines_of_lhotse_and_all_others_are_heard_alike(tmp_path: Path) -> None:
    import soundfile

    path = corpora.write(tmp_path / "a.flac", "HELLO BERTIE")
    samples, rate = soundfile.read(path, dtype="float32")
    stereo = tmp_path / "two.wav"
    soundfile.write(stereo, np.stack([0 * samples, samples], axis=1), rate, subtype="FLOAT")
    mono, both = Recording.from_file(path, recording_id="mono"), Recording.from_file(stereo, recording_id="both")
    third = round(mono.duration / 3, 4)

    def cut(name: str, recording: Recording, channel: int, start: float, length: float) -> MonoCut:
        said = SupervisionSegment(name, recording.id, 0.0, length, channel=channel, text="HELLO", speaker="s")
        return MonoCut(name, start, length, channel, recording=recording, supervisions=[said])

    assert len(cut("left", both, 0, 0.0, third).recording.sources[0].channels) == 2
    made = [
        cut("left", both, 0, third, third),
        cut("whole", mono, 0, 0.0, mono.duration),
        cut("part", mono, 0, third, third),
        cut("right", both, 1, third, third),
        cut("slower", mono, 0, 0.0, mono.duration).perturb_speed(0.9),
    ]
    CutSet.from_cuts(made).to_file(tmp_path / "cuts.jsonl")
    data = prepared(["data=lhotse", f"data.root={tmp_path}", "data.train=cuts.jsonl", "data.feature_cache=null", *QUIET])
    found = {cut.id: cut for cut in data.corpus.splits["train"]}
    assert [name for name, cut in found.items() if cut.recording is None] == ["whole", "part"]
    for original in made:
        heard = data.corpus.read(found[original.id], rate)
        np.testing.assert_allclose(heard, original.load_audio()[0], atol=1e-4)
        assert found[original.id].num_samples == original.num_samples
