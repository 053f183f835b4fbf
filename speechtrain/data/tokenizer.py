"""Text to labels and back. Label 0 is the CTC blank and never stands for a character."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Protocol

BLANK = 0


class Tokenizer(Protocol):
    """What `tokenizer._target_` names: built from the training texts, and again from its `vocabulary` when a model is loaded."""

    vocabulary: list[str]
    """Tokens in the order of their labels, the blank first as an empty text."""

    def encode(self, text: str) -> list[int]:
        """Labels of a text; tokens outside the vocabulary are left out."""
        ...

    def decode(self, labels: Sequence[int]) -> str:
        """Text of labels without blanks."""
        ...

    def unknown(self, text: str) -> list[str]:
        """Tokens of a text that the vocabulary lacks."""
        ...


class CharTokenizer:
    """One label a character, space included, in code-point order.

    Args:
        texts: training texts.
        lowercase: fold case before anything else.
        vocabulary: tokens of a trained model, instead of collecting them from `texts`.
    """

    def __init__(self, texts: Iterable[str] = (), *, lowercase: bool = False, vocabulary: Sequence[str] | None = None) -> None:
        self.lowercase = lowercase
        self.vocabulary = (
            list(vocabulary) if vocabulary is not None else ["", *sorted({char for text in texts for char in self._fold(text)})]
        )
        self._labels = {token: label for label, token in enumerate(self.vocabulary) if label != BLANK}

    def encode(self, text: str) -> list[int]:
        """Labels of a text; characters outside the vocabulary are left out."""
        return [self._labels[char] for char in self._fold(text) if char in self._labels]

    def decode(self, labels: Sequence[int]) -> str:
        """Text of labels without blanks."""
        return "".join(self.vocabulary[label] for label in labels)

    def unknown(self, text: str) -> list[str]:
        """Characters of a text that the vocabulary lacks."""
        return [char for char in self._fold(text) if char not in self._labels]

    def _fold(self, text: str) -> str:
        return text.lower() if self.lowercase else text


def count_repeats(labels: Sequence[int]) -> int:
    """Equal neighbours, between which CTC needs a blank."""
    return sum(first == second for first, second in pairwise(labels))
