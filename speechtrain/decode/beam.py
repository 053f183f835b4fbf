"""Beam search with an n-gram language model and hot words, over any text or over the words of a lexicon, where flashlight-text searches.

What it maximises, in natural logarithms:

    log p(labels | audio) + lm_weight * log p(words) + word_score * words + hot_word_score * hot words
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from speechtrain.config.extras import how_to_install
from speechtrain.data.text.lines import lines_of
from speechtrain.decode.base import Hypothesis
from speechtrain.decode.greedy import GreedyDecoder
from speechtrain.decode.ngram import BEGIN, END, UNKNOWN, Gram, LanguageModel, open_language_model
from speechtrain.decode.prefix_search import PrefixSearch, TokenScorer
from speechtrain.errors import ConfigError, DataError, Problem
from speechtrain.files import user_path

if TYPE_CHECKING:
    from speechtrain.data.text.base import Tokenizer

try:
    import flashlight.lib.text.decoder as flashlight
except ImportError:
    flashlight = None

log = logging.getLogger(__name__)

_NEVER = -1e4  # a log-probability that no path takes
_RANKED = 8  # times as many as are asked for are ranked by all their alignments
SPACE = "<space>"
"""How a language model over characters writes the one between words."""
_WORD_BEGIN = "▁"  # of sentencepiece


class BeamDecoder:
    """Prefix beam search (Hannun et al. 2014; Collobert et al. 2019 for the lexicon).

    Without a lexicon and a language model the answer is never less probable than the best path's: what the beam found and the best path
    are ranked by the probability of all their alignments.

    Args:
        tokenizer: spells words.
        beam_size: number of prefixes that are followed.
        beam_size_token: labels that may follow each, the most probable of a frame; None: all.
        beam_threshold: greatest log-probability (natural) by which a prefix may be below the best one.
        lexicon: file of the words that can be recognised, one a line; behind a tab tokens may stand between spaces. None: any text.
        lm: ARPA file (or KenLM's): over words with a lexicon or a tokenizer of words, else over tokens.
        lm_weight: factor of its log-probability.
        word_score: score added for each word, with a lexicon.
        hot_words: words that are preferred; with a lexicon they are added to it.
        hot_word_score: score added for each hot word.

    Raises:
        ConfigError: the parts do not fit, or there is a lexicon and flashlight-text is not installed.
        DataError: the lexicon or the language model cannot be read.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        beam_size: int = 50,
        beam_size_token: int | None = None,
        beam_threshold: float = 12.0,
        lexicon: str | None = None,
        lm: str | None = None,
        lm_weight: float = 1.0,
        word_score: float = 0.0,
        hot_words: Sequence[str] = (),
        hot_word_score: float = 5.0,
    ) -> None:
        _check_hot_words(hot_words, tokenizer)
        self.tokenizer = tokenizer
        self._greedy = GreedyDecoder()
        self._unweighted = lexicon is None and lm is None and not (hot_words and hot_word_score)
        vocabulary = tokenizer.vocabulary
        model = open_language_model(user_path(lm)) if lm is not None else None
        space = vocabulary.index(" ") if " " in vocabulary else -1
        self._words: list[str] | None = None  # of the lexicon
        self._end: npt.NDArray[np.float32] | None = None  # a frame that follows the last one
        if lexicon is not None:
            _check_installed()
            spellings = read_lexicon(user_path(lexicon), tokenizer)
            spellings |= {word: [tokenizer.encode(word)] for word in hot_words if word not in spellings}
            self._words = list(spellings)
            _check_known(model, self._words, lm)
            hot = {self._words.index(word): hot_word_score for word in hot_words}
            # flashlight holds no reference to the scorer
            self._scorer: Any = _WordScorer(self._words, model, lm_weight, word_score, hot)
            trie = _trie_of(spellings, self._scorer, len(vocabulary), space)
            if space > 0:
                self._end = np.full((1, len(vocabulary)), _NEVER, dtype=np.float32)  # gives the last word a space behind it
                self._end[0, space] = 0.0
            limits = beam_size, beam_size_token or len(vocabulary), beam_threshold
            options = flashlight.LexiconDecoderOptions(*limits, 1.0, 0.0, -math.inf, 0.0, True, flashlight.CriterionType.CTC)
            self._search = flashlight.LexiconDecoder(options, trie, self._scorer, space, 0, -1, [], False)
        else:
            names = names_of(tokenizer)
            _check_known(model, names[1:], lm)
            hot_labels = [tokenizer.encode(word) for word in hot_words] if hot_word_score else []
            starts = frozenset(label for label, token in enumerate(vocabulary) if token.startswith(_WORD_BEGIN))
            scorer = TokenScorer(names, model, lm_weight, hot_labels, hot_word_score, space, starts)
            self._prefixes = PrefixSearch(scorer, beam_size, beam_size_token, beam_threshold)

    def __call__(self, log_probs: npt.NDArray[np.float32], lengths: npt.NDArray[np.int64]) -> list[list[int]]:
        """Decode log_probs (B, T', V) of lengths (B,) into the labels of each utterance, without blanks."""
        return [list(self.best(row[:length], 1)[0].labels) for row, length in zip(log_probs, lengths, strict=True)]

    def best(self, log_probs: npt.NDArray[np.float32], count: int) -> list[Hypothesis]:
        """Return at most `count` hypotheses for log_probs (T', V), the best first; alignments of the same labels are one hypothesis."""
        frames = np.ascontiguousarray(log_probs, dtype=np.float32)
        if not len(frames):
            return [Hypothesis((), 0.0)]
        if not np.isfinite(frames.max(axis=1)).all():  # of a model that has diverged
            return [Hypothesis((), -math.inf)]
        scores: dict[tuple[int, ...], float] = {}  # of the language model and of words
        for labels, score in self._found(frames, _RANKED * count):
            scores.setdefault(labels, score)
        if self._unweighted:
            (greedy,) = self._greedy(frames[None], np.array([len(frames)]))
            scores.setdefault(tuple(greedy), 0.0)
        # a beam has followed some of the alignments, and in a lexicon none that gives a word's last label several frames
        totals = [total + score for total, score in zip(total_log_probs(frames, list(scores)), scores.values(), strict=True)]
        ranked = sorted(zip(totals, scores, strict=True), key=lambda item: -item[0])
        return [Hypothesis(labels, total) for total, labels in ranked[:count] if total > -math.inf] or [Hypothesis((), -math.inf)]

    def _found(self, frames: npt.NDArray[np.float32], count: int) -> list[tuple[tuple[int, ...], float]]:
        """Search, and return labels with the score of their words or tokens, the best texts first."""
        if self._words is None:
            return self._prefixes(frames, count)
        searched = frames if self._end is None else np.concatenate([frames, self._end])
        results = self._search.decode(searched.ctypes.data, *searched.shape)
        texts = [" ".join(self._words[word] for word in result.words if word >= 0) for result in results[:count]]
        return [(tuple(self.tokenizer.encode(text)), result.lmScore) for text, result in zip(texts, results, strict=False)]


