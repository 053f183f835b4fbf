"""N-gram language models in ARPA files: estimated from text, written, read and queried.

    python -m speechtrain.lm text=corpus.txt out=lm.arpa order=3

Files of other programs (KenLM's `lmplz`, SRILM) are read as well; KenLM's binary files need its Python module.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from speechtrain.data.text.lines import lines_of
from speechtrain.errors import DataError
from speechtrain.files import atomically, is_file

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
Gram = tuple[str, ...]
_NEVER = -99.0  # log10, as ARPA files have it for what is never asked for


class LanguageModel(Protocol):
    """Gives beam search the probability of a word behind others, as a natural logarithm."""

    order: int
    """Words that one probability depends on, itself included."""

    def log_prob(self, history: Gram, word: str) -> float:
        """Return the log-probability of a word behind those of `history`, which begins with `<s>` at the start of a sentence."""
        ...

    def __contains__(self, word: str) -> bool: ...


class NGram:
    """An n-gram model with back-off (Katz 1987), as an ARPA file has it.

    Args:
        order: length of the longest n-grams.
        probabilities: log10 of each n-gram's last word behind the others.
        backoffs: log10 of the weight of the shorter history, where it is not 1.
    """

    def __init__(self, order: int, probabilities: dict[Gram, float], backoffs: dict[Gram, float]) -> None:
        self.order = order
        self.probabilities = probabilities
        self.backoffs = backoffs

    def __contains__(self, word: str) -> bool:
        return (word,) in self.probabilities

    def log_prob(self, history: Gram, word: str) -> float:
        """Return the natural logarithm of the probability of a word; an unknown one counts as `<unk>`, and without it never comes."""
        if (word,) not in self.probabilities:
            word = UNKNOWN
        gram: Gram = (*history[max(0, len(history) - self.order + 1) :], word)
        weight = 0.0
        while gram not in self.probabilities and len(gram) > 1:
            weight += self.backoffs.get(gram[:-1], 0.0)
            gram = gram[1:]
        return (weight + self.probabilities.get(gram, _NEVER)) * math.log(10)

    def perplexity(self, sentences: Iterable[Sequence[str]]) -> float:
        """Compute the perplexity of texts, the ends of sentences included."""
        total, count = 0.0, 0
        for words in sentences:
            history: Gram = (BEGIN,)
            for word in (*words, END):
                total += self.log_prob(history, word)
                history = (*history, word)
            count += len(words) + 1
        return math.exp(-total / max(1, count))

    @classmethod
    def estimate(cls, sentences: Iterable[Sequence[str]], order: int) -> NGram:
        """Estimate a model by interpolated Kneser-Ney with three discounts an order (Chen and Goodman 1999, section 3).

        Raises:
            DataError: the sentences hold no words.
        """
        raw = _counted(sentences, order)
        if not raw[0]:
            raise DataError("the text for the language model holds no words\n    -> give a file with a sentence a line")
        counts = [_continuations(raw, size) for size in range(1, order)] + [raw[-1]]
        vocabulary = {word for (word,) in raw[0]} - {BEGIN} | {UNKNOWN}
        probabilities: dict[Gram, float] = {}
        backoffs: dict[Gram, float] = {}
        values: dict[Gram, float] = {(): 1 / len(vocabulary)}
        for size, grams in enumerate(counts, start=1):
            discounts = _discounts(grams)
            total: defaultdict[Gram, float] = defaultdict(float)
            discounted: defaultdict[Gram, float] = defaultdict(float)
            for gram, count in grams.items():
                if gram[-1] != BEGIN:
                    total[gram[:-1]] += count
                    discounted[gram[:-1]] += discounts[min(count, 3) - 1]
            weights = {history: discounted[history] / total[history] for history in total}
            interpolated = {
                gram: (count - discounts[min(count, 3) - 1]) / total[gram[:-1]] + weights[gram[:-1]] * values[gram[1:] if size > 1 else ()]
                for gram, count in grams.items()
                if gram[-1] != BEGIN
            }
            if size == 1:
                interpolated[(UNKNOWN,)] = weights[()] * values[()]
            else:
                backoffs |= {history: math.log10(weight) for history, weight in weights.items()}
            probabilities |= {gram: math.log10(value) for gram, value in interpolated.items()}
            values = interpolated
        probabilities[(BEGIN,)] = _NEVER
        return cls(order, probabilities, backoffs)

    def write(self, path: Path) -> None:
        """Write an ARPA file, which appears whole or not at all."""
        by_order = [sorted(gram for gram in self.probabilities if len(gram) == size) for size in range(1, self.order + 1)]
        with atomically(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.write("\\data\\\n" + "".join(f"ngram {size}={len(grams)}\n" for size, grams in enumerate(by_order, start=1)))
            for size, grams in enumerate(by_order, start=1):
                file.write(f"\n\\{size}-grams:\n")
                for gram in grams:
                    weight = f"\t{self.backoffs[gram]:.6f}" if gram in self.backoffs else ""
                    file.write(f"{self.probabilities[gram]:.6f}\t{' '.join(gram)}{weight}\n")
            file.write("\n\\end\\\n")

    @classmethod
    def read(cls, path: Path) -> NGram:
        """Read an ARPA file, which may be compressed (`.gz`).

        Raises:
            DataError: the file cannot be read, is cut off or damaged, has a line that no ARPA file has, words without a 1-gram, or
                other counts than it states.
        """
        file, number = _ArpaReader(), 0
        for number, line in lines_of(path, _FIX):
            try:
                file.take(line.strip())
            except ValueError as error:
                raise DataError(f"{path}:{number}: is no line of an ARPA file ({error})\n    -> {_FIX}") from None
        if not file.probabilities:
            raise DataError(f"{path}: holds no n-grams\n    -> {_FIX}")
        if file.section != _END:
            raise DataError(f"{path}: ends in line {number} without {_END}, so something is missing\n    -> {_FIX}")
        found = Counter(map(len, file.probabilities))
        if file.stated != found:
            raise DataError(f"{path}: holds {_counts(found)}, and states {_counts(file.stated)}\n    -> {_FIX}")
        return cls(max(found), file.probabilities, file.backoffs)


class NGramTable:
    """Looks up what an n-gram model says of each of some words behind a history, all at once.

    Args:
        model: the model.
        words: V of them; one that the model lacks counts as `<unk>`.
    """

    def __init__(self, model: NGram, words: Sequence[str]) -> None:
        known = {word: place for place, word in enumerate(dict.fromkeys([UNKNOWN, *(word for word in words if word in model)]))}
        self._columns = np.array([known.get(word, 0) for word in words])
        self._order = model.order
        self._backoffs = model.backoffs
        places: defaultdict[Gram, list[int]] = defaultdict(list)
        values: defaultdict[Gram, list[float]] = defaultdict(list)
        for gram, probability in model.probabilities.items():
            if (place := known.get(gram[-1])) is not None:
                places[gram[:-1]].append(place)
                values[gram[:-1]].append(probability)
        self._seen = {history: (np.array(places[history]), np.array(values[history])) for history in places}
        self._nothing = np.full(len(known), _NEVER)

    def __call__(self, history: Gram) -> npt.NDArray[np.float64]:
        """Return the natural logarithm of the probability of each word (V,) behind others; see `NGram.log_prob`."""
        history = history[max(0, len(history) - self._order + 1) :]
        row = self._nothing.copy()
        for begin in range(len(history), -1, -1):  # from the shortest history, which is none, to the longest
            row += self._backoffs.get(history[begin:], 0.0) if begin < len(history) else 0.0
            if (found := self._seen.get(history[begin:])) is not None:
                row[found[0]] = found[1]
        scaled: npt.NDArray[np.float64] = row[self._columns] * math.log(10)
        return scaled


_DATA, _END = "\\data\\", "\\end\\"
_FIX = "give an ARPA file; python -m speechtrain.lm makes one"
_FIGURES = re.compile(r"[-+.eE0-9]+", re.ASCII)
_LEAST, _MOST_BACKOFF = -10_000.0, 100.0
"""The least logarithm that a file may have, and the greatest of a back-off weight: sums of them stay finite."""


class _ArpaReader:
    """What the lines of an ARPA file have said so far."""

    def __init__(self) -> None:
        self.section = ""
        self.stated: dict[int, int] = {}
        self.probabilities: dict[Gram, float] = {}
        self.backoffs: dict[Gram, float] = {}
        self._size = 0

    def take(self, line: str) -> None:
        """Read the next line.

        Raises:
            ValueError: no ARPA file has it there.
        """
        if line and self.section == _END:
            raise ValueError(f"nothing may follow {_END}")
        if line in (_DATA, _END) or re.fullmatch(r"\\.*-grams:", line):
            self._begin(line)
        elif self.section == _DATA and line:
            self._read_count(line)
        elif self.section and line:
            self._read_entry(line)

    def _begin(self, section: str) -> None:
        if section not in (_DATA, _END):
            self._size += 1
            if section != f"\\{self._size}-grams:":
                raise ValueError(f"section \\{self._size}-grams: is expected, received {section[:20]!r}")
        self.section = section

    def _read_count(self, line: str) -> None:
        match = re.fullmatch(r"ngram\s+([0-9]{1,2})\s*=\s*([0-9]{1,18})", line)
        if match is None or int(match[1]) in self.stated:
            raise ValueError("ngram SIZE=COUNT is expected, each size once")
        if count := int(match[2]):
            self.stated[int(match[1])] = count

    def _read_entry(self, line: str) -> None:
        """Read log10 of a probability, the words of an n-gram, and perhaps log10 of its back-off weight."""
        probability, *words = (field for field in line.replace("\t", " ").split(" ") if field)
        if not self._size <= len(words) <= self._size + 1:
            raise ValueError(f"an n-gram of {self._size} words is expected")
        gram = tuple(words[: self._size])
        if gram in self.probabilities:
            raise ValueError(f"'{' '.join(gram)}' is there twice")
        if self._size > 1 and (unknown := [word for word in gram if (word,) not in self.probabilities]):
            raise ValueError(f"'{unknown[0]}' is not among the 1-grams")
        self.probabilities[gram] = _logarithm(probability, 0.0)
        if len(words) > self._size:
            self.backoffs[gram] = _logarithm(words[self._size], _MOST_BACKOFF)


def _logarithm(text: str, most: float) -> float:
    value = float(text) if _FIGURES.fullmatch(text) else math.nan
    if not _LEAST <= value <= most:
        raise ValueError(f"log10 of a {'probability' if most == 0 else 'weight'} must be from {_LEAST:g} to {most:g}, received {text[:20]}")
    return value


def _counts(sizes: Mapping[int, int]) -> str:
    return ", ".join(f"{count} n-grams of {size}" for size, count in sorted(sizes.items())) or "none"


class _KenLM:
    """A model in a file that KenLM's own Python module reads."""

    def __init__(self, path: Path) -> None:
        import kenlm

        self._model = kenlm.Model(str(path))
        self._new = kenlm.State
        self.order: int = self._model.order

    def __contains__(self, word: str) -> bool:
        return word in self._model

    def log_prob(self, history: Gram, word: str) -> float:
        state, following = self._new(), self._new()
        if history[:1] == (BEGIN,):
            self._model.BeginSentenceWrite(state)
            history = history[1:]
        else:
            self._model.NullContextWrite(state)
        for earlier in history[max(0, len(history) - self.order + 1) :]:
            self._model.BaseScore(state, earlier, following)
            state, following = following, state
        return float(self._model.BaseScore(state, word, following)) * math.log(10)


