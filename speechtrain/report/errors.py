"""Numbers on the errors in recognised text: counts as sclite gives them, intervals, groups, confusions, calibration."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
from rapidfuzz.distance import Levenshtein

Operation = Literal["equal", "substitute", "insert", "delete"]

_SUBSTITUTION, _GAP = 4, 3
"""Costs by which NIST's sclite aligns words; an alignment of the fewest errors may split them otherwise."""


@dataclass(frozen=True)
class Aligned:
    """Pairs a word of the reference with one of the hypothesis; the missing one of an insertion or deletion is empty."""

    operation: Operation
    reference: str
    hypothesis: str


@dataclass(frozen=True)
class Utterance:
    """Holds an utterance and the text that was recognised in it.

    Attributes:
        seconds: its duration.
        confidence: probability that the text is right, 0 to 1; None if it is not known.
        words: words of the hypothesis with their confidences.
        fields: further fields of its manifest, such as the speaker.
    """

    id: str
    reference: str
    hypothesis: str
    seconds: float = math.nan
    confidence: float | None = None
    words: tuple[tuple[str, float], ...] = ()
    fields: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def alignment(self) -> list[Aligned]:
        """Return the words of the reference and the hypothesis, aligned."""
        return align_words(self.reference.split(), self.hypothesis.split())

    @cached_property
    def counts(self) -> Counts:
        """Return the numbers of errors and words of this utterance."""
        operations = Counter(item.operation for item in self.alignment)
        return Counts(
            utterances=1,
            wrong=int(self.reference.split() != self.hypothesis.split()),
            words=operations["equal"] + operations["substitute"] + operations["delete"],
            substitutions=operations["substitute"],
            insertions=operations["insert"],
            deletions=operations["delete"],
        )

    @cached_property
    def characters(self) -> tuple[int, int]:
        """Return the numbers of edits and of characters of the reference, with the spaces between words."""
        reference, hypothesis = self.reference.strip(), self.hypothesis.strip()
        return Levenshtein.distance(reference, hypothesis), len(reference)


@dataclass(frozen=True)
class Counts:
    """Counts the errors of some utterances."""

    utterances: int = 0
    wrong: int = 0
    words: int = 0
    substitutions: int = 0
    insertions: int = 0
    deletions: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    @property
    def errors(self) -> int:
        """Return the sum of substitutions, insertions and deletions."""
        return self.substitutions + self.insertions + self.deletions

    @property
    def wer(self) -> float:
        """Return the errors divided by the words of the reference; without any such word 0, or infinity where something was inserted."""
        return self.errors / self.words if self.words else (math.inf if self.errors else 0.0)


def align_words(reference: Sequence[str], hypothesis: Sequence[str]) -> list[Aligned]:
    """Return the cheapest alignment with sclite's costs: 4 a substitution, 3 an insertion or deletion."""
    if list(reference) == list(hypothesis):
        return [Aligned("equal", word, word) for word in reference]
    rows, columns = len(reference) + 1, len(hypothesis) + 1
    cost = [[_GAP * column for column in range(columns)]] + [[_GAP * row] + [0] * (columns - 1) for row in range(1, rows)]
    for row in range(1, rows):
        above, here, word = cost[row - 1], cost[row], reference[row - 1]
        for column in range(1, columns):
            diagonal = above[column - 1] + (0 if word == hypothesis[column - 1] else _SUBSTITUTION)
            here[column] = min(diagonal, above[column] + _GAP, here[column - 1] + _GAP)
    aligned: list[Aligned] = []
    row, column = rows - 1, columns - 1
    while row or column:
        left, right = reference[row - 1] if row else "", hypothesis[column - 1] if column else ""
        same = bool(row and column) and left == right
        if row and column and cost[row][column] == cost[row - 1][column - 1] + (0 if same else _SUBSTITUTION):
            aligned.append(Aligned("equal" if same else "substitute", left, right))
            row, column = row - 1, column - 1
        elif row and cost[row][column] == cost[row - 1][column] + _GAP:
            aligned.append(Aligned("delete", left, ""))
            row -= 1
        else:
            aligned.append(Aligned("insert", "", right))
            column -= 1
    return aligned[::-1]


def total(utterances: Iterable[Utterance]) -> Counts:
    """Return the sums of several counts."""
    counts = Counts()
    for utterance in utterances:
        counts += utterance.counts
    return counts