def _check_installed() -> None:
    """Raise a ConfigError where flashlight-text is not installed."""
    if flashlight is None:
        raise ConfigError([Problem("decoder", "needs flashlight, which cannot be imported", how_to_install(["flashlight"]))])


def _check_hot_words(words: Sequence[str], tokenizer: Tokenizer) -> None:
    """Raise a ConfigError where the model lacks tokens of hot words."""
    problems = [
        Problem(
            "decoder.hot_words",
            f"'{word}' needs {', '.join(map(repr, unknown))}, which the model has no token for",
            "spell it with tokens of the model",
        )
        for word in words
        if (unknown := tokenizer.unknown(word))
    ]
    problems += [
        Problem("decoder.hot_words", f"'{word}' is not one word", f"give each by itself: decoder.hot_words=[{','.join(word.split())}]")
        for word in words
        if word.split() != [word]
    ]
    if problems:
        raise ConfigError(problems)


def _trie_of(spellings: Mapping[str, Sequence[Sequence[int]]], scorer: _WordScorer, size: int, space: int) -> Any:
    """Build flashlight's prefix tree of words.

    Args:
        spellings: labels of each word.
        scorer: scores the words, which it numbers in the same order.
        size: number of labels, V.
        space: label of the space between words; -1: there is none.
    """
    trie = flashlight.Trie(size, space)
    begin = scorer.start(start_with_nothing=False)
    for index, word in enumerate(spellings):
        score = scorer.score(begin, index)[1]
        for spelling in spellings[word]:
            trie.insert(spelling, index, score)
            if space > 0:  # with a space behind it there is room for a last label in several frames
                trie.insert([*spelling, space], index, score)
    trie.smear(flashlight.SmearingMode.MAX)
    return trie


def names_of(tokenizer: Tokenizer) -> list[str]:
    """Return how a language model over tokens writes each label."""
    return [SPACE if each == " " else each for each in tokenizer.vocabulary]


