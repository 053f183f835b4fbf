"""N-gram language models in ARPA files: estimated from text, read and asked for probabilities.

    python -m speechtrain.lm text=corpus.txt out=lm.arpa order=3

Files of other programs (KenLM's `lmplz`, SRILM) are read as well; KenLM's binary files need its Python module.
"""

from __future__ import annotations

import gzip
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Protocol

from speechtrain.errors import DataError
from speechtrain.files import atomically

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
Gram = tuple[str, ...]
_NEVER = -99.0  # log10, as ARPA files have it for what is never asked for


class LanguageModel(Protocol):
    """What beam search asks: how likely a word is behind others. Probabilities are natural logarithms."""

    order: int
    """Words that one probability depends on, itself included."""

    def log_prob(self, history: Gram, word: str) -> float:
        """Of a word behind the words of `history` (`<s>` first, where the sentence has just begun)."""
        ...

    def __contains__(self, word: str) -> bool: ...


class NGram:
    """Probabilities with back-off (Katz 1987), as an ARPA file has them.

    Args:
        order: the longest n-gram's.
        probabilities: log10 of each n-gram's last word behind the others.
        backoffs: log10 of the weight of the shorter history, where it is not 1.
    """

    def __init__(self, order: int, probabilities: dict[Gram, float], backoffs: dict[Gram, float]) -> None:
        self.order = order
        self._probabilities = probabilities
        self._backoffs = backoffs

    def __contains__(self, word: str) -> bool:
        return (word,) in self._probabilities

    def log_prob(self, history: Gram, word: str) -> float:
        """Natural logarithm of the probability of a word; one that is not known counts as `<unk>`."""
        if (word,) not in self._probabilities:
            word = UNKNOWN
        gram: Gram = (*history[max(0, len(history) - self.order + 1) :], word)
        weight = 0.0
        while gram not in self._probabilities and len(gram) > 1:
            weight += self._backoffs.get(gram[:-1], 0.0)
            gram = gram[1:]
        return (weight + self._probabilities.get(gram, _NEVER)) * math.log(10)

    def perplexity(self, sentences: Iterable[Sequence[str]]) -> float:
        """Of texts, their ends included."""
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
        """Interpolated Kneser-Ney with three discounts an order (Chen and Goodman 1999, section 3).

        Raises:
            DataError: there is no text.
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
            left: defaultdict[Gram, float] = defaultdict(float)
            for gram, count in grams.items():
                if gram[-1] != BEGIN:
                    total[gram[:-1]] += count
                    left[gram[:-1]] += discounts[min(count, 3) - 1]
            weights = {history: left[history] / total[history] for history in total}
            found = {
                gram: (count - discounts[min(count, 3) - 1]) / total[gram[:-1]] + weights[gram[:-1]] * values[gram[1:] if size > 1 else ()]
                for gram, count in grams.items()
                if gram[-1] != BEGIN
            }
            if size == 1:
                found[(UNKNOWN,)] = weights[()] * values[()]
            else:
                backoffs |= {history: math.log10(weight) for history, weight in weights.items()}
            probabilities |= {gram: math.log10(value) for gram, value in found.items()}
            values = found
        probabilities[(BEGIN,)] = _NEVER
        return cls(order, probabilities, backoffs)

    def write(self, path: Path) -> None:
        """An ARPA file, which appears whole or not at all."""
        by_order = [sorted(gram for gram in self._probabilities if len(gram) == size) for size in range(1, self.order + 1)]
        with atomically(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.write("\\data\\\n" + "".join(f"ngram {size}={len(grams)}\n" for size, grams in enumerate(by_order, start=1)))
            for size, grams in enumerate(by_order, start=1):
                file.write(f"\n\\{size}-grams:\n")
                for gram in grams:
                    weight = f"\t{self._backoffs[gram]:.6f}" if gram in self._backoffs else ""
                    file.write(f"{self._probabilities[gram]:.6f}\t{' '.join(gram)}{weight}\n")
            file.write("\n\\end\\\n")

    @classmethod
    def read(cls, path: Path) -> NGram:
        """An ARPA file, which may be compressed (`.gz`).

        Raises:
            DataError: it cannot be read, or a line is none of an ARPA file.
        """
        probabilities: dict[Gram, float] = {}
        backoffs: dict[Gram, float] = {}
        size = order = line_number = 0
        try:
            with _opened(path) as file:
                for line_number, line in enumerate(file, start=1):  # noqa: B007 # for the message
                    text = line.strip()
                    if text.startswith("\\"):
                        size = int(text[1:].partition("-")[0]) if text.endswith("-grams:") else 0
                        order = max(order, size)
                        if text == "\\end\\":
                            break
                    elif size and text:
                        value, *words = text.split()
                        gram = tuple(words[:size])
                        if len(gram) < size or len(words) > size + 1:
                            raise ValueError(f"an n-gram of {size} words is expected")
                        probabilities[gram] = float(value)
                        if len(words) > size:
                            backoffs[gram] = float(words[size])
        except (OSError, EOFError) as error:
            raise DataError(f"{path}: cannot be read ({error})\n    -> give an ARPA file; python -m speechtrain.lm makes one") from None
        except (ValueError, UnicodeDecodeError) as error:
            raise DataError(f"{path}:{line_number}: is no line of an ARPA file ({error})\n    -> give an ARPA file") from None
        if not order:
            raise DataError(f"{path}: holds no n-grams\n    -> give an ARPA file; python -m speechtrain.lm makes one")
        if (UNKNOWN,) not in probabilities:
            probabilities[(UNKNOWN,)] = _NEVER
        return cls(order, probabilities, backoffs)


class _KenLM:
    """A file that KenLM's own module reads."""

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
    """Of a file: ARPA, or KenLM's binary format.

    Raises:
        DataError: it cannot be read.
    """
    if not path.is_file():
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


def _opened(path: Path) -> IO[str]:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")


def _counted(sentences: Iterable[Sequence[str]], order: int) -> list[Counter[Gram]]:
    """How often each n-gram occurs, by its order."""
    counts: list[Counter[Gram]] = [Counter() for _ in range(order)]
    for sentence in sentences:
        words = (BEGIN, *sentence, END) if sentence else ()
        for size in range(1, order + 1):
            counts[size - 1].update(zip(*(words[begin:] for begin in range(size)), strict=False))
    return counts


def _continuations(raw: Sequence[Counter[Gram]], size: int) -> Counter[Gram]:
    """How many words each n-gram of a size follows; those at the beginning of a sentence follow none, and keep their count."""
    found: Counter[Gram] = Counter(gram[1:] for gram in raw[size])
    found.update({gram: count for gram, count in raw[size - 1].items() if gram[0] == BEGIN})
    return found


def _discounts(grams: Counter[Gram]) -> tuple[float, float, float]:
    """What is taken from counts of 1, 2, and 3 or more (Chen and Goodman 1999, equation 26)."""
    seen = Counter(min(count, 5) for gram, count in grams.items() if gram[-1] != BEGIN)
    one, two, three, four = (seen[count] for count in range(1, 5))
    if not (one and two and three):
        return 0.5, 0.75, 0.9  # too little text to estimate them
    share = one / (one + 2 * two)
    found = (1 - 2 * share * two / one, 2 - 3 * share * three / two, 3 - 4 * share * four / three)
    return found if all(0 < value < most for value, most in zip(found, (1, 2, 3), strict=True)) else (0.5, 0.75, 0.9)


def read_sentences(path: Path) -> Iterator[list[str]]:
    """Words of each line.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with _opened(path) as file:
            for line in file:
                yield line.split()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error})\n    -> give a file with a sentence a line") from None
