"""Counts what became of the hot words of a decoder: how often each was said and found, said and missed, or found and not said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class HotWordCounts:
    """Counts the occurrences of a hot word.

    Attributes:
        found: said, and in the hypothesis of the same utterance.
        missed: said, and not in it.
        inserted: in the hypothesis, and not said.
    """

    found: int = 0
    missed: int = 0
    inserted: int = 0

    def __add__(self, other: HotWordCounts) -> HotWordCounts:
        return HotWordCounts(self.found + other.found, self.missed + other.missed, self.inserted + other.inserted)

    @property
    def said(self) -> int:
        """Return how often the word is in the references."""
        return self.found + self.missed


def count_hot_words(words: Iterable[str], texts: Iterable[tuple[str, str]], *, parted: bool) -> dict[str, HotWordCounts]:
    """Return the counts of each word; in an utterance as many occurrences are found as both of its texts have.

    Args:
        words: the hot words.
        texts: (reference, hypothesis) of each utterance.
        parted: whether spaces part words; else a word is counted wherever its letters stand, without overlaps.
    """
    counts = {word: HotWordCounts() for word in words}
    for pair in texts:
        reference, hypothesis = (text.split() if parted else text for text in pair)
        for word in counts:
            counts[word] += _of_utterance(reference.count(word), hypothesis.count(word))
    return counts


def _of_utterance(said: int, recognised: int) -> HotWordCounts:
    found = min(said, recognised)
    return HotWordCounts(found, said - found, recognised - found)


def total_of(counts: Sequence[HotWordCounts]) -> HotWordCounts:
    """Return the sums of several counts."""
    return sum(counts, HotWordCounts())
