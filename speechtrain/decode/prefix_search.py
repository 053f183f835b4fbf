"""Prefix beam search over tokens (Graves 2012, section 7.5; Hannun et al. 2014), with an n-gram model over tokens and hot words.

A prefix is followed with the probability of all its alignments, those that end in a blank apart from the others. A frame is computed
for the whole beam at once, and what a language model says of all labels behind a history is looked up once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from speechtrain.decode.ngram import BEGIN, END, Gram, LanguageModel, NGram, NGramTable

Floats = npt.NDArray[np.float64]

_STEP = 0.1  # of a hot word's score, for each label of it before it is complete
_BYTES = 1 << 26  # of scores that are kept from one utterance to the next
_BLANK = 0


class TokenScorer:
    """Scores each label behind a prefix by a language model over tokens, and by hot words.

    A hot word's score is given label by label, and taken back where the word is not completed. Where spaces or pieces part words, a hot
    word is a whole word; elsewhere it may stand anywhere. What matters of a prefix is a state, a number: the last tokens, and how much
    of a hot word they are.

    Args:
        names: how the model writes each label; that of the blank is not asked for.
        model: language model over tokens; None: none.
        weight: factor of its log-probability.
        hot_words: labels of each hot word.
        hot_score: score of a whole hot word.
        space: label of the space between words; -1: there is none.
        starts: labels that begin a word, in vocabularies of subwords.
    """

    def __init__(
        self,
        names: Sequence[str],
        model: LanguageModel | None,
        weight: float,
        hot_words: Sequence[Sequence[int]] = (),
        hot_score: float = 0.0,
        space: int = -1,
        starts: frozenset[int] = frozenset(),
    ) -> None:
        self._names = names
        self._model = model
        self._weight = weight
        self._ngrams = NGramTable(model, names) if isinstance(model, NGram) else None
        self._asks = model is not None and self._ngrams is None
        self._hot_score = hot_score
        self._space = space
        self._words = {tuple(word) for word in hot_words}
        self._next: dict[tuple[int, ...], set[int]] = {}  # labels that go on with the first ones of a hot word
        for word in self._words:
            for length in range(len(word)):
                self._next.setdefault(word[:length], set()).add(word[length])
        self._in_words = {label for word in self._words for label in word}
        self._starts = np.zeros(len(names), dtype=bool)
        self._starts[list(starts)] = True
        self._parted = space >= 0 or bool(starts)  # else a word may begin at any label
        self.is_zero = model is None and not hot_words
        self.largest_gain = abs(hot_score) if hot_words else 0.0
        self.forget()

    def forget(self) -> None:
        """Begin with no states but the one before the first label, whose number is 0."""
        self._states: list[tuple[Gram, tuple[int, ...] | None]] = [((BEGIN,), ())]
        self._numbers = {self._states[0]: 0}
        self._following: dict[tuple[int, int], int] = {}
        self._scores = np.empty((64, len(self._names)))
        self._scores[0] = self._row(0)

    @property
    def is_full(self) -> bool:
        """Return whether so many states are known that it is better to forget them."""
        return self._scores.nbytes > _BYTES

    def scores(self, states: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]) -> Floats:
        """Return the score (K, L) of each of some labels (L,) behind each state (K,)."""
        found: Floats = self._scores[states[:, None], labels]
        if self._asks:
            for row, column in np.argwhere(np.isnan(found)).tolist():
                found[row, column] = self._ask(int(states[row]), int(labels[column]))
        return found

    def _ask(self, state: int, label: int) -> float:
        """Ask a language model for one label behind a state, and keep the answer: it has no table, and vocabularies are large."""
        assert self._model is not None
        history, part = self._states[state]
        score = self._weight * self._model.log_prob(history, self._names[label])
        self._scores[state, label] = score + (self._hot_row(part)[label] if self._words else 0.0)
        return float(self._scores[state, label])

    def follow(self, state: int, label: int) -> int:
        """Return the state behind a state and one more label."""
        found = self._following.get((state, label))
        if found is None:
            history, part = self._states[state]
            if self._model is not None:
                history = (*history, self._names[label])[-max(1, self._model.order - 1) :]
            found = self._following[state, label] = self._number((history, self._follow_hot(part, label)))
        return found

    def end(self, state: int) -> float:
        """Return the score of the end of the text behind a state."""
        history, part = self._states[state]
        score = self._end_of_hot(part)
        return score if self._model is None else score + self._weight * self._model.log_prob(history, END)

    def _number(self, state: tuple[Gram, tuple[int, ...] | None]) -> int:
        """Return the number of a state, which is a new one for a new state."""
        number = self._numbers.get(state)
        if number is None:
            number = self._numbers[state] = len(self._states)
            self._states.append(state)
            if number == len(self._scores):
                self._scores = np.concatenate([self._scores, np.empty_like(self._scores)])
            self._scores[number] = self._row(number)
        return number

    def _row(self, number: int) -> Floats:
        """Compute the score (V,) of each label behind a state."""
        history, part = self._states[number]
        row = self._hot_row(part) if self._words else np.zeros(len(self._names))
        if self._ngrams is not None:
            row = row + self._weight * self._ngrams(history)
        elif self._asks:
            row[:] = np.nan
        return row

    # --- hot words --------------------------------------------------------------------------------------------------------------------

    def _given(self, part: tuple[int, ...] | None) -> float:
        """Return the score that has been given for a part of a hot word: never more than the whole word is worth."""
        return self._hot_score * min(1.0, _STEP * len(part or ()))

    def _end_of_hot(self, part: tuple[int, ...] | None) -> float:
        """Return the rest of a hot word's score at the end of the word, or what is taken back of it."""
        return (self._hot_score if self._parted and part in self._words else 0.0) - self._given(part)

    def _hot_row(self, part: tuple[int, ...] | None) -> Floats:
        """Compute the score (V,) of each label behind a part of a hot word; None: behind a word that is none."""
        row = np.full(len(self._names), -self._given(part))
        if not self._parted:
            for label in self._in_words:
                longer = self._longest(part or (), label)
                row[label] += self._given(longer) + self._hot_score * self._complete(longer)
            return row
        if part is not None:
            for label in self._next.get(part, ()):
                row[label] += self._given((*part, label))
        row[self._starts] = self._end_of_hot(part)
        for label in self._next[()]:
            if self._starts[label]:
                row[label] += self._given((label,))
        if self._space >= 0:
            row[self._space] = self._end_of_hot(part)
        return row

    def _follow_hot(self, part: tuple[int, ...] | None, label: int) -> tuple[int, ...] | None:
        """Return the part of a hot word behind a part and one more label; None: the word is none."""
        if not self._words or label == self._space:
            return ()
        if not self._parted:
            return self._longest(part or (), label)
        if self._starts[label]:
            return (label,) if label in self._next[()] else None
        return (*part, label) if part is not None and label in self._next.get(part, ()) else None

    def _longest(self, part: tuple[int, ...], label: int) -> tuple[int, ...]:
        """Return the longest beginning of a hot word that a part and one more label end in (Aho and Corasick 1975)."""
        longer = (*part, label)
        while longer and longer not in self._next and longer not in self._words:
            longer = longer[1:]
        return longer

    def _complete(self, part: tuple[int, ...]) -> int:
        """Count the hot words that end where a part does."""
        return sum(part[-len(word) :] == word for word in self._words)


