"""Alignment of recordings, or of a data set, with their texts."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import filelock
import numpy as np
import numpy.typing as npt
import psutil

from speechtrain.config.experiment import ExperimentConfig
from speechtrain.config.overlay import overlaid
from speechtrain.config.schemas.commands import AlignConfig
from speechtrain.data.corpus import Skip
from speechtrain.decode.align import Word, align, path_score, words_of
from speechtrain.decode.pauses import between_pauses
from speechtrain.errors import DataError, UserError, counted, unwritable
from speechtrain.files import atomically, make_folder, numbered, user_path
from speechtrain.inference.find import StoredModel, check_data_named
from speechtrain.inference.formats import as_object, ctm, textgrid
from speechtrain.inference.replacement import Replacement, checksum, enumerated

if TYPE_CHECKING:
    from speechtrain.data.audio import Audio
    from speechtrain.data.text.base import Tokenizer
    from speechtrain.inference.recognizer import Recognizer


log = logging.getLogger(__name__)


_DOUBTFUL = 2.5
"""Nats a token: own texts of recordings, also in speech that a model is not made for, had up to 2.2, others 2.7 to 8 (`docs/log.md`)."""
_NAMES_FILE = ".alignments"
_LOCK = ".alignments.lock"
_TEXTGRID = ".TextGrid"
"""Name of the file in a folder of alignments with the names and checksums of those that calls wrote."""
_UNFINISHED = "unfinished-"
"""How the name of a folder begins in which a call writes; the number of its process follows."""
_LONGEST_NAME = 200
"""Letters of a file's name without ending: disks take 255, of which a temporary name and a number need some."""


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
        tokens = counted(len(labels), "token")
        raise DataError(
            f"the text {text[:60]!r} has {tokens}, and the recording of {duration:.2f} s only {len(log_probs)} frames"
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
    if cfg.audio is None:
        check_data_named(weights, overrides)
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


def write(
    aligned: Iterator[tuple[str, str, Alignment | DataError | Skip]], folder: Path, formats: Sequence[str], *, keep: bool = False
) -> AlignmentCounts:
    """Write the alignments as they come into a folder of their own, and once all are there, put them in place of those of an earlier call.

    Only what an earlier call wrote, and nobody has changed since, is replaced or removed: people correct TextGrids in Praat. If the call
    ends before all are there, those that are stay in that folder, whose name is logged then and when the next call begins; the next one
    that succeeds removes it.

    Args:
        aligned: what `alignments` yields.
        folder: the folder of the results.
        formats: names of formats.
        keep: leave the TextGrids of earlier calls that this one has no new ones of.

    Raises:
        UserError: the folder cannot be written, or another call writes into it.
    """
    with _naming(folder):
        make_folder(folder)
    with _alone_in(folder):
        return _write_alone(aligned, folder, formats, keep=keep)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other calls from writing into a folder while the block runs.

    Raises:
        UserError: another call writes into it.
    """
    lock = filelock.FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(
            f"another call of align writes into {folder}\n    -> wait until it has ended, or give out= another folder"
        ) from None
    except OSError as error:
        raise unwritable(folder, error, "out") from error
    try:
        yield
    finally:
        (folder / _LOCK).unlink(missing_ok=True)
        lock.release()


def _write_alone(
    aligned: Iterator[tuple[str, str, Alignment | DataError | Skip]], folder: Path, formats: Sequence[str], *, keep: bool
) -> AlignmentCounts:
    """Write the alignments into a folder that no other call writes into; see `write`."""
    with _naming(folder):
        earlier = [path for path in folder.glob(f"{_UNFINISHED}*") if _is_left_over(path)]
        unfinished = Path(tempfile.mkdtemp(prefix=f"{_UNFINISHED}{os.getpid()}-", dir=folder))
        if left := sorted(str(path) for path in earlier if _has_content(path)):
            log.warning("alignments of a call that ended early are in %s; they are removed when this one has succeeded", enumerated(left))
    try:
        counts = _write_all(aligned, unfinished, formats)
        with _naming(folder):
            replacement = Replacement.plan(folder, unfinished, _NAMES_FILE, kept=_TEXTGRID if keep else "")
            if replacement.others:
                changed = "these files were changed by hand, or not written by `align`, and stay as they are"
                log.warning("%s: %s: %s", folder, changed, enumerated(replacement.others))
            replacement.carry_out()
    except BaseException:
        _leave(unfinished)
        raise
    with _naming(folder):
        for path in (unfinished, *earlier):
            shutil.rmtree(path)
    return counts


@contextlib.contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Tell an error of writing the results as one of the key `out`; errors of reading the recordings must not come up in the block."""
    try:
        yield
    except OSError as error:
        raise unwritable(folder, error, "out") from error


def _is_left_over(path: Path) -> bool:
    """Return whether a folder was left by a call that has ended, in this process or in one that does not run any more."""
    process = path.name.removeprefix(_UNFINISHED).partition("-")[0]
    return path.is_dir() and process.isdecimal() and (int(process) == os.getpid() or not psutil.pid_exists(int(process)))


def _has_content(folder: Path) -> bool:
    return any(path.stat().st_size for path in folder.iterdir())


def _leave(unfinished: Path) -> None:
    """Leave what was written before an error, and say where."""
    with contextlib.suppress(OSError):
        if _has_content(unfinished):
            log.warning("what was aligned before is in %s", unfinished)
        else:
            shutil.rmtree(unfinished)


def _write_all(aligned: Iterator[tuple[str, str, Alignment | DataError | Skip]], folder: Path, formats: Sequence[str]) -> AlignmentCounts:
    """Write the alignments into an empty folder in the folder of the results.

    Raises:
        UserError: it cannot be written.
    """
    bad, doubtful = [], []
    utterances = count = 0
    with _naming(folder.parent):
        files = _Files(folder, formats)
    try:
        for utterance, text, alignment in aligned:
            utterances += 1
            if isinstance(alignment, DataError):
                bad.append(f"{utterance}: {alignment}")
            if not isinstance(alignment, Alignment):
                continue
            count += 1
            if alignment.is_doubtful:
                doubtful.append(f"{utterance}: {text[:60]!r} does not seem to be said; the model hears {alignment.heard[:60]!r}")
            with _naming(folder.parent):
                files.add(utterance, text, alignment)
    finally:
        with _naming(folder.parent):
            files.close()
    with _naming(folder.parent):
        files.sort()
    return AlignmentCounts(count, utterances, doubtful, bad)


_LISTS = {"ctm": "words.ctm", "json": "alignments.jsonl"}
"""Names of the files that hold all utterances, by format."""


class _Files:
    """The files of one call, in all formats that are asked for.

    Args:
        folder: an empty folder.
        formats: names of formats.

    Raises:
        OSError: the folder cannot be written; so do all methods.
    """

    def __init__(self, folder: Path, formats: Sequence[str]) -> None:
        self._folder = folder
        self._textgrids = "textgrid" in formats
        self._names: set[str] = set()
        self._lists = {kind: _List(folder / name) for kind, name in _LISTS.items() if kind in formats}

    def add(self, utterance: str, text: str, alignment: Alignment) -> None:
        """Write the alignment of an utterance in each of the formats."""
        if self._textgrids:
            name = numbered(_file_name(utterance), self._names)
            (self._folder / f"{name}{_TEXTGRID}").write_bytes(textgrid(alignment).encode())
        if "ctm" in self._lists:
            self._lists["ctm"].add(utterance, ctm(utterance, alignment))
        if "json" in self._lists:
            self._lists["json"].add(utterance, json.dumps(as_object(utterance, text, alignment), ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Close the lists; nothing can be added any more."""
        for each in self._lists.values():
            each.close()

    def sort(self) -> None:
        """Bring the lists, which are closed, into the order of the utterances' ids."""
        for each in self._lists.values():
            each.sort()


class _List:
    """A file with the lines of all utterances, first in the order in which they come.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")
        self._places: list[tuple[str, int, int]] = []

    def add(self, utterance: str, lines: str) -> None:
        """Append the lines of an utterance."""
        content = lines.encode()
        self._places.append((utterance, self._file.tell(), len(content)))
        self._file.write(content)

    def close(self) -> None:
        """Close the file; nothing can be added any more."""
        self._file.close()

    def sort(self) -> None:
        """Bring the lines into the order of the utterances' ids, which does not depend on how they were batched."""
        with atomically(self._path) as temporary, temporary.open("wb") as ordered, self._path.open("rb") as file:
            for _, start, length in sorted(self._places):
                file.seek(start)
                ordered.write(file.read(length))


def _file_name(utterance: str) -> str:
    """Return the name of an utterance's file without ending; of a long id it is the beginning and a checksum that tells it from others."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", utterance)
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 17]}-{checksum(utterance.encode(errors='replace'))[:16]}"
