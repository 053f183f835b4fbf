"""Utterances as a device hears them: samples of 16 bits, and at most a fixed number of frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from speechtrain.data.audio import Audio
from speechtrain.data.corpus import Cut
from speechtrain.data.features.features import Features
from speechtrain.data.task_data import PreparedCorpus
from speechtrain.errors import DataError

_FULL_SCALE = 32768


@dataclass(frozen=True)
class Window:
    """An utterance that fits into a window.

    Attributes:
        samples: samples (N,) of 16 bits.
        features: features (T, F) of these.
    """

    id: str
    text: str
    samples: npt.NDArray[np.int16]
    features: npt.NDArray[np.float32]


def most_samples(features: Features, frames: int) -> int:
    """Return the most samples that have no more than so many frames."""
    few, many = 0, 1
    while features.num_frames(many) <= frames:
        few, many = many, 2 * many
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (middle, many) if features.num_frames(middle) <= frames else (few, middle)
    return few


def features_of(features: Features, samples: Audio) -> npt.NDArray[np.float32]:
    """Compute the features (T, F) of samples (N,), without the rounding of spectra that are kept."""
    values: npt.NDArray[np.float32] = features.finish(features.mel(features.spectrum(samples))).numpy()
    return values


class Utterances(NamedTuple):
    """Utterances that fit into a window, and how many do not.

    Attributes:
        windows: those that fit.
        longer: how many are longer.
        unreadable: how many cannot be read.
    """

    windows: list[Window]
    longer: int
    unreadable: int


def windows_of(data: PreparedCorpus, cuts: Sequence[Cut], frames: int) -> Utterances:
    """Read the utterances that fit into a window.

    Args:
        data: reads the samples.
        cuts: the utterances.
        frames: the most frames of a window.
    """
    windows, longer, unreadable = [], 0, 0
    for cut in cuts:
        try:
            spoken = data.corpus.read(cut, data.features.sample_rate)
        except DataError:
            unreadable += 1
            continue
        if data.features.num_frames(len(spoken)) > frames:
            longer += 1
        else:
            samples = np.clip(np.rint(spoken * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)
            windows.append(Window(cut.id, cut.text, samples, features_of(data.features, (samples / _FULL_SCALE).astype(np.float32))))
    return Utterances(windows, longer, unreadable)
