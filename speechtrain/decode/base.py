"""The contract of decoders, which turn log-probabilities into labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from speechtrain.errors import ConfigError, Problem

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Decoder(Protocol):
    """A callable that `decoder._target_` names; its constructor gets the `tokenizer`, if it takes that argument."""

    def __call__(self, log_probs: npt.NDArray[np.float32], lengths: npt.NDArray[np.int64]) -> list[list[int]]:
        """Decode log_probs (B, T', V) of lengths (B,) into the labels of each utterance, without blanks."""
        ...


@dataclass(frozen=True)
class Hypothesis:
    """One of several sequences of labels that a decoder found.

    Attributes:
        labels: the labels, without blanks.
        score: natural logarithm of what it is ranked by: the probability of the labels, that of the language model to its weight, ...
    """

    labels: tuple[int, ...]
    score: float


@runtime_checkable
class RankingDecoder(Decoder, Protocol):
    """A decoder that ranks more than one hypothesis."""

    def best(self, log_probs: npt.NDArray[np.float32], count: int) -> list[Hypothesis]:
        """Return at most `count` hypotheses for log_probs (T', V), the best first."""
        ...


def ranking(decoder: Decoder | None) -> RankingDecoder:
    """Return the same decoder, if it ranks several hypotheses.

    Raises:
        ConfigError: the decoder gives one answer only.
    """
    if isinstance(decoder, RankingDecoder):
        return decoder
    raise ConfigError([Problem("nbest", "the greedy decoder has one answer", "set decoder=beam")])
