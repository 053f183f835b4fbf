"""Forced alignment finds the best path that spells a text."""

from itertools import product

import numpy as np
import numpy.typing as npt
import pytest

from speechtrain.decode.align import Span, align


def distributions(frames: int, labels: int, seed: int) -> npt.NDArray[np.float32]:
    values = 3 * np.random.default_rng(seed).standard_normal((frames, labels))
    return (values - np.log(np.exp(values).sum(-1, keepdims=True))).astype(np.float32)


def score_of(log_probs: npt.NDArray[np.float32], spans: list[Span]) -> float:
    path = np.zeros(len(log_probs), dtype=int)
    for span in spans:
        path[span.start : span.end] = span.label
    return float(log_probs[np.arange(len(path)), path].sum())


def spelled(path: tuple[int, ...]) -> list[int]:
    return [label for place, label in enumerate(path) if label and (place == 0 or path[place - 1] != label)]


@pytest.mark.parametrize("labels", [[1], [1, 2], [2, 2], [1, 1, 2]])
def test_no_other_path_that_spells_the_labels_is_more_probable(labels: list[int]) -> None:
    for seed in range(5):
        log_probs = distributions(6, 3, seed)
        best = max(float(log_probs[np.arange(6), list(path)].sum()) for path in product(range(3), repeat=6) if spelled(path) == labels)
        spans = align(log_probs, labels)
        assert spans is not None
        assert [span.label for span in spans] == labels
        assert score_of(log_probs, spans) == pytest.approx(best, rel=1e-5)


def test_of_two_equal_steps_both_better_than_staying_one_is_taken() -> None:
    log_probs = np.log(np.array([[0.1, 0.8, 0.1], [0.45, 0.1, 0.45], [0.45, 0.1, 0.45]], dtype=np.float32))
    spans = align(log_probs, [1, 2])
    assert spans is not None
    assert score_of(log_probs, spans) == pytest.approx(float(np.log(0.8 * 0.45 * 0.45)), rel=1e-5)


def test_the_spans_are_those_of_torchaudio() -> None:
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchaudio.functional")
    for seed in range(40):
        draw = np.random.default_rng(seed)
        labels = draw.integers(1, 6, int(draw.integers(1, 12))).tolist()
        log_probs = distributions(int(draw.integers(24, 60)), 6, seed)
        path, scores = functional.forced_align(torch.from_numpy(log_probs)[None], torch.tensor([labels], dtype=torch.int32), blank=0)
        expected = [(span.token, span.start, span.end) for span in functional.merge_tokens(path[0], scores[0])]
        spans = align(log_probs, labels)
        assert spans is not None
        assert [(span.label, span.start, span.end) for span in spans] == expected


def test_labels_that_need_more_frames_than_there_are_have_no_alignment() -> None:
    assert align(distributions(2, 3, 0), [1, 1]) is None
    assert align(distributions(3, 3, 0), [1, 1]) is not None
    assert align(distributions(3, 3, 0), []) == []


def test_log_probabilities_that_allow_no_path_have_no_alignment() -> None:
    log_probs = distributions(5, 3, 0)
    log_probs[:, 1] = -np.inf
    assert align(log_probs, [1, 2]) is None
    assert align(np.full((5, 3), np.nan, dtype=np.float32), [1, 2]) is None
