"""When each label was said: the best path of a text through the posteriors (forced alignment)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torchaudio.functional import forced_align, merge_tokens


@dataclass(frozen=True)
class Span:
    """A label and the encoder frames `start` to `end` (the first behind it) that say it.

    Attributes:
        probability: of the label: the highest of its frames.
    """

    label: int
    start: int
    end: int
    probability: float


def greedy_spans(log_probs: npt.NDArray[np.float32]) -> list[Span]:
    """Spans of the labels that the best path of log_probs (T', V) says."""
    best = log_probs.argmax(-1)
    bounds = np.flatnonzero(np.diff(best, prepend=-1, append=-1))
    return [_span(log_probs, int(best[start]), start, end) for start, end in pairwise(bounds.tolist()) if best[start]]


def align(log_probs: npt.NDArray[np.float32], labels: Sequence[int]) -> list[Span] | None:
    """Spans of given labels on their best path through log_probs (T', V); None if there are too few frames for them."""
    if not labels:
        return []
    targets = torch.tensor([list(labels)], dtype=torch.int32)
    try:
        path, scores = forced_align(torch.from_numpy(np.ascontiguousarray(log_probs))[None], targets, blank=0)
    except RuntimeError:
        return None
    return [_span(log_probs, span.token, span.start, span.end) for span in merge_tokens(path[0], scores[0])]


def _span(log_probs: npt.NDArray[np.float32], label: int, start: int, end: int) -> Span:
    return Span(label, int(start), int(end), math.exp(float(log_probs[start:end, label].max())))
