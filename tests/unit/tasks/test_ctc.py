"""Decoding, error rates and feasibility."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from speechtrain.data.batches import Batch
from speechtrain.data.text.tokenizers import CharTokenizer
from speechtrain.decode.greedy import GreedyDecoder
from speechtrain.tasks.base import Outputs, Sample
from speechtrain.tasks.ctc import Ctc
from speechtrain.training.console import choose_samples, marked


def task() -> Ctc:
    return Ctc(CharTokenizer(["ab cd"]), GreedyDecoder())


def posteriors(paths: list[list[int]], size: int = 6) -> np.ndarray:
    frames = max(len(path) for path in paths)
    out = np.full((len(paths), frames, size), -9.0, np.float32)
    for row, path in enumerate(paths):
        out[row, range(len(path)), path] = 0.0
    out[:, :, 1] += 0.1  # padding must not be decoded
    return out


def batch(texts: list[str]) -> Batch:
    labels = [task().tokenizer.encode(text) for text in texts]
    sizes = np.array([len(item) for item in labels])
    targets = np.zeros((len(texts), max(1, *sizes)), np.int64)
    for row, item in enumerate(labels):
        targets[row, : len(item)] = item
    count = len(texts)
    return Batch(
        np.zeros((count, 1, 1), np.float32), np.ones(count, np.int64), targets, sizes, tuple(map(str, range(count))), tuple(texts), 1.0
    )


def test_repeats_join_blanks_go_and_padding_is_not_read() -> None:
    paths = [[0, 2, 2, 0, 2, 3], [3, 3, 3], [0, 0]]
    assert GreedyDecoder()(posteriors(paths), np.array([6, 3, 2])) == [[2, 2, 3], [3], []]


def test_rates_are_corpus_totals_not_means_of_batches() -> None:
    scorer = task().scorer()
    texts = [["ab cd"], ["a", "b", "c"]]
    heard = [["ab"], ["a", "b", "d"]]
    for reference, hypothesis in zip(texts, heard, strict=True):
        paths = [[label for char in task().tokenizer.encode(text) for label in (char, 0)] for text in hypothesis]
        lengths = np.array([len(path) for path in paths])
        scorer.update(batch(reference), Outputs(posteriors(paths), lengths, np.full(len(paths), 2.0, np.float32)))
    found = scorer.compute()
    assert found["wer"] == pytest.approx(2 / 5)
    assert found["cer"] == pytest.approx(4 / 8)
    assert found["exact"] == pytest.approx(2 / 4)
    assert found["loss"] == pytest.approx(8 / 8)
    assert found["empty"] == 0
    assert [sample.hypothesis for sample in scorer.samples] == ["ab", "a", "b", "d"]


def test_an_utterance_that_cannot_be_aligned_counts_its_errors_but_no_loss() -> None:
    scorer = task().scorer()
    scorer.update(batch(["ab", "ab"]), Outputs(posteriors([[2, 3], [0]]), np.array([2, 1]), np.array([3.0, 0.0], np.float32)))
    assert scorer.compute()["loss"] == pytest.approx(1.5)
    assert scorer.compute()["cer"] == pytest.approx(0.5)
    assert scorer.compute()["empty"] == pytest.approx(0.5)


def test_infeasible_is_exactly_where_no_alignment_exists() -> None:
    for frames, labels in itertools.product(range(5), ([1], [1, 1], [1, 2], [1, 1, 2], [2, 2, 2])):
        exists = any(
            [label for label, _ in itertools.groupby(path) if label != 0] == labels for path in itertools.product(range(3), repeat=frames)
        )
        repeats = sum(a == b for a, b in itertools.pairwise(labels))
        said = task().infeasible(np.array([frames]), np.array([len(labels)]), np.array([repeats]))
        assert bool(said[0]) != exists


def test_metrics_say_which_way_is_better() -> None:
    assert task().direction("val/wer") == "minimize"
    assert task().direction("val/exact") == "maximize"


def test_samples_to_look_at_show_errors_first_and_are_as_many_as_asked() -> None:
    samples = [Sample(str(index), "a", "a" if index % 3 else "b") for index in range(12)]
    chosen = choose_samples(samples, 5, seed=1)
    assert [sample.reference == sample.hypothesis for sample in chosen] == [False] * 3 + [True] * 2
    assert chosen == choose_samples(samples, 5, seed=1)
    assert chosen != choose_samples(samples, 5, seed=2)
    assert len(choose_samples(samples[:2], 5, seed=1)) == 2
    assert len(choose_samples([Sample(str(index), "a", "b") for index in range(9)], 5, seed=1)) == 5


def test_errors_are_marked_in_both_texts() -> None:
    reference, hypothesis = marked("one two three four", "one too three")
    assert reference == r"one [red]\[two][/] three [red]\[four][/]"
    assert hypothesis == r"one [red]\[too][/] three"