@dataclass(frozen=True)
class Interval:
    """Holds a rate and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(errors: float, size: int) -> Interval:
    """Return a share with its 95 % interval (Wilson 1927), which has an upper bound above zero where no error was seen.

    Args:
        errors: how many of `size` are wrong; an interval of nothing at all is 0 to 1.
        size: how many there are.
    """
    if not size:
        return Interval(0.0, 0.0, 1.0)
    share, square = errors / size, _Z**2
    middle = (share + square / (2 * size)) / (1 + square / size)
    half = _Z * math.sqrt(share * (1 - share) / size + square / (4 * size**2)) / (1 + square / size)
    return Interval(share, max(0.0, middle - half) if errors else 0.0, min(1.0, middle + half) if errors < size else 1.0)


_Z = 1.959963984540054
"""Standard deviations of the normal distribution that 95 % lie within."""


def bootstrap(errors: Sequence[int], sizes: Sequence[int], *, units: int | None = None, count: int = 1000, seed: int = 0) -> Interval:
    """Return a corpus rate with its percentile interval from utterances drawn with replacement (Bisani and Ney 2004).

    Draws of no errors have none, and those of a few too seldom more than there are. A bound is therefore that of `wilson` where that is
    further away: where there is no error, about 3.8 divided by the words.

    Args:
        errors: errors of each utterance.
        sizes: words or characters of each reference.
        units: how many independent pieces `wilson` counts: the words, for characters, whose errors come together; None: the sum of sizes.
        count: number of draws.
        seed: seed of the draws.
    """
    top, bottom = np.asarray(errors, dtype=np.float64), np.asarray(sizes, dtype=np.float64)
    value = float(top.sum() / max(1.0, bottom.sum()))
    rates = resampled(np.stack([top, bottom]), count=count, seed=seed)
    low, high = map(float, np.quantile(rates[0] / np.maximum(1.0, rates[1]), [0.025, 0.975]))
    pieces = int(bottom.sum()) if units is None else units
    if pieces and value <= 1:  # more errors than words are no share
        wider = wilson(value * pieces, pieces)
        low, high = min(low, wider.low), max(high, wider.high)
    return Interval(value, low, high)


def resampled(values: npt.NDArray[np.float64], *, count: int, seed: int) -> npt.NDArray[np.float64]:
    """Return the sums (K, count) over utterances drawn with replacement from values (K, N), the same draw for every row."""
    rng = np.random.default_rng(seed)
    size = values.shape[1]
    sums = np.empty((len(values), count))
    for draw in range(count):
        sums[:, draw] = values @ np.bincount(rng.integers(0, size, size), minlength=size) if size else 0.0
    return sums


@dataclass(frozen=True)
class Comparison:
    """Compares two systems on the same utterances.

    Attributes:
        difference: rate of the second minus that of the first, with its interval.
        better: share of draws in which the second has fewer errors (the probability of improvement).
        p_value: two-sided: how often chance alone gives a difference as large.
    """

    difference: Interval
    better: float
    p_value: float


def paired_bootstrap(
    first: Sequence[int], second: Sequence[int], sizes: Sequence[int], *, count: int = 10_000, seed: int = 0
) -> Comparison:
    """Return whether two systems differ, from utterances drawn with replacement for both at once (Bisani and Ney 2004).

    Args:
        first: errors of each utterance.
        second: errors of the other system on the same utterances.
        sizes: words of each reference.
        count: number of draws.
        seed: seed of the draws.
    """
    gap = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    words = np.asarray(sizes, dtype=np.float64)
    sums = resampled(np.stack([gap, words]), count=count, seed=seed)
    rates = sums[0] / np.maximum(1.0, sums[1])
    value = float(gap.sum() / max(1.0, words.sum()))
    low, high = np.quantile(rates, [0.025, 0.975])
    # draws of the difference around its mean are what it would be if there were none
    p_value = float((1 + np.sum(np.abs(rates - value) >= abs(value) - 1e-12)) / (count + 1))
    better = float(np.mean(rates < 0) + 0.5 * np.mean(rates == 0))
    return Comparison(Interval(value, float(low), float(high)), better, min(1.0, p_value))


def by_field(utterances: Sequence[Utterance], name: str) -> dict[str, Counts]:
    """Return the counts for each value of a field, those with the most words first."""
    groups: dict[str, Counts] = {}
    for utterance in utterances:
        value = utterance.fields.get(name, "")
        groups[value] = groups.get(value, Counts()) + utterance.counts
    return dict(sorted(groups.items(), key=lambda item: -item[1].words))


def by_text(utterances: Iterable[Utterance]) -> dict[str, Counts]:
    """Return the counts for each text of the reference, in whatever recordings it is said; those with the most errors first."""
    groups: dict[str, Counts] = {}
    for utterance in utterances:
        groups[utterance.reference] = groups.get(utterance.reference, Counts()) + utterance.counts
    return dict(sorted(groups.items(), key=lambda item: -item[1].errors))


def fields_of(utterances: Sequence[Utterance], *, most: int = 40) -> list[str]:
    """Return the fields that divide the utterances into groups, but not into one each."""
    names = {name for utterance in utterances for name in utterance.fields}
    names_found = []
    for name in sorted(names, key=lambda item: (item != "speaker", item)):
        values = {utterance.fields.get(name, "") for utterance in utterances}
        if 1 < len(values) <= most and len(values) <= len(utterances) / 2:
            names_found.append(name)
    return names_found


def by_duration(utterances: Sequence[Utterance], *, groups: int = 6) -> dict[str, Counts]:
    """Return the counts for ranges of duration that hold about as many utterances each."""
    timed = sorted((each for each in utterances if not math.isnan(each.seconds)), key=lambda each: each.seconds)
    counts: dict[str, Counts] = {}
    for part in np.array_split(np.arange(len(timed)), min(groups, max(1, len(timed) // 4))) if timed else []:
        chosen = [timed[index] for index in part]
        name = f"{chosen[0].seconds:.1f}–{chosen[-1].seconds:.1f} s"
        counts[name] = counts.get(name, Counts()) + total(chosen)
    return counts


def confused_words(utterances: Iterable[Utterance]) -> Counter[tuple[str, str]]:
    """Return how often each (reference, hypothesis) was confused; one of them is empty for an insertion or deletion."""
    pairs = ((item.reference, item.hypothesis) for utterance in utterances for item in utterance.alignment if item.operation != "equal")
    return Counter(pairs)


def confused_tokens(utterances: Iterable[Utterance], tokens: Callable[[str], Sequence[str]]) -> Counter[tuple[str, str]]:
    """Return the same as `confused_words` for tokens of the vocabulary, by an alignment with the fewest edits."""
    counts: Counter[tuple[str, str]] = Counter()
    for utterance in utterances:
        reference, hypothesis = tokens(utterance.reference), tokens(utterance.hypothesis)
        for edit in Levenshtein.editops(reference, hypothesis):
            left = "" if edit.tag == "insert" else reference[edit.src_pos]
            right = "" if edit.tag == "delete" else hypothesis[edit.dest_pos]
            counts[left, right] += 1
    return counts


@dataclass(frozen=True)
class Calibration:
    """Holds how well confidences match the share of words that is right.

    Attributes:
        bins: (mean confidence, share that is right, words) of each tenth that holds any.
        error: expected calibration error (Naeini et al. 2015): the mean gap between the two, weighted by words.
    """

    bins: list[tuple[float, float, int]]
    error: float


def calibration(utterances: Iterable[Utterance], *, bins: int = 10) -> Calibration | None:
    """Return the calibration of the words of the hypotheses, or None if they have no confidences."""
    confidences: list[float] = []
    right: list[bool] = []
    for utterance in utterances:
        recognized = [item for item in utterance.alignment if item.hypothesis]
        if len(recognized) == len(utterance.words):
            confidences += [confidence for _, confidence in utterance.words]
            right += [item.operation == "equal" for item in recognized]
    if not confidences:
        return None
    values, hits = np.array(confidences), np.array(right, dtype=np.float64)
    place = np.minimum((values * bins).astype(int), bins - 1)
    tenths = [
        (float(values[place == each].mean()), float(hits[place == each].mean()), int((place == each).sum()))
        for each in range(bins)
        if (place == each).any()
    ]
    error = sum(count * abs(mean - share) for mean, share, count in tenths) / len(values)
    return Calibration(tenths, float(error))


def worst(utterances: Sequence[Utterance], count: int) -> list[Utterance]:
    """Return the utterances with the most errors; of equals, the one with fewer words comes first."""
    wrong = [each for each in utterances if each.counts.errors]
    return sorted(wrong, key=lambda each: (-each.counts.errors, each.counts.words, each.id))[:count]


def trn(pairs: Iterable[tuple[str, str]]) -> str:
    """Return each (id, text) as a line in NIST's trn format, which sclite reads: the text, and behind it the id in brackets."""
    return "".join(f"{text} ({utterance})\n" for utterance, text in pairs)
