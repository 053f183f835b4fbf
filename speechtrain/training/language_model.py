"""The n-gram of a run's training texts, which `language_model` asks for."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from speechtrain.files import write_text

if TYPE_CHECKING:
    from speechtrain.tracking.recorder import RunRecorder
    from speechtrain.training.steps import Experiment


log = logging.getLogger(__name__)

LANGUAGE_MODEL, LEXICON = "lm.arpa", "words.txt"
"""Names, in a run's folder, of the n-gram of its training texts, and of their words."""

_ORDERS = {"tokens": 6, "words": 3}


def write_language_model(run: Experiment, recorder: RunRecorder) -> list[Path]:
    """Write and track the n-gram that `language_model` asks for, and of words also the list of them; what cannot be is a warning."""
    units = run.cfg.language_model
    if units is None:
        return []
    try:
        written = _write(run, units)
    except Exception as error:  # noqa: BLE001 # a language model is no reason to lose a trained model
        log.warning("the language model of the training texts could not be written (%s: %s)", type(error).__name__, error)
        return []
    recorder.files(written)
    return written


def _write(run: Experiment, units: str) -> list[Path]:
    from speechtrain.decode.beam import names_of
    from speechtrain.decode.ngram import NGram

    texts = [cut.text for cut in run.data.corpus.splits["train"]]
    written = [run.folder / LANGUAGE_MODEL]
    if units == "words":
        sentences = [text.split() for text in texts]
        written.append(run.folder / LEXICON)
        write_text(written[-1], "".join(f"{word}\n" for word in sorted(set(itertools.chain.from_iterable(sentences)))))
    else:
        names = names_of(run.data.tokenizer)
        sentences = [[names[label] for label in run.data.tokenizer.encode(text)] for text in texts]
    NGram.estimate(sentences, _ORDERS[units]).write(run.folder / LANGUAGE_MODEL)
    return written
