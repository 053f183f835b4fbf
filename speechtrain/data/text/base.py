"""What a tokenizer is: from texts to labels and back. For CTC label 0 is the blank and never stands for a token; classes have no blank."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from speechtrain.config.build import build
from speechtrain.config.experiment import Component
from speechtrain.errors import ConfigError, Problem

BLANK = 0


class Tokenizer(ABC):
    """What `tokenizer._target_` names: built from the training texts, and again from its `vocabulary` when a model is loaded.

    Attributes:
        vocabulary: tokens in the order of their labels; for CTC the blank first, as an empty text.
        outputs: for each label the number of the output that it is in the head of a pretrained checkpoint; None: there is no such head.
        blank_last: whether other programs that use the vocabulary have the blank behind it.
        counts_phonemes: whether the share of wrong tokens is the phoneme error rate.
    """

    vocabulary: list[str]
    outputs: Sequence[int] | None = None
    blank_last: bool = False
    counts_phonemes: ClassVar[bool] = False

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Convert a text to labels; tokens outside the vocabulary are left out."""

    @abstractmethod
    def decode(self, labels: Sequence[int]) -> str:
        """Convert labels without blanks to text."""

    @abstractmethod
    def unknown(self, text: str) -> list[str]:
        """List the tokens of a text that the vocabulary lacks."""

    def labels(self, text: str) -> npt.NDArray[np.int64]:
        """Convert a text to an array of labels (L,), as `encode` does."""
        return np.asarray(self.encode(text), dtype=np.int64)

    def with_unknown(self, texts: Iterable[str]) -> list[int]:
        """Return the places of the texts that hold tokens which the vocabulary lacks."""
        return [place for place, text in enumerate(texts) if self.unknown(text)]

    def count_labels(self, texts: Iterable[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Count the labels of each text (N,), and the equal neighbours among them, between which CTC needs a blank (N,)."""
        counts = [(len(labels), count_repeats(labels)) for labels in map(self.labels, texts)]
        sizes, repeats = np.array(counts, dtype=np.int64).reshape(-1, 2).T
        return sizes, repeats

    def reference(self, text: str) -> str:
        """Return what a perfect model writes for a transcript."""
        return text


def count_repeats(labels: npt.NDArray[Any]) -> int:
    """Count equal neighbours among labels (L,), between which CTC needs a blank."""
    return int(np.count_nonzero(labels[1:] == labels[:-1]))


def build_tokenizer(node: Component, **inputs: Any) -> Tokenizer:
    """Build the tokenizer that a config names.

    Args:
        node: the group `tokenizer` of the config.
        inputs: `texts` to collect a vocabulary from, or the `vocabulary` of a trained model.

    Raises:
        ConfigError: what is built is no `Tokenizer`.
    """
    made = build("tokenizer", node, **inputs)
    if not isinstance(made, Tokenizer):
        message = f"must make a tokenizer, received {type(made).__name__}"
        raise ConfigError([Problem("tokenizer._target_", message, f"derive its class from {__name__}.Tokenizer")])
    return made
