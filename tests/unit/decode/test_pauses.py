"""Where words begin and end."""

from __future__ import annotations

import numpy as np
import pytest

from speechtrain.data.text.tokenizers import CharTokenizer
from speechtrain.decode.align import Span, Word, words_of
from speechtrain.decode.pauses import between_pauses

RATE = 8000


def tones(*times: tuple[float, float], duration: float) -> np.ndarray:
    samples = np.random.default_rng(0).normal(size=round(duration * RATE)).astype(np.float32) * 1e-4
    for start, end in times:
        at = slice(round(start * RATE), round(end * RATE))
        samples[at] += np.sin(2 * np.pi * 500 * np.arange(at.stop - at.start) / RATE).astype(np.float32)
    return samples


def test_words_reach_up_to_the_pauses_around_them() -> None:
    samples = tones((0.2, 0.6), (0.8, 1.3), duration=1.6)
    found = between_pauses([Word("one", 0.3, 0.36, 1.0), Word("two", 1.0, 1.1, 0.5)], samples, RATE)
    assert [(word.start, word.end) for word in found] == [pytest.approx((0.2, 0.6), abs=0.02), pytest.approx((0.8, 1.3), abs=0.02)]
    assert [(word.text, word.confidence) for word in found] == [("one", 1.0), ("two", 0.5)]


def test_words_without_a_pause_meet_at_the_quietest_moment() -> None:
    samples = tones((0.1, 1.1), duration=1.3)
    samples[round(0.55 * RATE) : round(0.6 * RATE)] *= 0.5
    first, second = between_pauses([Word("a", 0.2, 0.3, 1.0), Word("b", 0.9, 1.0, 1.0)], samples, RATE)
    assert first.end == second.start == pytest.approx(0.575, abs=0.03)


def test_times_of_a_piece_of_a_recording_begin_where_the_piece_does() -> None:
    samples = tones((0.2, 0.6), duration=1.0)
    (word,) = between_pauses([Word("one", 20.3, 20.4, 1.0)], samples, RATE, offset=20.0)
    assert (word.start, word.end) == pytest.approx((20.2, 20.6), abs=0.02)


def test_a_pause_inside_a_word_is_left_in_it() -> None:
    samples = tones((0.2, 0.4), (0.5, 0.7), duration=1.0)
    (word,) = between_pauses([Word("eight", 0.3, 0.6, 1.0)], samples, RATE)
    assert (word.start, word.end) == pytest.approx((0.2, 0.7), abs=0.02)


def test_nothing_is_made_of_nothing() -> None:
    assert between_pauses([], np.zeros(100, dtype=np.float32), RATE) == []
    word = Word("a", 0.0, 0.1, 1.0)
    assert between_pauses([word], np.zeros(0, dtype=np.float32), RATE) == [word]
    (silent,) = between_pauses([word], np.zeros(RATE, dtype=np.float32), RATE)
    assert 0 <= silent.start <= silent.end <= 1


def test_spaces_belong_to_no_word() -> None:
    tokenizer = CharTokenizer(["ab "])
    labels = tokenizer.encode("ab  a")
    spans = [Span(label, 2 * place, 2 * place + 1, 0.5) for place, label in enumerate(labels)]
    found = words_of(spans, tokenizer, 0.1, offset=1.0)
    assert [(word.text, word.confidence) for word in found] == [("ab", 0.25), ("a", 0.5)]
    assert [(word.start, word.end) for word in found] == [pytest.approx((1.0, 1.3)), pytest.approx((1.8, 1.9))]
