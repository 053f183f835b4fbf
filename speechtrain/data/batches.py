"""Batches: the only thing a backend sees of the data.

    features (B, T, F) float32, zero-padded · feature_lengths (B,) · targets (B, L) or (B, L, C), zero-padded · target_lengths (B,) · ids

Both backends read the same batches. Everything random follows from (seed, epoch, utterance), so neither the number of worker
processes nor an interruption changes what is read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from speechtrain.data.features.features import Features

log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """Utterances that are computed together.

    Attributes:
        features: (B, T, F) float32, zero behind each utterance's end.
        feature_lengths: (B,) int64, frames.
        targets: what the task wants, zero behind each one's end: labels (B, L) int64, or frames (B, L, C) float32.
        target_lengths: (B,) int64.
        ids: of the utterances.
        texts: references as written in the corpus.
        seconds: of audio, padding not counted.
        left_out: (id, reason) of utterances that belong here and cannot be read.
        stands_in: whether it is only there so that each of several processes has a batch, and counts for nothing.
    """

    features: npt.NDArray[np.float32]
    feature_lengths: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64] | npt.NDArray[np.float32]
    target_lengths: npt.NDArray[np.int64]
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    seconds: float
    left_out: tuple[tuple[str, str], ...] = ()
    stands_in: bool = False


Target = npt.NDArray[np.int64] | npt.NDArray[np.float32]


class Reference(NamedTuple):
    """What a corpus says of an utterance; the task makes a target of it.

    Attributes:
        text: "" where there is none.
        signal: gives the frames (T, C) that are wanted, where the corpus has them.
    """

    text: str
    signal: Callable[[], npt.NDArray[np.float32]] | None = None


def stack_features(utterances: Sequence[torch.Tensor]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Pad features (T, F) of several utterances with zeros to one array (B, T, F), and return it with their lengths (B,) in frames."""
    lengths = np.array([len(features) for features in utterances], dtype=np.int64)
    padded = np.zeros((len(utterances), int(lengths.max()), utterances[0].shape[1]), dtype=np.float32)
    for row, features in enumerate(utterances):
        padded[row, : lengths[row]] = features.numpy()
    return padded, lengths


def stacked(wanted: Sequence[Target]) -> tuple[Target, npt.NDArray[np.int64]]:
    """Targets of several utterances in one array, zero behind each one's end, and their lengths (B,)."""
    lengths = np.array([len(item) for item in wanted], dtype=np.int64)
    targets = np.zeros((len(wanted), max(1, int(lengths.max())), *wanted[0].shape[1:]), dtype=wanted[0].dtype)
    for row, item in enumerate(wanted):
        targets[row, : lengths[row]] = item
    return targets, lengths


def silence(features: Features, *, seconds: float) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Features (1, T, F) of zeros and their length (1,), to measure a model with."""
    frames = features.num_frames(round(seconds * features.sample_rate))
    return np.zeros((1, frames, features.size), dtype=np.float32), np.array([frames], dtype=np.int64)
