"""Signals that are made, and signals of HDF5 files: whole rows, read when they are needed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import prepared

from speechtrain import compose
from speechtrain.data.corpora.signals import Hdf5Signals, Signals
from speechtrain.data.corpus import Cut
from speechtrain.errors import ConfigError, DataError

QUIET = ["tracking=[]", "report.enabled=false"]
SMALL = ["data.train_size=6", "data.val_size=2", "data.test_size=3", "data.duration=1", "data.sample_rate=50"]


def maker(**changes: object) -> Signals:
    settings = {"frequencies": [1, 3, 5], "amplitudes": [0.5, 1.5], "snr_db": [5, 15], "duration": 2.0, "sample_rate": 100, "seed": 1}
    return Signals(**{**settings, "train_size": 4, "val_size": 2, "test_size": 2, **changes})  # type: ignore[arg-type]


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., Path]:
    """Write HDF5 files with consistent arrays; keyword arguments replace or (None) leave out arrays of train.h5."""

    def write(rows: int = 6, samples: int = 40, **changes: np.ndarray | None) -> Path:
        for name in ("train", "val", "test"):
            rng = np.random.default_rng(len(name))
            arrays = {
                "mixed_signals": rng.normal(size=(rows, samples)),
                "target_signals": rng.normal(size=(rows, samples)),
                "condition_vectors": np.eye(4)[rng.integers(4, size=rows)],
            }
            if name == "train":
                arrays |= changes  # type: ignore[arg-type]
            with h5py.File(tmp_path / f"{name}.h5", "w") as file:
                for key, value in arrays.items():
                    if value is not None:
                        file[key] = value
        return tmp_path

    return write


def test_the_wanted_sine_is_the_one_that_the_condition_points_at() -> None:
    source = maker()
    seen = set()
    for index in range(20):
        mixture, wanted, condition = source.make("train", index)
        chosen = int(condition.argmax())
        seen.add(chosen)
        spectrum = np.abs(np.fft.rfft(wanted))
        assert np.fft.rfftfreq(len(wanted), 1 / 100)[spectrum.argmax()] == [1, 3, 5][chosen]
        assert condition.sum() == 1
        assert 0.5 <= np.abs(wanted).max() <= 1.5
        others = [maker().make("train", index)[0] - mixture]
        assert np.abs(others[0]).max() == 0  # the same whoever makes it
    assert seen == {0, 1, 2}
    assert not np.array_equal(source.make("train", 0)[0], source.make("test", 0)[0])
    assert not np.array_equal(source.make("train", 0)[0], maker(seed=2).make("train", 0)[0])


def test_the_noise_has_the_ratio_that_is_asked_for() -> None:
    loud, quiet = (maker(snr_db=[level, level], duration=50.0) for level in (0, 200))
    clean, noisy = quiet.make("train", 0)[0], loud.make("train", 0)[0]
    assert 10 * np.log10(np.mean(clean**2) / np.mean((noisy - clean) ** 2)) == pytest.approx(0, abs=0.3)


def test_batches_hold_the_mixture_the_condition_and_the_wanted_signal() -> None:
    data = prepared(["data=signals", *SMALL, *QUIET])
    batch = next(iter(data.loader("val")))
    mixture, wanted, condition = maker(frequencies=[1, 3, 5, 7], duration=1.0, sample_rate=50).make("val", int(batch.ids[0][-1]))
    assert batch.features.shape == (2, 50, 5)
    np.testing.assert_array_equal(batch.features[0, :, 0], mixture)
    np.testing.assert_array_equal(batch.features[0, 7, 1:], condition)
    np.testing.assert_array_equal(batch.targets[0, :, 0], wanted)
    assert batch.targets.dtype == np.float32
    assert batch.target_lengths.tolist() == [50, 50]
    assert data.corpus.target_size == 1


def test_what_is_written_as_hdf5_is_read_back_the_same(tmp_path: Path) -> None:
    made = prepared(["data=signals", *SMALL, *QUIET, f"data.save_to={tmp_path / 'h5'}"])
    read = prepared(
        ["data=hdf5_signals", f"data.root={tmp_path / 'h5'}", "data.val=val.h5", "data.test=test.h5", "data.sample_rate=50", *QUIET]
    )
    one, two = (next(iter(data.loader("train"))) for data in (made, read))
    order = [two.ids.index(name) for name in one.ids]
    np.testing.assert_array_equal(one.features, two.features[order])
    np.testing.assert_array_equal(one.targets, two.targets[order])
    assert read.features.sample_rate == 50
    assert [len(read.corpus.splits[name]) for name in ("train", "val", "test")] == [6, 2, 3]
    before = (tmp_path / "h5" / "train.h5").stat().st_mtime_ns
    prepared(["data=signals", *SMALL, *QUIET, f"data.save_to={tmp_path / 'h5'}"])
    assert (tmp_path / "h5" / "train.h5").stat().st_mtime_ns == before
    with pytest.raises(DataError, match=r"train.h5: exists, and was made with other settings"):
        prepared(["data=signals", *SMALL, *QUIET, f"data.save_to={tmp_path / 'h5'}", "data.seed=2"])
    assert sorted(path.name for path in (tmp_path / "h5").iterdir()) == ["test.h5", "train.h5", "val.h5"]


def test_the_fingerprint_is_also_of_what_is_wanted(files: Callable[..., Path]) -> None:
    root = files()
    given = ["data=hdf5_signals", f"data.root={root}", "data.test=test.h5", "data.sample_rate=10", "data.split.val=0", *QUIET]
    shutil.copy(root / "train.h5", root / "other.h5")
    with h5py.File(root / "other.h5", "a") as file:
        file["target_signals"][3, 5] += 1
    one, other, same = (prepared([*given, f"data.train={name}"]) for name in ("train.h5", "other.h5", "train.h5"))
    for data in (one, other, same):
        data.corpus.splits["train"] = [replace(cut, id=cut.id.rpartition("-")[2]) for cut in data.corpus.splits["train"]]
        data.cache.checksums = {name.rpartition("-")[2]: check for name, check in data.cache.checksums.items() if "test" not in name}
    assert one.fingerprint("train") == same.fingerprint("train") != other.fingerprint("train")


@pytest.mark.parametrize(("gigabytes", "times"), [(0, 6), (1, 0)])
def test_what_has_no_room_is_read_again_each_time(
    files: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, gigabytes: int, times: int
) -> None:
    given = ["data=hdf5_signals", f"data.root={files()}", "data.val=val.h5", "data.test=test.h5", "data.sample_rate=10", *QUIET]
    loader = prepared([*given, f"data.cache_gb={gigabytes}"]).loader("train")
    list(loader)
    read: list[str] = []
    original = Hdf5Signals._row

    def spy(self: Hdf5Signals, cut: Cut, name: str) -> np.ndarray:
        read.append(name)
        return original(self, cut, name)

    monkeypatch.setattr(Hdf5Signals, "_row", spy)
    list(loader)
    assert read.count("mixed_signals") == read.count("target_signals") == times


def test_only_the_rows_that_are_asked_for_are_read(files: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    root = files(rows=50)
    read = []
    original = h5py.Dataset.__getitem__

    def spy(self: h5py.Dataset, key: object, *rest: object) -> object:
        read.append((self.name, key))
        return original(self, key, *rest)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", spy)
    corpus = Hdf5Signals(str(root), "train.h5", "val.h5", "test.h5", {"by": "utterance", "val": 0, "test": 0, "seed": 0}, 10).load(None)
    assert read == []
    cut = list(corpus.splits["train"])[7]
    corpus.read(cut, 10)
    assert corpus.target is not None
    corpus.target(cut)
    assert read == [("/mixed_signals", 7), ("/condition_vectors", 7), ("/target_signals", 7)]


def test_rows_with_what_is_no_number_are_left_out_and_named(files: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    spoilt = np.ones((6, 40))
    spoilt[2, 5] = np.nan
    other = np.ones((6, 40))
    other[4, 0] = np.inf
    root = files(mixed_signals=spoilt, target_signals=other)
    given = ["data=hdf5_signals", f"data.root={root}", "data.val=val.h5", "data.test=test.h5", "data.sample_rate=10", *QUIET]
    data = prepared(given)
    assert data.skipped == 2
    assert len(data.corpus.splits["train"]) == 4
    with pytest.raises(DataError) as caught:
        prepared([*given, "data.on_bad=error"])
    assert "row 2 of mixed_signals holds 1 values that are NaN" in str(caught.value)
    assert "row 4 of target_signals holds 1 values" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target_signals": None}, r"train.h5: has no array target_signals; there is: condition_vectors, mixed_signals"),
        ({"target_signals": np.ones((6, 39))}, r"shapes do not fit together: mixed_signals \(6, 40\), target_signals \(6, 39\)"),
        ({"condition_vectors": np.ones((5, 4))}, r"shapes do not fit together"),
        ({"condition_vectors": np.ones((6, 3))}, r"val.h5: has condition vectors of 4 values, the file before of 3"),
        ({"mixed_signals": np.array([[b"a"] * 40] * 6)}, r"holds arrays that are not numbers"),
    ],
)
def test_files_that_do_not_fit_are_refused(files: Callable[..., Path], changes: dict[str, np.ndarray | None], said: str) -> None:
    root = files(**changes)
    with pytest.raises(DataError, match=said):
        prepared(["data=hdf5_signals", f"data.root={root}", "data.val=val.h5", "data.test=test.h5", "data.sample_rate=10", *QUIET])


def test_a_file_that_is_no_hdf5_or_of_another_rate_is_refused(files: Callable[..., Path]) -> None:
    root = files()
    with h5py.File(root / "train.h5", "a") as file:
        file.attrs["sample_rate"] = 250
    with pytest.raises(DataError, match=r"train.h5: is at 250 Hz, but data.sample_rate is 10[\s\S]*set data.sample_rate=250"):
        prepared(["data=hdf5_signals", f"data.root={root}", "data.sample_rate=10", *QUIET])
    (root / "train.h5").write_text("no HDF5")
    with pytest.raises(DataError, match=r"train.h5: cannot be read as HDF5"):
        prepared(["data=hdf5_signals", f"data.root={root}", "data.sample_rate=10", *QUIET])


def test_a_single_file_is_divided(files: Callable[..., Path]) -> None:
    root = files(rows=40)
    data = prepared(["data=hdf5_signals", f"data.root={root}", "data.sample_rate=10", "data.split.val=25", *QUIET])
    assert [len(data.corpus.splits[name]) for name in ("train", "val", "test")] == [26, 10, 4]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data=signals", "data.frequencies=[1,120]"], "data.frequencies: holds 120 Hz, not below half of sample_rate (100 Hz)"),
        (["data=signals", "data.snr_db=[5]"], "data.snr_db: must be [lowest, highest], received [5.0]"),
        (["data=signals", "augment=light"], "augment.tempo: would change the samples but not the signal that is wanted"),
        (["data=signals", "augment=none", "augment.speed=0.1"], "augment.speed: needs audio"),
        (["data=signals", "task=ctc"], "task: does not go with data=signals"),
        (["data=signals", "features=logmel"], "features: does not go with data=signals"),
        (["data=hdf5_signals", "data.root=."], "data.train: no such file"),
        (["data=hdf5_signals", "data.root=/no/such"], "data.root: no such folder: /no/such"),
        (["task=classification", "tokenizer=char"], "tokenizer: does not go with task=classification"),
        (["task=classification", "task.class_weights=balancd"], "task.class_weights: must be balanced, null or a weight for each class"),
        (["task=classification", "task.class_weights={a: -1}"], "task.class_weights: must be numbers of at least 0, received -1 for a"),
        (["task=classification", "tokenizer.classes=[a,b,a]"], "tokenizer.classes: names a twice"),
        (["task=regression"], "data: does not go with task=regression"),
        (["experiment=signal_extraction", "model=conformer", "model.n_heads=5"], "model.d_model: is 96, not divisible by n_heads=5"),
        (["data.fold=1"], "data.fold: is 1, and there are no folds"),
        (["data.folds=3", "data.fold=3"], "data.fold: is 3, and there are 3 folds, counted from 0"),
        (["data.folds=1"], "data.folds: must be at least 2"),
    ],
)
def test_what_does_not_go_together_is_refused_at_once(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    assert said in str(caught.value).replace("\n", " "), json.dumps(str(caught.value))


def test_links_into_other_files_are_not_followed_and_attributes_must_be_numbers(tmp_path: Path) -> None:
    def file(name: str) -> h5py.File:
        opened = h5py.File(tmp_path / name, "w")
        for array, width in (("mixed_signals", 20), ("target_signals", 20), ("condition_vectors", 3)):
            opened[array] = np.zeros((4, width), np.float32)
        return opened

    with file("other.h5"), file("external.h5") as external, file("attribute.h5") as attribute, file("virtual.h5") as virtual:
        del external["target_signals"], virtual["target_signals"]
        external["target_signals"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "target_signals")
        attribute.attrs["sample_rate"] = "fast"
        layout = h5py.VirtualLayout((4, 20), np.float32)
        layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "target_signals", (4, 20))
        virtual.create_virtual_dataset("target_signals", layout)
    with h5py.File(tmp_path / "huge.h5", "w") as huge:
        for array in ("mixed_signals", "target_signals", "condition_vectors"):
            huge.create_dataset(array, (2**40, 2**20), np.float32, chunks=(1, 1024))
    os.mkfifo(tmp_path / "pipe.h5")
    for name, reason in {
        "external": "has no array target_signals",
        "virtual": "has no array target_signals",
        "attribute": "its attribute sample_rate is no number",
        "huge": "states more than can be",
        "pipe": "is no regular file",
    }.items():
        with pytest.raises(DataError, match=rf"{name}\.h5: (.*{reason}|{reason})"):
            Hdf5Signals(str(tmp_path), f"{name}.h5", None, None, {"by": "utterance", "val": 0, "test": 0, "seed": 0}, 100).load(None)


@pytest.mark.parametrize(
    ("samples", "conditions", "told"),
    [
        (2**26, 2, r"mixed_signals comes to 805,306,368 bytes, from 0$"),
        (2**14, 2**14, r"a row with its condition has more than 268,435,456 numbers"),
        (2**26, 4, r"a row with its condition has more than 268,435,456 numbers"),
    ],
)
def test_arrays_that_are_only_stated_and_rows_larger_than_memory_are_refused(
    samples: int, conditions: int, told: str, tmp_path: Path
) -> None:
    with h5py.File(tmp_path / "train.h5", "w") as file:
        for name in ("mixed_signals", "target_signals"):
            file.create_dataset(name, (3, samples), "f4", chunks=(1, 2**14), compression="gzip")
        file.create_dataset("condition_vectors", (3, conditions), "f4")
    source = Hdf5Signals(str(tmp_path), "train.h5", None, None, {"by": "utterance", "val": 1, "test": 1, "seed": 1}, 100)
    with pytest.raises(DataError, match=told):
        source.load(None)