@dataclass
class _Beam:
    """Holds the prefixes that are followed, K of them.

    Attributes:
        nodes: number of each prefix.
        last: its last label.
        blank: log-probability of its alignments that end in a blank.
        label: log-probability of the others.
        scores: scores of its labels.
        states: the scorer's states behind it.
    """

    nodes: npt.NDArray[np.int64]
    last: npt.NDArray[np.int64]
    blank: Floats
    label: Floats
    scores: Floats
    states: npt.NDArray[np.int64]

    @property
    def total(self) -> Floats:
        """Return the log-probability of each prefix."""
        return np.logaddexp(self.blank, self.label)


class PrefixSearch:
    """Follows the most probable prefixes from frame to frame.

    Args:
        scorer: scores labels behind prefixes.
        beam_size: number of prefixes that are followed, K.
        beam_size_token: labels that may follow, the most probable of a frame; None: all.
        beam_threshold: greatest log-probability (natural) by which a prefix may be below the best one.
    """

    def __init__(self, scorer: TokenScorer, beam_size: int, beam_size_token: int | None, beam_threshold: float) -> None:
        self._scorer = scorer
        self._size = beam_size
        self._most_labels = beam_size_token
        self._threshold = beam_threshold

    def __call__(self, log_probs: npt.NDArray[np.float32], count: int) -> list[tuple[tuple[int, ...], float]]:
        """Return labels with their score by the scorer, of the `count` best texts for log_probs (T', V)."""
        if self._scorer.is_full:
            self._scorer.forget()
        nodes = _Prefixes()
        impossible = np.array([-np.inf])
        beam = _Beam(np.zeros(1, np.int64), np.full(1, -1), np.zeros(1), impossible, np.zeros(1), np.zeros(1, np.int64))
        for frame in log_probs.astype(np.float64):
            beam = self._advance(beam, frame, nodes)
        scores = beam.scores + [self._scorer.end(int(state)) for state in beam.states]
        best = np.argsort(-(beam.total + scores), kind="stable")[:count]
        return [(nodes.labels(int(beam.nodes[row])), float(scores[row])) for row in best]

    def _advance(self, beam: _Beam, frame: Floats, nodes: _Prefixes) -> _Beam:
        """Follow the prefixes through one more frame (V,)."""
        total = beam.total
        unextended = _Beam(beam.nodes, beam.last, total + frame[_BLANK], beam.label + frame[beam.last], beam.scores, beam.states)
        labels = self._labels(frame, total + beam.scores, unextended.total + unextended.scores)
        columns = np.full(len(frame), -1)
        columns[labels] = np.arange(len(labels))

        extended = total[:, None] + frame[labels]  # (K, L)
        repeated = np.flatnonzero((beam.last >= 0) & (columns[beam.last] >= 0))  # a label that follows itself has a blank between
        extended[repeated, columns[beam.last[repeated]]] = beam.blank[repeated] + frame[beam.last[repeated]]
        self._merge(unextended, extended, columns, nodes)

        gains = 0.0 if self._scorer.is_zero else self._scorer.scores(beam.states, labels)
        scores = np.broadcast_to(beam.scores[:, None] + gains, extended.shape)
        ranked = np.concatenate([unextended.total + unextended.scores, (extended + scores).ravel()])
        rows = self._best(ranked)
        kept, new = rows[rows < len(total)], rows[rows >= len(total)] - len(total)
        behind, column = np.divmod(new, max(1, len(labels)))
        added = labels[column]
        pairs = list(zip(behind.tolist(), added.tolist(), strict=True))
        states = [0] * len(pairs) if self._scorer.is_zero else [self._scorer.follow(int(beam.states[row]), label) for row, label in pairs]
        numbers = [nodes.number(int(beam.nodes[row]), label) for row, label in pairs]
        return _Beam(
            np.concatenate([unextended.nodes[kept], np.array(numbers, dtype=np.int64)]),
            np.concatenate([unextended.last[kept], added]),
            np.concatenate([unextended.blank[kept], np.full(len(pairs), -np.inf)]),
            np.concatenate([unextended.label[kept], extended[behind, column]]),
            np.concatenate([unextended.scores[kept], scores[behind, column]]),
            np.concatenate([unextended.states[kept], np.array(states, dtype=np.int64)]),
        )

    def _labels(self, frame: Floats, before: Floats, unextended: Floats) -> npt.NDArray[np.int64]:
        """Find the labels of a frame (V,) that may follow some prefix; those that the threshold would take out anyway are left out.

        Args:
            frame: log-probabilities.
            before: scores of the prefixes (K,).
            unextended: scores that they have behind the frame without another label.
        """
        possible = before.max() + frame + self._scorer.largest_gain >= unextended.max() - self._threshold
        possible[_BLANK] = False
        found = np.flatnonzero(possible)
        if self._most_labels is not None and len(found) > self._most_labels:
            found = found[np.argpartition(-frame[found], self._most_labels - 1)[: self._most_labels]]
        return found

    @staticmethod
    def _merge(unextended: _Beam, extended: Floats, columns: npt.NDArray[np.int64], nodes: _Prefixes) -> None:
        """Add to a prefix in the beam the paths that extend its parent by its last label."""
        row_of = {node: row for row, node in enumerate(unextended.nodes.tolist())}
        pairs = [(row, row_of.get(nodes.parents[node], -1)) for node, row in row_of.items()]
        found = np.array([(row, shorter) for row, shorter in pairs if shorter >= 0 and columns[unextended.last[row]] >= 0], dtype=np.int64)
        if len(found):
            rows, shorter = found.T
            places = shorter, columns[unextended.last[rows]]
            unextended.label[rows] = np.logaddexp(unextended.label[rows], extended[places])
            extended[places] = -np.inf

    def _best(self, ranked: Floats) -> npt.NDArray[np.int64]:
        """Find the places of the highest scores, as many as are followed, and none too far below the best."""
        rows = np.flatnonzero((ranked >= ranked.max() - self._threshold) & (ranked > -np.inf))
        if len(rows) > self._size:
            rows = rows[np.argpartition(-ranked[rows], self._size - 1)[: self._size]]
        return np.sort(rows)


class _Prefixes:
    """Numbers the prefixes that were followed; 0 is the empty one.

    Attributes:
        parents: number of each prefix without its last label.
    """

    def __init__(self) -> None:
        self.parents = [-1]
        self._last = [-1]
        self._numbers: dict[tuple[int, int], int] = {}

    def number(self, parent: int, label: int) -> int:
        """Return the number of a prefix with one more label."""
        number = self._numbers.setdefault((parent, label), len(self.parents))
        if number == len(self.parents):
            self.parents.append(parent)
            self._last.append(label)
        return number

    def labels(self, number: int) -> tuple[int, ...]:
        """Return the labels of a prefix."""
        found = []
        while number:
            found.append(self._last[number])
            number = self.parents[number]
        return tuple(reversed(found))
