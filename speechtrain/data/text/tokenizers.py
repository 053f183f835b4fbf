"""Tokenizers of characters, words, whole texts, and tokens of a list."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from speechtrain.data.text.base import BLANK, Tokenizer
from speechtrain.data.text.lines import read_lines
from speechtrain.errors import DataError
from speechtrain.files import user_path


class CharTokenizer(Tokenizer):
    """Maps each character, space included, to a label, in code-point order.

    Args:
        texts: training texts.
        lowercase: convert texts to lower case first.
        vocabulary: tokens of a trained model, instead of collecting them from `texts`.
    """

    def __init__(self, texts: Iterable[str] = (), *, lowercase: bool = False, vocabulary: Sequence[str] | None = None) -> None:
        self.lowercase = lowercase
        self.vocabulary = list(vocabulary) if vocabulary is not None else ["", *sorted(_characters(self._folded(texts)))]
        self._labels = {token: label for label, token in enumerate(self.vocabulary) if label != BLANK}
        # labels by code point; the last entry stands for all characters behind it
        self._label_of_point = np.zeros(max(map(ord, self._labels), default=0) + 2, dtype=np.int64)
        for char, label in self._labels.items():
            self._label_of_point[ord(char)] = label

    def encode(self, text: str) -> list[int]:
        """Convert a text to labels; characters outside the vocabulary are left out."""
        labels: list[int] = self.labels(text).tolist()
        return labels

    def labels(self, text: str) -> npt.NDArray[np.int64]:
        """Convert a text to an array of labels (L,), as `encode` does."""
        points = np.frombuffer(self._fold(text).encode("utf-32-le", "surrogatepass"), dtype="<u4")
        labels: npt.NDArray[np.int64] = self._label_of_point[np.minimum(points, len(self._label_of_point) - 1)]
        return labels if labels.all() else labels[labels != BLANK]

    def decode(self, labels: Sequence[int]) -> str:
        """Convert labels without blanks to text."""
        return "".join(self.vocabulary[label] for label in labels)

    def unknown(self, text: str) -> list[str]:
        """List the characters of a text that the vocabulary lacks."""
        folded = self._fold(text)
        return [] if self._labels.keys() >= set(folded) else [char for char in folded if char not in self._labels]

    def with_unknown(self, texts: Iterable[str]) -> list[int]:
        """Return the places of the texts that hold characters which the vocabulary lacks."""
        if type(self).unknown is not CharTokenizer.unknown:  # of a class derived from this one
            return super().with_unknown(texts)
        lacking, begin = [], 0
        plain = "".join(filter(str.isascii, self._labels)).encode()
        for some in _together(self._folded(texts)):
            whole = "".join(some)
            if whole.encode().translate(None, plain) if whole.isascii() else set(whole) - self._labels.keys():
                lacking += [begin + place for place, text in enumerate(some) if set(text) - self._labels.keys()]
            begin += len(some)
        return lacking

    def count_labels(self, texts: Iterable[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Count the labels of each text (N,), and the equal neighbours among them (N,)."""
        if type(self).labels is not CharTokenizer.labels or type(self).encode is not CharTokenizer.encode:
            return super().count_labels(texts)
        sizes, repeats = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
        for some in _together(self._folded(texts)):
            counts = self._count_together(some)
            sizes.append(counts[0])
            repeats.append(counts[1])
        return np.concatenate(sizes), np.concatenate(repeats)

    def _count_together(self, folded: Sequence[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Count the labels, and the equal neighbours among them, of texts that are looked up as one."""
        whole = "".join(folded)
        narrow = whole.isascii()
        points = np.frombuffer(whole.encode() if narrow else whole.encode("utf-32-le", "surrogatepass"), dtype="u1" if narrow else "<u4")
        table = self._label_of_point.astype(np.int32)
        if narrow:  # one entry for each value that a byte has
            table = table[np.minimum(np.arange(256), len(table) - 1)]
        labels = table[points if narrow else np.minimum(points, len(table) - 1)]
        ends = np.cumsum([len(text) for text in folded], dtype=np.int64)
        if not labels.all():
            is_label = labels != BLANK
            ends = np.concatenate([[0], np.cumsum(is_label)])[ends]
            labels = labels[is_label]
        repeats = np.flatnonzero(labels[1:] == labels[:-1]) + 1  # the second of two
        owners = np.searchsorted(ends, repeats, side="right")
        begins = ends - np.diff(ends, prepend=0)
        owners = owners[repeats > begins[owners]]
        return np.diff(ends, prepend=0), np.bincount(owners, minlength=len(folded))

    def _folded(self, texts: Iterable[str]) -> Iterable[str]:
        return map(str.lower, texts) if self.lowercase else texts

    def _fold(self, text: str) -> str:
        return text.lower() if self.lowercase else text


_TOGETHER = 1024
"""Texts that are looked at together."""


def _together(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield texts in lists of some length."""
    left = iter(texts)
    while some := list(itertools.islice(left, _TOGETHER)):
        yield some


def _characters(texts: Iterable[str]) -> set[str]:
    """Return the characters that occur in texts."""
    known: set[str] = set()
    plain = b""  # of these the ones of ASCII, which are sorted out faster
    for some in _together(texts):
        whole = "".join(some)
        if not whole.isascii():
            known |= set(whole)
        elif new := whole.encode().translate(None, plain):
            known |= set(new.decode())
            plain = "".join(filter(str.isascii, known)).encode()
    return known


class ListTokenizer(Tokenizer):
    """Maps each token of a given list to a label, for texts whose tokens are separated by spaces, such as phonemes.

    Attributes:
        blank_last: whether `blank` is `last`.

    Args:
        texts: ignored.
        vocabulary_file: one token a line, without the blank.
        blank: position of the blank in other programs that use the list, `first` or `last`; here it is always label 0.
        vocabulary: tokens of a trained model, instead of the file's.
    """

    counts_phonemes = True

    def __init__(
        self,
        texts: Iterable[str] = (),  # noqa: ARG002
        *,
        vocabulary_file: str | None = None,
        blank: str = "last",
        vocabulary: Sequence[str] | None = None,
    ) -> None:
        tokens = read_vocabulary(user_path(vocabulary_file)) if vocabulary is None and vocabulary_file is not None else []
        self.vocabulary = list(vocabulary) if vocabulary is not None else ["", *tokens]
        self.blank_last = blank == "last"
        self._labels = {token: label for label, token in enumerate(self.vocabulary) if label != BLANK}

    def encode(self, text: str) -> list[int]:
        """Convert a text to labels; tokens outside the list are left out."""
        return [self._labels[token] for token in text.split() if token in self._labels]

    def decode(self, labels: Sequence[int]) -> str:
        """Convert labels without blanks to text."""
        return " ".join(self.vocabulary[label] for label in labels)

    def unknown(self, text: str) -> list[str]:
        """List the tokens of a text that the vocabulary lacks."""
        return [token for token in text.split() if token not in self._labels]


class WordTokenizer(Tokenizer):
    """Maps each word to a label, in alphabetical order.

    Args:
        texts: training texts.
        min_count: how often a word must occur in them; rarer words become `unknown`.
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
        words = sorted({word for word, count in counts.items() if count >= min_count} | ({unknown} if unknown is not None else set()))
        self.vocabulary = list(vocabulary) if vocabulary is not None else ["", *words]
        self._labels = {token: label for label, token in enumerate(self.vocabulary) if label != BLANK}
        self._unknown_label = self._labels.get(unknown) if unknown is not None else None

    def encode(self, text: str) -> list[int]:
        """Convert a text to labels; without a token for unknown words they are left out."""
        labels = (self._labels.get(word, self._unknown_label) for word in text.split())
        return [label for label in labels if label is not None]

    def decode(self, labels: Sequence[int]) -> str:
        """Convert labels without blanks to text."""
        return " ".join(self.vocabulary[label] for label in labels)

    def unknown(self, text: str) -> list[str]:
        """List the words of a text that have no label."""
        return [] if self._unknown_label is not None else [word for word in text.split() if word not in self._labels]


class LabelTokenizer(Tokenizer):
    """Maps each whole text to one label: the classes of a classification.

    Args:
        texts: training texts.
        classes: names of the classes in the order of their labels; None: all training texts, sorted.
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
        names = list(classes) if classes is not None else sorted(counts)
        self.vocabulary = list(dict.fromkeys([*names, *([unknown] if unknown is not None else [])]))
        self._labels = {token: label for label, token in enumerate(self.vocabulary)}
        other_texts = {text: count for text, count in counts.items() if text not in self._labels}
        if other_texts and unknown is None:
            examples = ", ".join(f"'{text}' ({count}x)" for text, count in list(other_texts.items())[:8])
            raise DataError(
                f"tokenizer.classes lacks texts of the training data: {examples}\n"
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
        """Return the label of a text's class as a list of one; empty if it belongs to no class."""
        name = text if text in self._labels else self.unknown_class
        return [self._labels[name]] if name is not None and name in self._labels else []

    def decode(self, labels: Sequence[int]) -> str:
        """Return the name of a class."""
        return " ".join(self.vocabulary[label] for label in labels)

    def unknown(self, text: str) -> list[str]:
        """Return the text as a list of one, if it belongs to no class; otherwise an empty list."""
        return [] if self.encode(text) else [text]


_MANY_CLASSES = 50  # more than these, and than half of the utterances, are taken for sentences


def in_other_case(token: str, vocabulary: Collection[str]) -> bool:
    """Return whether a token that a vocabulary lacks is in it in small letters or in capitals."""
    return token not in vocabulary and (token.lower() in vocabulary or token.upper() in vocabulary)


def case_step(tokens: Iterable[str], vocabulary: Collection[str]) -> str:
    """Return the step of `data.normalize` that brings tokens which a vocabulary lacks into its case."""
    return "uppercase" if any(token.upper() in vocabulary for token in tokens) else "lowercase"


def read_vocabulary(path: Path) -> list[str]:
    """Read the tokens of a file, one a line.

    Raises:
        DataError: the file cannot be read, is empty, has an empty line in between, or a token twice.
    """
    lines = read_lines(path, "give a vocabulary with one token a line")
    while lines and not lines[-1].strip():
        lines.pop()
    tokens = [line.strip() for line in lines]
    seen: dict[str, int] = {}
    for number, token in enumerate(tokens, start=1):
        if not token:
            raise DataError(f"{path}:{number}: an empty line in between\n    -> one token a line; tokens are numbered by their lines")
        if token in seen:
            raise DataError(f"{path}:{number}: '{token}' is already in line {seen[token]}\n    -> each token once")
        seen[token] = number
    if not tokens:
        raise DataError(f"{path}: is empty\n    -> give a vocabulary with one token a line")
    return tokens
