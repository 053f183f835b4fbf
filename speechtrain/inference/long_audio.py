"""Transcription of recordings of any length in constant memory: in overlapping windows, with the text cut at pauses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from speechtrain.tasks.base import Transcription

if TYPE_CHECKING:
    from speechtrain.data.audio import Audio
    from speechtrain.inference.recognizer import Recognizer

_MARGIN = 0.1  # of a window, on each side, whose outputs are discarded
_PAUSE = 0.2  # s without a label, at which a text may be cut


def transcribe_long(recognizer: Recognizer, blocks: Iterable[Audio], *, window: float = 30.0, nbest: int = 0) -> Iterator[Transcription]:
    """Transcribe a long recording, and yield its texts with times from its beginning; a short one has one text.

    Args:
        recognizer: recognizer of a CTC model.
        blocks: samples (N,) at the model's rate, in order.
        window: seconds that the model computes at once, which is also the longest that one text can span.
        nbest: number of alternative texts, see `Recognizer.transcribe`.
    """
    step = recognizer.frame_seconds
    rate = recognizer.sample_rate
    pending = np.zeros((0, 0), dtype=np.float32)
    audio = np.zeros(0, dtype=np.float32)
    done = 0  # number of encoder frames whose text was yielded
    for log_probs, samples in _windows(recognizer, blocks, window):
        pending = np.concatenate([pending, log_probs]) if len(pending) else log_probs
        audio = np.concatenate([audio, samples])
        while len(pending) * step > window:
            cut = _quiet_place(pending, round(window / step), max(1, round(_PAUSE / step)))
            at = round(cut * step * rate)
            yield recognizer.decode(pending[:cut], audio[:at], offset=done * step, nbest=nbest)
            pending, audio, done = pending[cut:], audio[at:], done + cut
    if len(pending):
        yield recognizer.decode(pending, audio, offset=done * step, nbest=nbest)


def _windows(recognizer: Recognizer, blocks: Iterable[Audio], window: float) -> Iterator[tuple[npt.NDArray[np.float32], Audio]]:
    """Yield log-probabilities (T', V) of consecutive pieces, each from the middle of a window, with the samples (N,) of the piece."""
    frame = round(recognizer.frame_seconds * recognizer.sample_rate)  # samples between two encoder frames
    size = max(10, round(window * recognizer.sample_rate / frame))
    margin = int(_MARGIN * size)
    buffer = np.zeros(0, dtype=np.float32)
    before = 0  # number of encoder frames at the buffer's beginning that were yielded already
    for block in blocks:
        buffer = np.concatenate([buffer, block])
        while len(buffer) > size * frame + frame:
            log_probs = recognizer.log_probs(buffer[: size * frame])
            end = size - margin
            yield log_probs[before:end], buffer[before * frame : end * frame]
            buffer = buffer[(end - margin) * frame :]
            before = margin
    if len(buffer) > before * frame:
        yield recognizer.log_probs(buffer)[before:], buffer[before * frame :]


def _quiet_place(log_probs: npt.NDArray[np.float32], most: int, pause: int) -> int:
    """Find where to cut (T', V) before frame `most`: in the middle of the last long run of blanks, else at the most probable blank."""
    blank = log_probs[:most, 0]
    bounds = np.flatnonzero(np.diff(np.concatenate([[False], log_probs[:most].argmax(-1) == 0, [False]]).astype(np.int8)))
    runs = [
        (int(begin), int(end)) for begin, end in zip(bounds[::2], bounds[1::2], strict=True) if end - begin >= pause and end > most // 3
    ]
    if runs:
        begin, end = max(runs, key=lambda run: (min(run[1] - run[0], 3 * pause), run[1]))
        return max(1, (begin + end) // 2)
    return max(1, most // 2 + int(blank[most // 2 :].argmax()))


def joined(pieces: Sequence[Transcription]) -> Transcription:
    """Join the texts of the pieces of a long recording; the confidence is the mean over its words."""
    words = tuple(word for piece in pieces for word in piece.words)
    text = " ".join(piece.text for piece in pieces if piece.text)
    confidence = float(np.mean([word.confidence for word in words])) if words else min((piece.confidence for piece in pieces), default=1.0)
    return Transcription(text, confidence, words)
