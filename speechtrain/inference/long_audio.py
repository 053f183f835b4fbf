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


class LongTranscriber:
    """Transcribes a recording of any length as it comes; how it is divided into blocks changes nothing.

    Args:
        recognizer: recognizer of a CTC model.
        window: seconds that the model computes at once, which is also the longest that one text can span.
        nbest: number of alternative texts, see `Recognizer.transcribe`.
    """

    exact = False
    """Whether texts are final as soon as they are spoken; here they are once a window is full, or the recording has ended."""

    def __init__(self, recognizer: Recognizer, *, window: float = 30.0, nbest: int = 0) -> None:
        self._recognizer = recognizer
        self._window = window
        self._nbest = nbest
        self._step = recognizer.frame_seconds
        self._frame = round(self._step * recognizer.sample_rate)  # samples between two encoder frames
        self._size = max(10, round(window * recognizer.sample_rate / self._frame))
        self._margin = int(_MARGIN * self._size)
        self._buffer = np.zeros(0, dtype=np.float32)  # samples of the window that is not full yet
        self._new: list[Audio] = []  # samples behind them
        self._before = 0  # number of encoder frames at the buffer's beginning that are pending or final already
        self._pending = np.zeros((0, 0), dtype=np.float32)  # log-probabilities (T', V) that are no final text yet
        self._audio = np.zeros(0, dtype=np.float32)  # their samples
        self._done = 0  # number of encoder frames whose text is final
        self._texts: list[str] = []

    @property
    def text(self) -> str:
        """Return all final texts as one."""
        return " ".join(self._texts)

    @property
    def nbytes(self) -> int:
        """Return how many bytes are held between two blocks."""
        return self._buffer.nbytes + self._pending.nbytes + self._audio.nbytes + sum(block.nbytes for block in self._new)

    def push(self, block: Audio) -> Iterator[Transcription]:
        """Yield the texts that samples (N,) at the model's rate make final, with times from the recording's beginning."""
        self._new.append(block)
        if len(self._buffer) + sum(len(each) for each in self._new) <= (self._size + 1) * self._frame:
            return
        self._join()
        while len(self._buffer) > (self._size + 1) * self._frame:
            log_probs = self._recognizer.log_probs(self._buffer[: self._size * self._frame])
            end = self._size - self._margin
            yield from self._take(log_probs[self._before : end], self._buffer[self._before * self._frame : end * self._frame])
            self._buffer = self._buffer[(end - self._margin) * self._frame :]
            self._before = self._margin

    def finish(self) -> Iterator[Transcription]:
        """Yield the texts that are left at the end of the recording."""
        if (rest := self._rest()) is not None:
            yield from self._take(*rest)
        if len(self._pending):
            yield self._decode(len(self._pending), len(self._audio))

    def partial(self) -> Transcription | None:
        """Return the text that would be final if the recording ended here, without what is final already; None: there is none."""
        pending, audio = self._pending, self._audio
        if (rest := self._rest()) is not None:
            pending = np.concatenate([pending, rest[0]]) if len(pending) else rest[0]
            audio = np.concatenate([audio, rest[1]])
        if not len(pending):
            return None
        return self._recognizer.decode(pending, audio, offset=self._done * self._step)

    def _join(self) -> None:
        self._buffer = np.concatenate([self._buffer, *self._new])
        self._new.clear()

    def _rest(self) -> tuple[npt.NDArray[np.float32], Audio] | None:
        """Return log-probabilities (T', V) and samples (N,) of the window that is not full; None: it has nothing new."""
        self._join()
        if len(self._buffer) <= self._before * self._frame:
            return None
        return self._recognizer.log_probs(self._buffer)[self._before :], self._buffer[self._before * self._frame :]

    def _take(self, log_probs: npt.NDArray[np.float32], samples: Audio) -> Iterator[Transcription]:
        """Add outputs (T', V) and their samples (N,) to what is pending, and yield what is longer than a window."""
        self._pending = np.concatenate([self._pending, log_probs]) if len(self._pending) else log_probs
        self._audio = np.concatenate([self._audio, samples])
        while len(self._pending) * self._step > self._window:
            cut = quiet_place(self._pending, round(self._window / self._step), max(1, round(_PAUSE / self._step)))
            at = round(cut * self._step * self._recognizer.sample_rate)
            yield self._decode(cut, at)
            self._pending, self._audio, self._done = self._pending[cut:], self._audio[at:], self._done + cut

    def _decode(self, frames: int, samples: int) -> Transcription:
        offset = self._done * self._step
        final = self._recognizer.decode(self._pending[:frames], self._audio[:samples], offset=offset, nbest=self._nbest)
        self._texts += [final.text] if final.text else []
        return final


def transcribe_long(recognizer: Recognizer, blocks: Iterable[Audio], *, window: float = 30.0, nbest: int = 0) -> Iterator[Transcription]:
    """Transcribe a long recording, and yield its texts with times from its beginning; a short one has one text.

    Args:
        recognizer: recognizer of a CTC model.
        blocks: samples (N,) at the model's rate, in order.
        window: see `LongTranscriber`.
        nbest: number of alternative texts, see `Recognizer.transcribe`.
    """
    transcriber = LongTranscriber(recognizer, window=window, nbest=nbest)
    for block in blocks:
        yield from transcriber.push(block)
    yield from transcriber.finish()


def quiet_place(log_probs: npt.NDArray[np.float32], most: int, pause: int) -> int:
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
