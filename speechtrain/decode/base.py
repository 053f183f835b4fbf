"""What a decoder is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from speechtrain.errors import ConfigError, Problem


class Decoder(Protocol):
    """What `decoder._target_` names; given the `tokenizer`, if it takes that."""

    def __call__(self, log_probs: npt.NDArray[np.float32], lengths: npt.NDArray[np.int64]) -> list[list[int]]:
        """Labels of each utterance of log_probs (B, T', V) with lengths (B,)."""
        ...


@dataclass(frozen=True)
class Hypothesis:
    """One of several answers.

    Attributes:
        labels: without blanks.
        score: natural logarithm of what it is ranked by: the probability of the labels, that of the language model to its weight, ...
    """

    labels: tuple[int, ...]
    score: float


@runtime_checkable
class RankingDecoder(Decoder, Protocol):
    """A decoder that has more than one answer."""

    def best(self, log_probs: npt.NDArray[np.float32], count: int) -> list[Hypothesis]:
        """At most so many answers to log_probs (T', V), the best first."""
        ...


def ranking(decoder: Decoder | None) -> RankingDecoder:
    """The same decoder, if it ranks several answers.

    Raises:
        ConfigError: it gives one answer only.
    """
    if isinstance(decoder, RankingDecoder):
        return decoder
    raise ConfigError([Problem("nbest", "the greedy decoder has one answer", "set decoder=beam")])
