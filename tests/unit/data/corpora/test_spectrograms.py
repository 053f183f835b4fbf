"""Spectrograms and tokens of other programs: joined by their parents, true lengths found again, what is missing named."""

from __future__ import annotations

import gc
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, prepared, thinned
from featurised import PHONEMES, sample, write_corpus, write_manifest

from speechtrain import compose, featurise
from speechtrain.config.build import build
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.data.corpora.spectrogram_writer import write_featurised
from speechtrain.data.corpus import Corpus
from speechtrain.data.task_data import TaskData
from speechtrain.errors import ConfigError, DataError, EmptyDataError


def make(overrides: list[str], *more: str) -> TaskData:
    return prepared([*overrides, "augment=none", "features.normalize=none", *more], threads=2)


def first_batch(data: TaskData) -> Any:
    loader = data.loader("train")
    assert loader is not None
    return next(iter(loader))


@pytest.mark.parametrize("later_spelling", [False, True])
def test_arrays_and_tokens_come_as_they_were_written_without_their_padding(tmp_path: Path, later_spelling: bool) -> None:
    data = make(write_corpus(tmp_path, later_spelling=later_spelling))
    assert [len(data.corpus.splits[part]) for part in ("train", "val", "test")] == [40, 8, 8]
    assert data.tokenizer.vocabulary == ["", *PHONEMES]
    batch = first_batch(data)
    for row, utterance in enumerate(batch.ids):
        stored = np.load(tmp_path / f"spectrogram/{utterance}.npy")
        frames = int(batch.feature_lengths[row])
        assert frames == stored.shape[1] - 7
        np.testing.assert_array_equal(batch.features[row, :frames], stored[:, :frames].T)
        tokens = json.loads((tmp_path / f"token/{utterance.removesuffix('_v0')}.json").read_text())["tokens"]
        assert [label - 1 for label in batch.targets[row, : batch.target_lengths[row]]] == [token for token in tokens if token < 4]
        assert batch.texts[row] == " ".join(PHONEMES[token] for token in tokens if token < 4)


def test_the_size_of_the_features_is_that_of_the_files(tmp_path: Path) -> None:
    data = make(write_corpus(tmp_path))
    assert data.features.size == np.load(next((tmp_path / "spectrogram").iterdir())).shape[0] == first_batch(data).features.shape[2]


def test_every_variant_of_a_parent_is_used_with_the_parents_tokens(tmp_path: Path) -> None:
    overrides = write_corpus(tmp_path, train=4)
    listed = json.loads((tmp_path / "spectrogram_manifest/manifest.json").read_text())["samples"]
    np.save(tmp_path / "spectrogram/slow.npy", np.ones((40, 30), np.float32))
    write_manifest(tmp_path / "spectrogram_manifest/manifest.json", "spectrogram", [*listed, sample("slow", "train-00001", False)])
    cuts = {cut.id: cut.text for cut in make(overrides).corpus.splits["train"]}
    assert len(cuts) == 5
    assert cuts["slow"] == cuts["train-00001_v0"]


def _npz(root: Path) -> None:
    with (root / "spectrogram/train-00001_v0.npy").open("wb") as file:
        np.savez(file, np.zeros((40, 50), np.float32))


