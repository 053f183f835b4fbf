"""Forced alignment: the best path of labels through log-probabilities, and the times of words on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from speechtrain.data.text.base import Tokenizer


@dataclass(frozen=True)
class Span:
    """A label and its encoder frames, from `start` up to and without `end`.

    Attributes:
        probability: probability of the label in its most probable frame.
    """

    label: int
    start: int
    end: int
    probability: float


def greedy_spans(log_probs: npt.NDArray[np.float32]) -> list[Span]:
    """Find the spans of the labels on the best path of log_probs (T', V)."""
    best = log_probs.argmax(-1)
    bounds = np.flatnonzero(np.diff(best, prepend=-1, append=-1))
    return [_span(log_probs, int(best[start]), start, end) for start, end in pairwise(bounds.tolist()) if best[start]]


def align(log_probs: npt.NDArray[np.float32], labels: Sequence[int]) -> list[Span] | None:
    """Find the spans of given labels on their best path through log_probs (T', V).

    None: there are too few frames for them, or no path is possible.
    """
    if not labels:
        return []
    if len(log_probs) < len(labels) + sum(one == other for one, other in pairwise(labels)):
        return None
    if (states := _best_states(log_probs, labels)) is None:
        return None
    bounds = np.flatnonzero(np.diff(states, prepend=-1, append=-1))
    pieces = [(int(states[start]), start, end) for start, end in pairwise(bounds.tolist())]
    return [_span(log_probs, labels[state // 2], start, end) for state, start, end in pieces if state % 2]


def spans_of(log_probs: npt.NDArray[np.float32], labels: Sequence[int]) -> list[Span]:
    """Find the spans of labels that were decoded from log_probs (T', V); there are none if the labels cannot be aligned."""
    spans = greedy_spans(log_probs)
    return spans if [span.label for span in spans] == list(labels) else align(log_probs, labels) or []


def path_score(log_probs: npt.NDArray[np.float32], spans: Sequence[Span]) -> float:
    """Compute the mean log-probability of a frame of log_probs (T', V) on a path: labels in their spans, blanks between them."""
    path = np.zeros(len(log_probs), dtype=np.int64)
    for span in spans:
        path[span.start : span.end] = span.label
    return float(log_probs[np.arange(len(path)), path].mean()) if len(path) else 0.0


@dataclass(frozen=True)
class Word:
    """A word of a text with its times.

    Attributes:
        start: s from the beginning of the recording.
        end: s from the beginning of the recording.
        confidence: probability that the word is right, 0 to 1.
    """

    text: str
    start: float
    end: float
    confidence: float


def words_of(spans: Sequence[Span], tokenizer: Tokenizer, frame_seconds: float, offset: float = 0.0) -> list[Word]:
    """Group labels into the words that they spell, each from the beginning of its first label to the end of its last one.

    Args:
        spans: spans of the labels, in order.
        tokenizer: the tokenizer that the labels belong to.
        frame_seconds: time between two encoder frames, s.
        offset: time added to all times, s.
    """
    groups: list[list[Span]] = []
    labels = [span.label for span in spans]
    words = tokenizer.decode(labels).split()
    for count, span in enumerate(spans, start=1):
        begun = min(len(tokenizer.decode(labels[:count]).split()), len(words))
        if tokenizer.decode([span.label]).strip() and begun:
            groups += [[] for _ in range(begun - len(groups))]
            groups[begun - 1].append(span)
    return [
        Word(
            text,
            offset + frame_seconds * group[0].start,
            offset + frame_seconds * group[-1].end,
            math.prod(span.probability for span in group),
        )
        for text, group in zip(words, groups, strict=False)
        if group
    ]


def _best_states(log_probs: npt.NDArray[np.float32], labels: Sequence[int]) -> npt.NDArray[np.int64] | None:
    """Find the state of each frame (T',) on the best path of CTC (Graves et al. 2006) through log_probs (T', V) that spells labels (L,).

    State 2 i + 1 is label i, and the 2 L + 1 states of even number are the blanks around the labels. A path stays, goes on by one state, or
    by two past a blank between labels that differ. None: no path is possible, or a log-probability is NaN.
    """
    spelled = np.zeros(2 * len(labels) + 1, dtype=np.int64)
    spelled[1::2] = labels
    skips = np.zeros(len(spelled), dtype=bool)
    skips[3::2] = spelled[3::2] != spelled[1:-2:2]
    steps = np.zeros((len(log_probs), len(spelled)), dtype=np.int8)
    score = np.full(len(spelled) + 2, -np.inf, dtype=np.float32)  # two more in front, which no path begins in
    score[2:4] = log_probs[0, spelled[:2]]
    for frame in range(1, len(log_probs)):
        stay, one, two = score[2:], score[1:-1], np.where(skips, score[:-2], -np.inf)
        best = np.maximum(np.maximum(stay, one), two)
        steps[frame] = np.where(best == stay, 0, np.where(best == one, 1, 2))
        score[2:] = best + log_probs[frame, spelled]
    if not score[-2:].max() > -np.inf:
        return None
    states = np.empty(len(log_probs), dtype=np.int64)
    state = len(spelled) - 1 if score[-1] > score[-2] else len(spelled) - 2
    for frame in range(len(log_probs) - 1, -1, -1):
        states[frame] = state
        state -= int(steps[frame, state])
    return states


def _span(log_probs: npt.NDArray[np.float32], label: int, start: int, end: int) -> Span:
    return Span(label, int(start), int(end), math.exp(float(log_probs[start:end, label].max())))