def total_log_probs(log_probs: npt.NDArray[np.float32], labels: Sequence[Sequence[int]]) -> list[float]:
    """Compute for each sequence of labels the log-probability of all its alignments with log_probs (T', V) together."""
    frames = torch.from_numpy(np.ascontiguousarray(log_probs)).double()[:, None]
    lengths = torch.tensor([len(frames)])
    # one at a time, as memory is that of frames times labels
    return [
        -float(torch.nn.functional.ctc_loss(frames, torch.tensor([list(each)]), lengths, torch.tensor([len(each)]), reduction="sum"))
        for each in labels
    ]


def read_lexicon(path: Path, tokenizer: Tokenizer) -> dict[str, list[list[int]]]:
    """Read the words of a file with their spellings as labels: the file's own behind a tab, else the tokenizer's.

    Raises:
        DataError: the file cannot be read, is empty, or holds words that the model has no tokens for.
    """
    spellings: dict[str, list[list[int]]] = {}
    labels = {token: label for label, token in enumerate(tokenizer.vocabulary) if label}
    for number, line in lines_of(path, "give a lexicon with one word a line"):
        word, tokens = _word_and_tokens(line, labels)
        if not word:
            continue
        missing = [token for token in tokens if token not in labels] if tokens else tokenizer.unknown(word)
        if missing:
            needed = ", ".join(f"{token!r:.40}" for token in missing[:5])
            fix = "leave the word out, or spell it behind a tab with tokens of the model"
            raise DataError(f"{path}:{number}: '{word[:60]}' needs {needed}, which the model has no token for\n    -> {fix}")
        spellings.setdefault(word, []).append([labels[token] for token in tokens] if tokens else tokenizer.encode(word))
    if not spellings:
        raise DataError(f"{path}: holds no words\n    -> give a lexicon with one word a line")
    return spellings


def _word_and_tokens(line: str, labels: Mapping[str, int]) -> tuple[str, list[str]]:
    """Return the word of a lexicon's line and its tokens: those behind a tab, or behind blanks if they can be nothing but a spelling."""
    word, tab, spelled = line.strip().partition("\t")
    first, *others = word.split(" ")
    tokens = [token for token in others if token]
    if not tab and tokens and labels.keys() >= set(tokens) and (" " not in labels or "".join(tokens) == first):
        return first, tokens
    return word.strip(), spelled.split()


def _check_known(model: LanguageModel | None, words: Sequence[str], path: str | None) -> None:
    """Check that a language model knows the words that can be recognised, and warn of those that it lacks.

    Raises:
        ConfigError: the model knows none of them.
    """
    if model is None:
        return
    missing = [word for word in words if word not in model]
    if len(missing) == len(words):
        message = f"{path} knows none of the {len(words)} words that can be recognised, such as {words[0]!r}"
        fix = "give a model over words with decoder.lexicon=FILE; without a lexicon one over tokens (speechtrain.lm from=... units=tokens)"
        raise ConfigError([Problem("decoder.lm", message, fix)])
    if missing and len(missing) < len(words):
        never = "" if UNKNOWN in model else "; without <unk> in it they can never come out"
        log.warning("%s lacks %d of %d words: %s%s", path, len(missing), len(words), ", ".join(missing[:10]), never)


_Base: Any = flashlight.LM if flashlight is not None else object


class _WordScorer(_Base):  # type: ignore[misc]
    """Scores words for flashlight by language model, word score and hot words."""

    def __init__(
        self, words: Sequence[str], model: LanguageModel | None, weight: float, word_score: float, hot: Mapping[int, float]
    ) -> None:
        super().__init__()
        self._words = words
        self._model = model
        self._weight = weight
        self._bonus = {index: word_score + hot.get(index, 0.0) for index in range(len(words))}
        self._known: dict[Any, Gram] = {}

    def start(self, start_with_nothing: bool) -> Any:  # noqa: ARG002
        state = flashlight.LMState()
        self._known = {state: (BEGIN,)}
        return state

    def score(self, state: Any, index: int) -> tuple[Any, float]:
        following = state.child(index)
        score = self._bonus[index]
        if self._model is not None:
            history = self._known[state]
            score += self._weight * self._model.log_prob(history, self._words[index])
            self._known[following] = (*history, self._words[index])[-self._model.order :]
        return following, score

    def finish(self, state: Any) -> tuple[Any, float]:
        ended = state.child(len(self._words))
        if self._model is None:
            return ended, 0.0
        self._known[ended] = ()
        return ended, self._weight * self._model.log_prob(self._known[state], END)