BROKEN = {
    "no array": (lambda root: (root / "spectrogram/train-00001_v0.npy").unlink(), "no such file: .*spectrogram/train-00001_v0.npy"),
    "no tokens": (lambda root: (root / "token/train-00001.json").unlink(), "no such file: .*token/train-00001.json"),
    "half an array": (lambda root: (root / "spectrogram/train-00001_v0.npy").write_bytes(b"\x93NUMPY"), "is not an array"),
    "a pickle": (lambda root: np.save(root / "spectrogram/train-00001_v0.npy", np.array([{}])), "is not an array that can be read"),
    "one row": (lambda root: np.save(root / "spectrogram/train-00001_v0.npy", np.ones(4, np.float32)), "must be float32"),
    "other mels": (lambda root: np.save(root / "spectrogram/train-00001_v0.npy", np.ones((13, 50), np.float32)), "has 13 mels"),
    "NaN": (lambda root: np.save(root / "spectrogram/train-00001_v0.npy", np.full((40, 50), np.nan, np.float32)), "NaN or infinite"),
    "only padding": (
        lambda root: np.save(root / "spectrogram/train-00001_v0.npy", np.zeros((40, 50), np.float32)),
        "no frames but padding",
    ),
    "no JSON": (lambda root: (root / "token/train-00001.json").write_text("{"), "train-00001.json: not JSON"),
    "an archive of arrays": (_npz, "is not an array that can be read"),
    "Python objects": (
        lambda root: np.save(root / "spectrogram/train-00001_v0.npy", np.array([[{}]], dtype=object), allow_pickle=True),
        "it holds objects, not numbers",
    ),
    "a header of more than the file holds": (
        lambda root: (root / "spectrogram/train-00001_v0.npy").write_bytes(
            b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (40, 99999999999999)}".ljust(117) + b"\n"
        ),
        r"its header states float32 .40, 99999999999999., and 0 bytes follow",
    ),
    "token too large": (lambda root: (root / "token/train-00001.json").write_text('{"tokens": [1, 9]}'), "numbers from 0 to 4"),
    "only blanks": (lambda root: (root / "token/train-00001.json").write_text('{"tokens": [4, 4]}'), "no tokens but blanks"),
    "blank inside": (lambda root: (root / "token/train-00001.json").write_text('{"tokens": [1, 4, 2]}'), "a blank .4. before its end"),
    "other list": (lambda root: (root / "token/train-00001.json").write_text('{"phonemes": ["D"], "tokens": [1]}'), "disagree"),
}


@pytest.mark.parametrize("case", thinned(BROKEN, 4))
def test_what_is_missing_or_broken_is_named_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture, case: str) -> None:
    overrides = write_corpus(tmp_path)
    change, said = BROKEN[case]
    change(tmp_path)
    data = make(overrides)
    assert data.skipped == 1
    assert len(data.corpus.splits["train"]) == 39
    assert "train-00001_v0" in caplog.text
    with pytest.raises(DataError, match=said):
        make(overrides, "data.on_bad=error")


def test_nothing_left_is_an_error_or_by_wish_a_warning(tmp_path: Path) -> None:
    overrides = write_corpus(tmp_path, train=3)
    for file in (tmp_path / "spectrogram").glob("train*"):
        file.unlink()
    with pytest.raises(DataError, match=r"no utterance is left to train on \(3 were bad\)") as error:
        make(overrides)
    assert not isinstance(error.value, EmptyDataError)
    with pytest.raises(EmptyDataError):
        make(overrides, "data.on_empty=warn")


def test_a_parent_in_two_parts_is_refused(tmp_path: Path) -> None:
    overrides = write_corpus(tmp_path, train=3)
    write_manifest(tmp_path / "split/test.json", "audio", [sample("test-00000", None, False), sample("train-00002", None, False)])
    with pytest.raises(DataError, match="parent 'train-00002' belongs to train and to test"):
        make(overrides)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("split/train.json", "[]", "must be"),
        ("split/train.json", "{", "not JSON"),
        ("split/train.json", '{"version": 7, "samples": []}', "unknown version 7"),
        ("split/train.json", '{"version": 1, "samples": [{"file": "x"}]}', "sample 0 must have an 'id' or a 'name'"),
        ("vocab/phoneme_list.txt", "A\nB\nA\n", "phoneme_list.txt:3: 'A' is already in line 1"),
        ("vocab/phoneme_list.txt", "A\n\nB\n", "phoneme_list.txt:2: an empty line"),
        ("vocab/phoneme_list.txt", "", "is empty"),
    ],
)
def test_a_file_that_is_wrong_as_a_whole_is_an_error_that_names_it(tmp_path: Path, name: str, text: str, said: str) -> None:
    overrides = write_corpus(tmp_path, train=3)
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        make(overrides)


def test_ids_stay_inside_their_folder(tmp_path: Path) -> None:
    overrides = write_corpus(tmp_path, train=3)
    np.save(tmp_path / "secret.npy", np.ones((40, 30), np.float32))
    write_manifest(tmp_path / "spectrogram_manifest/manifest.json", "spectrogram", [sample("../secret", "train-00000", False)])
    with pytest.raises(DataError, match="leaves the folder"):
        make(overrides, "data.on_bad=error")


