"""Seconds of audio that a second of CPU time decodes, beside flashlight-text in turn: `python benchmarks/beam.py`.

Prefix beam search over letters, without a language model and with an n-gram of letters, which flashlight asks through Python, as it
does for every model that is not KenLM's. Outputs are made up: texts of random words, each letter in some frames, with as much doubt as a
model of little speech has. Threads pinned; CPU time, best of several rounds; the log-probability of the texts found, by all their
alignments, tells the searches apart. The figure to quote is the ratio.
"""

from __future__ import annotations

import argparse
import math
import string
import time
from collections.abc import Callable, Sequence
from typing import Any

import flashlight.lib.text.decoder as flashlight
import numpy as np
import numpy.typing as npt
import torch

from speechtrain.decode.beam import total_log_probs
from speechtrain.decode.ngram import BEGIN, END, Gram, NGram
from speechtrain.decode.prefix_search import PrefixSearch, TokenScorer

LETTERS = ["", *string.ascii_lowercase, "<space>"]  # the first is the blank
FRAME_SECONDS = 0.04
WEIGHT, BEAM, THRESHOLD = 0.5, 50, 12.0

Log = npt.NDArray[np.float32]
Search = Callable[[Log], Sequence[int]]


def made_up(rng: np.random.Generator, words: Sequence[str], doubt: float) -> Log:
    """Return log-probabilities (T', V) of a text of some words."""
    text = [LETTERS.index(each) for word in rng.choice(words, 8) for each in [*word, "<space>"]]
    scores = rng.normal(size=(sum(2 for _ in text), len(LETTERS))) * doubt
    for place, label in enumerate(text):
        scores[2 * place, label] += 4.0
        scores[2 * place + 1, 0] += 4.0
    return (scores - np.log(np.exp(scores).sum(1, keepdims=True))).astype(np.float32)


class Asked(flashlight.LM):  # type: ignore[misc]
    """Gives flashlight the n-gram model's scores, one label at a time."""

    def __init__(self, model: NGram) -> None:
        super().__init__()
        self._model = model
        self._histories: dict[Any, Gram] = {}

    def start(self, start_with_nothing: bool) -> Any:  # noqa: ARG002
        """Begin a text."""
        state = flashlight.LMState()
        self._histories = {state: (BEGIN,)}
        return state

    def score(self, state: Any, label: int) -> tuple[Any, float]:
        """Score a label."""
        following, history = state.child(label), self._histories[state]
        self._histories[following] = (*history, LETTERS[label])[-self._model.order :]
        return following, WEIGHT * self._model.log_prob(history, LETTERS[label])

    def finish(self, state: Any) -> tuple[Any, float]:
        """Score the end of the text."""
        ended = state.child(len(LETTERS))
        self._histories[ended] = ()
        return ended, WEIGHT * self._model.log_prob(self._histories[state], END)


def theirs(model: NGram | None) -> Search:
    """Return flashlight's search."""
    scorer = flashlight.ZeroLM() if model is None else Asked(model)
    options = flashlight.LexiconFreeDecoderOptions(BEAM, len(LETTERS), THRESHOLD, 1.0, 0.0, True, flashlight.CriterionType.CTC)
    decoder = flashlight.LexiconFreeDecoder(options, scorer, -1, 0, [])

    def search(log_probs: Log) -> list[int]:
        tokens = list(decoder.decode(log_probs.ctypes.data, *log_probs.shape)[0].tokens)
        return [token for place, token in enumerate(tokens) if token > 0 and (place == 0 or token != tokens[place - 1])]

    search.scorer = scorer  # type: ignore[attr-defined]  # flashlight holds no reference to it
    return search


def ours(model: NGram | None) -> Search:
    """Return the search of `decoder=beam`."""
    decoder = PrefixSearch(TokenScorer(LETTERS, model, WEIGHT), BEAM, None, THRESHOLD)
    return lambda log_probs: decoder(log_probs, 1)[0][0]


def main() -> None:
    """Print a line for each language model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list(string.ascii_lowercase), length)) for length in rng.integers(1, 9, 300)]
    model = NGram.estimate([[each for word in rng.choice(words, 8) for each in [*word, "<space>"]] for _ in range(500)], 6)
    print("doubt  model    audio s/s ours, flashlight   ratio   log p of what is found, ours - flashlight")
    for doubt in (0.5, 1.2):
        utterances = [made_up(rng, words, doubt) for _ in range(options.texts)]
        seconds = FRAME_SECONDS * sum(map(len, utterances))
        for name, each in (("none", None), ("6-gram", model)):
            searches = [ours(each), theirs(each)]
            spent = [math.inf, math.inf]
            for _ in range(options.rounds):
                for place, search in enumerate(searches):
                    start = time.process_time()
                    for log_probs in utterances:
                        search(log_probs)
                    spent[place] = min(spent[place], time.process_time() - start)
            gain = [total_log_probs(log_probs, [search(log_probs) for search in searches]) for log_probs in utterances]
            better = sum(a - b for a, b in gain) / len(gain)
            rates = [seconds / each for each in spent]
            print(f"{doubt:<5}  {name:<8} {rates[0]:>10,.0f} {rates[1]:>10,.0f}   {rates[0] / rates[1]:>10.2f}   {better:+.3f}")


if __name__ == "__main__":
    main()