def open_language_model(path: Path) -> LanguageModel:
    """Open a file in ARPA format, or in KenLM's binary format.

    Raises:
        DataError: the file cannot be read.
    """
    if not is_file(path):
        raise DataError(f"{path}: there is no such language model\n    -> python -m speechtrain.lm text=FILE out={path.name} makes one")
    if not path.name.endswith((".arpa", ".arpa.gz", ".lm", ".lm.gz")):
        try:
            return _KenLM(path)
        except ImportError:
            fix = "give an ARPA file (.arpa, .arpa.gz), or install KenLM's Python module: pip install kenlm"
            raise DataError(f"{path}: is no ARPA file by its name, and KenLM is not installed\n    -> {fix}") from None
        except (OSError, RuntimeError) as error:
            raise DataError(f"{path}: KenLM cannot read it ({error})\n    -> give an ARPA file or KenLM's binary format") from None
    return NGram.read(path)


def _counted(sentences: Iterable[Sequence[str]], order: int) -> list[Counter[Gram]]:
    """Count how often each n-gram occurs, in one counter an order."""
    counts: list[Counter[Gram]] = [Counter() for _ in range(order)]
    for sentence in sentences:
        words = (BEGIN, *sentence, END) if sentence else ()
        for size in range(1, order + 1):
            counts[size - 1].update(zip(*(words[begin:] for begin in range(size)), strict=False))
    return counts


def _continuations(raw: Sequence[Counter[Gram]], size: int) -> Counter[Gram]:
    """Count the words that each n-gram of a size follows; one at the beginning of a sentence follows none, and keeps its own count."""
    counts: Counter[Gram] = Counter(gram[1:] for gram in raw[size])
    counts.update({gram: count for gram, count in raw[size - 1].items() if gram[0] == BEGIN})
    return counts


def _discounts(grams: Counter[Gram]) -> tuple[float, float, float]:
    """Estimate the discounts of counts of 1, 2, and 3 or more (Chen and Goodman 1999, equation 26)."""
    seen = Counter(min(count, 5) for gram, count in grams.items() if gram[-1] != BEGIN)
    one, two, three, four = (seen[count] for count in range(1, 5))
    if not (one and two and three):
        return 0.5, 0.75, 0.9  # too little text to estimate them
    share = one / (one + 2 * two)
    discounts = (1 - 2 * share * two / one, 2 - 3 * share * three / two, 3 - 4 * share * four / three)
    return discounts if all(0 < value < most for value, most in zip(discounts, (1, 2, 3), strict=True)) else (0.5, 0.75, 0.9)
