"""Alignment of recordings, or of a data set, with their texts."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from speechtrain.config.experiment import ExperimentConfig
from speechtrain.config.overlay import overlaid
from speechtrain.config.schemas.commands import AlignConfig
from speechtrain.data.corpus import Skip
from speechtrain.decode.align import Word, align, path_score, words_of
from speechtrain.decode.pauses import between_pauses
from speechtrain.errors import DataError, unwritable
from speechtrain.files import is_file, user_path
from speechtrain.inference.find import StoredModel
from speechtrain.inference.formats import as_object, ctm, textgrid

if TYPE_CHECKING:
    from speechtrain.data.audio import Audio
    from speechtrain.data.text.tokenizers import Tokenizer
    from speechtrain.inference.recognizer import Recognizer


log = logging.getLogger(__name__)


_DOUBTFUL = 2.5
"""Nats a token: own texts of recordings, also in speech that a model is not made for, had up to 2.2, others 2.7 to 8 (`docs/log.md`)."""
_NAMES_FILE = ".alignments"
"""Name of the file in a folder of alignments with the names of those that a call wrote."""


@dataclass(frozen=True)
class Alignment:
    """The times at which the words and tokens of a text were spoken.

    Attributes:
        duration: duration of the recording, s.
        score: mean log-probability per frame on the best path of the text.
        log_likelihood_ratio: by how many nats for each token the path of the text is less probable than the best path of any text.
        heard: text of the best path of any text.
    """

    words: tuple[Word, ...]
    tokens: tuple[Word, ...]
    duration: float
    score: float
    log_likelihood_ratio: float
    heard: str

    @property
    def is_doubtful(self) -> bool:
        """Return whether the text does not seem to be what is said."""
        return self.log_likelihood_ratio > _DOUBTFUL


def align_text(
    log_probs: npt.NDArray[np.float32], text: str, tokenizer: Tokenizer, samples: Audio, sample_rate: int, frame_seconds: float
) -> Alignment:
    """Align a text with a model's outputs for a recording.

    Args:
        log_probs: (T', V) of the blank and the tokenizer's labels.
        text: the text that was spoken.
        tokenizer: tokenizer of the model.
        samples: (N,) that the outputs were computed from; words reach up to the pauses in them.
        sample_rate: sample rate of the samples, Hz.
        frame_seconds: time between two encoder frames, s.

    Raises:
        DataError: the text has tokens that the model lacks, or needs more frames than the recording has.
    """
    duration = len(samples) / sample_rate
    if unknown := tokenizer.unknown(text):
        tokens = ", ".join(map(repr, dict.fromkeys(unknown)))
        raise DataError(
            f"the text {text[:60]!r} holds {tokens}, which the model has no token for\n    -> write it as the model was trained"
        )
    labels = tokenizer.encode(text)
    spans = align(log_probs, labels)
    if spans is None:
        raise DataError(
            f"the text {text[:60]!r} has {len(labels)} tokens, and the recording of {duration:.2f} s only {len(log_probs)} frames"
            "\n    -> give the recording that it belongs to"
        )
    names = tokenizer.vocabulary
    times = [(frame_seconds * span.start, min(frame_seconds * span.end, duration)) for span in spans]
    words = between_pauses(words_of(spans, tokenizer, frame_seconds), samples, sample_rate)
    score = path_score(log_probs, spans)
    best = log_probs.argmax(-1)
    labels_heard = best[np.flatnonzero(np.diff(best, prepend=-1))]
    return Alignment(
        tuple(words),
        tuple(Word(names[span.label], *time, span.probability) for span, time in zip(spans, times, strict=True) if span.label),
        duration,
        score,
        (float(log_probs.max(-1).sum()) - score * len(log_probs)) / max(1, len(labels)),
        tokenizer.decode([int(label) for label in labels_heard if label]).strip(),
    )


def alignments(cfg: AlignConfig, overrides: Sequence[str], model: StoredModel) -> Iterator[tuple[str, str, Alignment | DataError | Skip]]:
    """Yield (id, text, alignment) of the one recording, or of all utterances of a split; one that cannot be aligned comes with its error.

    Those that were bad, of which the user has been told, come first.

    Args:
        cfg: config of the command.
        overrides: overrides of the model's config.
        model: what `stored_for` found.

    Raises:
        UserError: the model or the data cannot be used.
    """
    weights, stored, vocabulary = model
    settings = overlaid(stored, overrides, split=cfg.split)
    from speechtrain.data.audio import MIXED
    from speechtrain.data.corpus import read_header
    from speechtrain.inference.recognizer import Recognizer

    recognizer = Recognizer.of(weights, settings, vocabulary)
    if cfg.audio is not None and cfg.text is not None:
        path = user_path(cfg.audio)
        channels = read_header(path, None).channels
        if channels > 1 and recognizer.channel is None:
            log.warning(MIXED.format(name=path, channels=channels))
        yield path.stem, cfg.text, recognizer.align(path, cfg.text)
        return
    yield from _of_data(recognizer, settings, cfg.split)


def _of_data(recognizer: Recognizer, settings: ExperimentConfig, split: str) -> Iterator[tuple[str, str, Alignment | DataError | Skip]]:
    from speechtrain.data.prepare import prepare_split

    data = prepare_split(settings, split, recognizer.tokenizer, threads=2).for_task(recognizer.task)
    cuts = {str(cut.id): cut for cut in data.corpus.splits[split]}
    yield from ((skip.where, "", skip) for skip in data.corpus.skipped if skip.is_bad)
    loader = data.loader(split)
    assert loader is not None
    for batch, outputs in recognizer.backend.predict(recognizer.model, loader, recognizer.task):
        for row, utterance in enumerate(batch.ids):
            cut = cuts[utterance]
            try:
                samples = data.corpus.read(cut, recognizer.sample_rate)
                yield utterance, cut.text, recognizer.align_outputs(outputs.values[row, : outputs.lengths[row]], cut.text, samples)
            except DataError as error:
                yield utterance, cut.text, error


@dataclass(frozen=True)
class AlignmentCounts:
    """Counts what a call of `align` wrote, and names what is wrong.

    Attributes:
        count: number of utterances that were aligned.
        utterances: number of all utterances.
        doubtful: messages for those that were aligned with a text which does not seem to be what is said.
        bad: messages for the utterances that could not be aligned.
    """

    count: int
    utterances: int
    doubtful: list[str]
    bad: list[str]


def write(aligned: Iterator[tuple[str, str, Alignment | DataError | Skip]], folder: Path, formats: Sequence[str]) -> AlignmentCounts:
    """Write the alignments, and remove those that an earlier call wrote into the folder.

    Raises:
        UserError: the folder cannot be written.
    """
    from speechtrain.files import numbered, write_text

    bad, doubtful = [], []
    ctms, objects = [], []
    names: set[str] = set()
    files: list[str] = []
    utterances = 0
    try:
        before = _files_before(folder)
        for utterance, text, alignment in aligned:
            utterances += 1
            if isinstance(alignment, DataError):
                bad.append(f"{utterance}: {alignment}")
            if not isinstance(alignment, Alignment):
                continue
            if alignment.is_doubtful:
                doubtful.append(f"{utterance}: {text[:60]!r} does not seem to be said; the model hears {alignment.heard[:60]!r}")
            if "textgrid" in formats:
                name = numbered(re.sub(r"[^A-Za-z0-9._-]", "_", utterance), names)
                files.append(f"{name}.TextGrid")
                write_text(folder / files[-1], textgrid(alignment))
            ctms.append(ctm(utterance, alignment))
            objects.append(json.dumps(as_object(utterance, text, alignment), ensure_ascii=False) + "\n")
        for kind, name, lines in (("ctm", "words.ctm", ctms), ("json", "alignments.jsonl", objects)):
            if kind in formats:
                files.append(name)
                write_text(folder / name, "".join(sorted(lines)))
        for name in before - set(files):
            (folder / name).unlink(missing_ok=True)
        write_text(folder / _NAMES_FILE, "".join(f"{name}\n" for name in files))
    except OSError as error:
        raise unwritable(folder, error, "out") from error
    return AlignmentCounts(len(ctms), utterances, doubtful, bad)


def _files_before(folder: Path) -> set[str]:
    """Return the names of the files that an earlier call wrote into a folder, and nobody has corrected since, as people do in Praat."""
    if not is_file(folder / _NAMES_FILE):
        return set()
    written = (folder / _NAMES_FILE).stat().st_mtime_ns
    names = (folder / _NAMES_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    own = [name for name in names if name == Path(name).name and name.endswith((".TextGrid", ".ctm", ".jsonl")) and is_file(folder / name)]
    corrected = [name for name in own if (folder / name).stat().st_mtime_ns > written]
    if corrected:
        log.warning("%s: %d files of an earlier call were changed since, such as %s, and stay", folder, len(corrected), corrected[0])
    return set(own) - set(corrected)
