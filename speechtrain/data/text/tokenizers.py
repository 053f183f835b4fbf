"""Text to labels and back. For CTC label 0 is the blank and never stands for a character; classes have no blank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from speechtrain.errors import DataError

BLANK = 0


class Tokenizer(Protocol):
    """What `tokenizer._target_` names: built from the training texts, and again from its `vocabulary` when a model is loaded."""

    vocabulary: list[str]
    """Tokens in the order of their labels; for CTC the blank first, as an empty text."""

    def encode(self, text: str) -> list[int]:
        """Labels of a text; tokens outside the vocabulary are left out."""
        ...

    def decode(self, labels: Sequence[int]) -> str:
        """Text of labels without blanks."""
        ...

    def unknown(self, text: str) -> list[str]:
        """Tokens of a text that the vocabulary lacks."""
        ...

    # It may have `reference(text) -> str`: the text that a perfect model gives for it, where that is not the transcript itself;
    # `counts_phonemes = True`, after which the share of wrong tokens is the phoneme error rate; and `labels(text)`, which is `encode` as an
    # array (L,), where that is quicker.


class CharTokenizer:
    """One label a character, space included, in code-point order.

    Args:
        texts: training texts.
        lowercase: fold case before anything else.
        vocabulary: tokens of a trained model, instead of collecting them from `texts`.
    """

    def __init__(self, texts: Iterable[str] = (), *, lowercase: bool = False, vocabulary: Sequence[str] | None = None) -> None:
        self.lowercase = lowercase
        self.vocabulary = list(vocabulary) if vocabulary is not None else ["", *sorted(set().union(*map(self._fold, texts)))]
        self._labels = {token: label for label, token in enumerate(self.vocabulary) if label != BLANK}
        self._table = np.zeros(max(map(ord, self._labels), default=0) + 2, dtype=np.int64)  # by code point; the last stands for all others
        for char, label in self._labels.items():
            self._table[ord(char)] = label

    def encode(self, text: str) -> list[int]:
        """Labels of a text; characters outside the vocabulary are left out."""
        found: list[int] = self.labels(text).tolist()
        return found

    def labels(self, text: str) -> npt.NDArray[np.int64]:
        """The same as an array (L,)."""
        points = np.frombuffer(self._fold(text).encode("utf-32-le", "surrogatepass"), dtype="<u4")
        found: npt.NDArray[np.int64] = self._table[np.minimum(points, len(self._table) - 1)]
        return found if found.all() else found[found != BLANK]

    def decode(self, labels: Sequence[int]) -> str:
        """Text of labels without blanks."""
        return "".join(self.vocabulary[label] for label in labels)

    def unknown(self, text: str) -> list[str]:
        """Characters of a text that the vocabulary lacks."""
        folded = self._fold(text)
        return [] if self._labels.keys() >= set(folded) else [char for char in folded if char not in self._labels]

    def _fold(self, text: str) -> str:
        return text.lower() if self.lowercase else text


class ListTokenizer:
    """One label a token of a given list, for texts whose tokens stand between spaces, such as phonemes.

    Attributes:
        blank_last: see `blank`.

    Args:
        texts: not looked at.
        vocabulary_file: one token a line, without the blank.
        blank: where other programs that use the list have the blank, `first` or `last`; here it is always label 0.
        vocabulary: tokens of a trained model, instead of the file's.
    """

    def __init__(
        self,
        texts: Iterable[str] = (),  # noqa: ARG002
        *,
        vocabulary_file: str | None = None,
        blank: str = "last",
        vocabulary: Sequence[str] | None = None,
    ) -> None:
        listed = read_vocabulary(Path(vocabulary_file).expanduser()) if vocabulary is None and vocabulary_file is not None else []
        self.vocabulary = list(vocabulary) if vocabulary is not None else ["", *listed]
        self.blank_last = blank == "last"
        self._labels = {token: label for label, token in enumerate(self.vocabulary) if label != BLANK}

    def encode(self, text: str) -> list[int]:
        """Labels of a text; tokens outside the list are left out."""
        return [self._labels[token] for token in text.split() if token in self._labels]

    def decode(self, labels: Sequence[int]) -> str:
        """Text of labels without blanks."""
        return " ".join(self.vocabulary[label] for label in labels)

    def unknown(self, text: str) -> list[str]:
        """Tokens of a text that the list lacks."""
        return [token for token in text.split() if token not in self._labels]


class WordTokenizer:
    """One label a word, in the order of their names.

    Args:
        texts: training texts.
        min_count: times that a word must stand in them; rarer words are `unknown`.
        unknown: token for all other words; None: they have no label.
        vocabulary: words of a trained model, instead of those of `texts`.
    """

    def __init__(
        self,
        texts: Iterable[str] = (),
        *,
        min_count: int = 1,
        unknown: str | None = None,
        vocabulary: Sequence[str] | None = None,
    ) -> None:
        counts = Counter(word for text in texts for word in text.split())
        listed = sorted({word for word, count in counts.items() if count >= min_count} | ({unknown} if unknown is not None else set()))
        self.vocabulary = list(vocabulary) if vocabulary is not None else ["", *listed]
        self._labels = {token: label for label, token in enumerate(self.vocabulary) if label != BLANK}
        self._unknown = self._labels.get(unknown) if unknown is not None else None

    def encode(self, text: str) -> list[int]:
        """Labels of a text."""
        found = (self._labels.get(word, self._unknown) for word in text.split())
        return [label for label in found if label is not None]

    def decode(self, labels: Sequence[int]) -> str:
        """Text of labels without blanks."""
        return " ".join(self.vocabulary[label] for label in labels)

    def unknown(self, text: str) -> list[str]:
        """Words of a text that have no label."""
        return [] if self._unknown is not None else [word for word in text.split() if word not in self._labels]


class LabelTokenizer:
    """One label a whole text: the classes of a classification.

    Args:
        texts: training texts.
        classes: in the order of their labels; None: all training texts, sorted.
        unknown: name of the class that every other text belongs to; None: other texts belong to none.
        vocabulary: classes of a trained model, instead of the above.

    Raises:
        DataError: a training text belongs to no class, or there is only one class.
    """

    def __init__(
        self,
        texts: Iterable[str] = (),
        *,
        classes: Sequence[str] | None = None,
        unknown: str | None = None,
        vocabulary: Sequence[str] | None = None,
    ) -> None:
        self.unknown_class = unknown
        if vocabulary is not None:
            self.vocabulary = list(vocabulary)
            self._labels = {token: label for label, token in enumerate(self.vocabulary)}
            return
        counts = Counter(texts)
        listed = list(classes) if classes is not None else sorted(counts)
        self.vocabulary = list(dict.fromkeys([*listed, *([unknown] if unknown is not None else [])]))
        self._labels = {token: label for label, token in enumerate(self.vocabulary)}
        others = {text: count for text, count in counts.items() if text not in self._labels}
        if others and unknown is None:
            shown = ", ".join(f"'{text}' ({count}x)" for text, count in list(others.items())[:8])
            raise DataError(
                f"tokenizer.classes lacks texts of the training data: {shown}\n"
                "    -> add them, or set tokenizer.unknown=_unknown_ to make them one class"
            )
        if counts and len(self.vocabulary) < 2:
            raise DataError(f"there is only one class in the training data: {self.vocabulary}\n    -> give data with at least two")
        if len(self.vocabulary) > _MANY_CLASSES and len(self.vocabulary) > counts.total() / 2:
            raise DataError(
                f"{len(self.vocabulary)} classes in {counts.total()} training utterances: the texts seem to be sentences, not classes\n"
                "    -> use task=ctc, or name the classes in tokenizer.classes"
            )

    def encode(self, text: str) -> list[int]:
        """The class of a text; empty if it belongs to none."""
        name = text if text in self._labels else self.unknown_class
        return [self._labels[name]] if name is not None and name in self._labels else []

    def decode(self, labels: Sequence[int]) -> str:
        """The class' name."""
        return " ".join(self.vocabulary[label] for label in labels)

    def unknown(self, text: str) -> list[str]:
        """The text, if it belongs to no class."""
        return [] if self.encode(text) else [text]


_MANY_CLASSES = 50


def read_vocabulary(path: Path) -> list[str]:
    """Tokens of a file, one a line.

    Raises:
        DataError: there is no such file, it is empty, or a token stands twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})\n    -> give a vocabulary with one token a line") from None
    while lines and not lines[-1].strip():
        lines.pop()
    tokens = [line.strip() for line in lines]
    seen: dict[str, int] = {}
    for number, token in enumerate(tokens, start=1):
        if not token:
            raise DataError(f"{path}:{number}: an empty line in between\n    -> one token a line; tokens are numbered by their lines")
        if token in seen:
            raise DataError(f"{path}:{number}: '{token}' stands already in line {seen[token]}\n    -> each token once")
        seen[token] = number
    if not tokens:
        raise DataError(f"{path}: is empty\n    -> give a vocabulary with one token a line")
    return tokens


def count_repeats(labels: npt.NDArray[Any]) -> int:
    """Equal neighbours, between which CTC needs a blank."""
    return int(np.count_nonzero(labels[1:] == labels[:-1]))