@pytest.mark.parametrize(
    ("overrides", "path"),
    [
        (["data.split_dir=/nowhere"], "data.split_dir"),
        (["augment.noise_prob=0.5"], "augment.noise_prob"),
        (["features=logmel"], "features"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_read(tmp_path: Path, overrides: list[str], path: str) -> None:
    with pytest.raises(ConfigError) as error:
        compose([*write_corpus(tmp_path, train=2), *overrides])
    assert [problem.path for problem in error.value.problems] == [path]


def test_augmentation_masks_and_stretches_stored_features(tmp_path: Path) -> None:
    data = prepared([*write_corpus(tmp_path, train=8), "augment.tempo=0.2"])
    plain, changed = data.loader("train"), data.loader("train", augment=True)
    assert plain is not None
    assert changed is not None
    one, other = next(iter(plain)), next(iter(changed))
    assert one.ids == other.ids
    assert (one.feature_lengths != other.feature_lengths).any()


def test_threads_read_arrays_while_garbage_is_collected(tmp_path: Path) -> None:
    corpus = featurised_corpus(tmp_path)
    cuts = [cut for cuts in corpus.splits.values() for cut in cuts] * 40
    collected = []
    threshold, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.callbacks.append(lambda phase, facts: collected.append((phase, sorted(facts))))
    gc.set_threshold(10)
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            shapes = list(pool.map(lambda cut: corpus.read(cut, 0).shape, cuts))
    finally:
        sys.setswitchinterval(interval)
        gc.set_threshold(*threshold)
        gc.callbacks.pop()
    assert shapes == [(cut.num_samples, 40) for cut in cuts]
    assert len(collected) > 100


def test_arrays_of_any_floating_point_kind_and_order_are_read(tmp_path: Path) -> None:
    corpus = featurised_corpus(tmp_path)
    cut = corpus.splits["train"][0]
    values = np.load(cut.custom["file"])
    for changed in (np.asfortranarray(values), *(values.astype(kind) for kind in (">f4", "<f2", "<f8"))):
        for version in ((1, 0), (2, 0)):
            with Path(cut.custom["file"]).open("wb") as file:
                np.lib.format.write_array(file, changed, version=version)
            np.testing.assert_array_equal(corpus.read(cut, 0), changed[:, : cut.num_samples].T.astype(np.float32))


def featurised_corpus(root: Path) -> Corpus:
    cfg = ExperimentConfig.of(compose([*write_corpus(root), "tracking=[]"]))
    corpus: Corpus = build("data", cfg.corpus).load(None)
    return corpus


def test_what_the_command_writes_is_read_back_as_the_same_features_and_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    single = ["augment=none", "data.batch_size=1"]
    given = [*TINY, "data.alphabet=ab c", *single]
    assert featurise.run([*given, f"out={tmp_path / 'made'}"]) == 0
    printed = capsys.readouterr().out
    assert "utterances  train 39, val 8, test 8" in printed
    read_back = prepared([*printed.partition("read with   ")[2].split(), *single, "tracking=[]"])
    original = prepared(given)
    assert read_back.tokenizer.vocabulary == ["", *(token.replace(" ", "<space>") for token in original.tokenizer.vocabulary[1:])]
    for split in ("train", "val", "test"):
        first, second = ({batch.ids: batch for batch in data.loader(split)} for data in (original, read_back))
        assert first.keys() == second.keys()
        for ids, batch in first.items():
            np.testing.assert_array_equal(batch.targets, second[ids].targets)
            np.testing.assert_array_equal(batch.features, second[ids].features)
    with pytest.raises(ConfigError, match=r"out: .*made is there already"):
        featurise.run([*given, f"out={tmp_path / 'made'}"])


def test_a_corpus_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    data = prepared(TINY)
    data.corpus.splits["test"][0].text = ""
    with pytest.raises(DataError, match="has no tokens"):
        write_featurised(data.corpus, data.cache, data.features, data.tokenizer, tmp_path / "made")
    assert not list(tmp_path.iterdir())
