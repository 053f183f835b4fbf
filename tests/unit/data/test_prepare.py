"""Corpora too large to be read before training: their lists are trusted, and bad files are found on the way."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import corpora
import numpy as np
import pytest
import soundfile
from conftest import TINY, prepared
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

from speechtrain import compose
from speechtrain.data import audio
from speechtrain.data.batches import Batch
from speechtrain.data.loader import Loader
from speechtrain.data.task_data import TaskData
from speechtrain.errors import ConfigError, DataError

Write = Callable[..., Path]
QUIET = ["tracking=[]", "report.enabled=false", "features=logmel_8k", "backend.threads=1"]
UNREAD = "data.check_hours=0"
TRUSTED = ["data.trust_durations=true", "data.sample_rate=8000"]


def stereo(root: Path) -> Path:
    """A manifest of a file of one channel, one with noise on the right only, and one whose channels cancel each other."""
    side = 0.1 * np.random.default_rng(0).standard_normal(8000).astype(np.float32)
    silent = np.zeros_like(side)
    files = {"mono": side, "right": np.stack([silent, side], axis=1), "opposite": np.stack([side, -side], axis=1)}
    for name, samples in files.items():
        soundfile.write(root / f"{name}.wav", samples, 8000, subtype="FLOAT")
    lines = [json.dumps({"audio_filepath": f"{name}.wav", "text": f"a {name}"}) for name in files]
    (root / "train.jsonl").write_text("\n".join(lines))
    return root


def test_several_channels_and_digital_silence_with_a_text_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = ["data=manifest", f"data.root={stereo(tmp_path)}", f"data.feature_cache={tmp_path / 'cache'}", *QUIET]
    for _ in ("computed", "from the store"):
        caplog.clear()
        data = prepared(given)
        assert "of 2 of 3 recordings, which have several channels, the mean is heard: right, opposite" in caplog.text
        assert "1 utterances have a text, and all their samples are zero: opposite ('a opposite')" in caplog.text
    cuts = {cut.id: cut for cut in data.corpus.splits["train"]}
    side = data.corpus.read(cuts["mono"], 8000)
    np.testing.assert_array_equal(data.corpus.read(cuts["right"], 8000), side / 2)

    caplog.clear()
    data = prepared([*given, "data.channel=1"])
    cuts = {cut.id: cut for cut in data.corpus.splits["train"]}
    assert caplog.text == ""
    for name, wanted in {"mono": side, "right": side, "opposite": -side}.items():
        np.testing.assert_array_equal(data.corpus.read(cuts[name], 8000), wanted)
    prepared([*given, "data.channel=0"])
    assert "all their samples are zero: right ('a right')" in caplog.text


def loader(data: TaskData, split: str = "train", **options: Any) -> Loader:
    found = data.loader(split, **options)
    assert found is not None
    return found


def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are decoded from now on."""
    seen: list[str] = []
    original = audio.read_recording

    def noted(path: str, *arguments: Any, **options: Any) -> Any:
        seen.append(Path(path).stem)
        return original(path, *arguments, **options)

    monkeypatch.setattr("speechtrain.data.corpus.read_recording", noted)
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
        ({"duration": float("nan")}, "'duration' must be a number of seconds, received nan"),
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
    with pytest.raises(ConfigError, match=r"data\.trust_durations: is true, so no file is opened to read its sample rate"):
        compose(given)


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


@pytest.mark.cold
def test_lhotse_is_imported_only_for_the_corpora_that_it_reads(tmp_path: Path) -> None:
    code = (
        "import sys; from conftest import TINY, prepared; data = prepared([*TINY, 'data.train_size=4']); next(iter(data.loader('train')))\n"
        "assert 'lhotse' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_an_id_that_two_utterances_have_is_refused_whatever_lists_them(corpus: Write, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'train-0' occurs twice \(train and train\)"):
        prepared(["data=manifest", f"data.root={corpus(['a', 'b'], at_1={'utt_id': 'train-0'})}", *QUIET])
    for ending in ("wav", "flac"):
        corpora.tone(tmp_path / "folder" / "yes" / f"one.{ending}")
    with pytest.raises(DataError, match="'yes/one' occurs twice"):
        prepared(["data=folder", f"data.root={tmp_path / 'folder'}", "data.split.val=0", "data.split.test=0", *QUIET])
    signals = ["data=signals", "data.duration=1", "data.train_size=2", "data.val_size=2", "data.test_size=2", "tracking=[]"]
    for part in ("a", "b"):
        prepared([*signals, f"data.save_to={tmp_path / part}"])
    files = [f"data.root={tmp_path}", "data.train=a/train.h5", "data.val=b/train.h5", "data.split.test=0", "data.sample_rate=200"]
    with pytest.raises(DataError, match=r"'train-000000' occurs twice \(train and val\)"):
        prepared(["data=hdf5_signals", *files, "tracking=[]"])


def test_recordings_in_which_nothing_is_said_are_kept_where_the_config_says(corpus: Write, caplog: pytest.LogCaptureFixture) -> None:
    root = corpus(["a", "", "b"])
    corpus(["a", "", ""], name="val.jsonl")
    given = ["data=manifest", f"data.root={root}", "data.val=val.jsonl", "data.on_shared.audio=allow", *QUIET]

    def kept(*more: str) -> tuple[list[str], list[str], int]:
        data = prepared([*given, *more])
        return *([cut.text for cut in data.corpus.splits[split]] for split in ("train", "val")), data.skipped

    assert kept() == (["a", "b"], ["a"], 3)
    assert "train.jsonl:2: 'text' is empty; data.empty_texts=evaluate keeps it in val and test" in caplog.text
    assert kept("data.empty_texts=evaluate") == (["a", "b"], ["a", "", ""], 1)
    data = prepared([*given, "data.empty_texts=train", "data.batch_size=1"])
    assert sorted(cut.text for cut in data.corpus.splits["train"]) == ["", "a", "b"]
    assert data.skipped == 0
    assert sorted(int(batch.target_lengths[0]) for batch in loader(data)) == [0, 1, 1]
    with pytest.raises(ConfigError, match=r"data\.empty_texts: is evaluate, and a model of the task Classification learns nothing"):
        prepared([*given, "data.empty_texts=evaluate", "task=classification"])
