"""Batches, which are all that a backend sees of the data.

    features (B, T, F) float32, zero-padded · feature_lengths (B,) · targets (B, L) or (B, L, C), zero-padded · target_lengths (B,) · ids

Both backends read the same batches. Everything random follows from (seed, epoch, utterance), so neither the number of worker
processes nor an interruption changes what is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from speechtrain.data.features.features import Features


class Batch(NamedTuple):
    """Utterances that are computed together.

    Attributes:
        features: (B, T, F) float32, zero behind each utterance's end.
        feature_lengths: (B,) int64, frames.
        targets: the task's, zero behind each utterance's end: labels (B, L) int64, or frames (B, L, C) float32.
        target_lengths: (B,) int64.
        ids: ids of the utterances.
        texts: references as the corpus has them.
        seconds: duration of the audio, padding not counted.
        left_out: (id, reason) of utterances of this batch that cannot be read.
        is_filler: whether it only gives one of several processes a batch where there are fewer utterances; its loss does not count.
    """

    features: npt.NDArray[np.float32]
    feature_lengths: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64] | npt.NDArray[np.float32]
    target_lengths: npt.NDArray[np.int64]
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    seconds: float
    left_out: tuple[tuple[str, str], ...] = ()
    is_filler: bool = False


Target = npt.NDArray[np.int64] | npt.NDArray[np.float32]


class Reference(NamedTuple):
    """What a corpus has as the truth about an utterance; the task makes a target of it.

    Attributes:
        text: "" where there is none.
        signal: reads the target signal (T, C), where the corpus has one.
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


def stack_targets(targets: Sequence[Target]) -> tuple[Target, npt.NDArray[np.int64]]:
    """Pad targets (L,) or (L, C) of several utterances with zeros to one array (B, L) or (B, L, C); returned with their lengths (B,)."""
    lengths = np.array([len(target) for target in targets], dtype=np.int64)
    padded = np.zeros((len(targets), max(1, int(lengths.max())), *targets[0].shape[1:]), dtype=targets[0].dtype)
    for row, target in enumerate(targets):
        padded[row, : lengths[row]] = target
    return padded, lengths


def silence(features: Features, *, seconds: float) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Make features (1, T, F) of zeros and their length (1,), to measure a model with."""
    frames = features.num_frames(round(seconds * features.sample_rate))
    return np.zeros((1, frames, features.size), dtype=np.float32), np.array([frames], dtype=np.int64)
