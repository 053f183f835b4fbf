"""Recordings of any length in constant memory: the model hears windows that overlap, and text is cut where nothing is said."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from speechtrain.errors import DataError
from speechtrain.inference.recognizer import Recognizer, Transcription

if TYPE_CHECKING:
    from speechtrain.data.corpus import Audio

_MARGIN = 0.1  # of a window, on each side, where what the model says is not believed
_PAUSE = 0.2  # s without a label, at which a text may be cut


class Recording:
    """Samples of a file or a stream, a block at a time, at a model's rate.

    Args:
        source: a file's name, or what can be read.
        rate: Hz of what it gives.
        raw_rate: Hz of 16-bit samples without a header; None: it has one.

    Attributes:
        name: for messages.
        duration: s; None: not known before the end.

    Raises:
        DataError: it cannot be read.
    """

    def __init__(self, source: Path | IO[bytes], rate: int, raw_rate: int | None = None) -> None:
        self.name = str(source) if isinstance(source, Path) else "the standard input"
        self.rate = rate
        self._raw = raw_rate
        self._source = source
        self.duration: float | None = None
        self._file: soundfile.SoundFile | None = None
        if raw_rate is None:
            try:
                self._file = soundfile.SoundFile(str(source) if isinstance(source, Path) else io.BytesIO(source.read()))
            except (OSError, soundfile.SoundFileError) as error:
                fix = "give a WAV, FLAC, OGG or MP3 file" if isinstance(source, Path) else "give a file's content, or say raw_rate=16000"
                raise DataError(f"{self.name}: cannot be read as audio ({error})\n    -> {fix}") from None
            self.duration = self._file.frames / self._file.samplerate if self._file.frames > 0 else None

    def blocks(self, seconds: float = 10.0) -> Iterator[Audio]:
        """Samples (N,) of about so many seconds each.

        Raises:
            DataError: it is damaged, empty, or holds samples that are no numbers.
        """
        native = self._raw or (self._file.samplerate if self._file is not None else 0)
        resampler = soxr.ResampleStream(native, self.rate, 1, dtype="float32") if native != self.rate else None
        total = 0
        for block in self._read(round(seconds * native)):
            if not np.isfinite(block).all():
                raise DataError(f"{self.name}: holds samples that are NaN or infinite, {total / native:.1f} s from its beginning")
            total += len(block)
            found = resampler.resample_chunk(block) if resampler is not None else block
            if len(found):
                yield found
        if not total:
            raise DataError(f"{self.name}: holds no samples")
        if resampler is not None and len(rest := resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)):
            yield rest

    def _read(self, count: int) -> Iterator[Audio]:
        if self._file is None:
            assert not isinstance(self._source, Path)
            left = b""
            while data := self._source.read(2 * count):
                data = left + data
                left = data[len(data) - len(data) % 2 :]
                plain: Audio = np.frombuffer(data[: len(data) - len(left)], dtype="<i2").astype(np.float32) / np.float32(32768)
                yield plain
            return
        with self._file as file:
            while True:
                try:
                    block = file.read(count, dtype="float32", always_2d=True)
                except soundfile.SoundFileError as error:
                    raise DataError(f"{self.name}: is damaged ({error})") from None
                if not len(block):
                    return
                mono: Audio = block.mean(axis=1).astype(np.float32)
                yield mono


def transcribe_long(recognizer: Recognizer, blocks: Iterable[Audio], *, window: float = 30.0, nbest: int = 0) -> Iterator[Transcription]:
    """Texts of a long recording, one after the other, with times from its beginning; a short one has one text.

    Args:
        recognizer: of a CTC model.
        blocks: samples (N,) at the model's rate, in order.
        window: s that the model hears at once, and the longest text.
        nbest: see `Recognizer.transcribe`.
    """
    step = recognizer.frame_seconds
    rate = recognizer.sample_rate
    kept = np.zeros((0, 0), dtype=np.float32)
    sound = np.zeros(0, dtype=np.float32)
    done = 0  # encoder frames whose text was given
    for log_probs, samples in _windows(recognizer, blocks, window):
        kept = np.concatenate([kept, log_probs]) if len(kept) else log_probs
        sound = np.concatenate([sound, samples])
        while len(kept) * step > window:
            cut = _quiet_place(kept, round(window / step), max(1, round(_PAUSE / step)))
            at = round(cut * step * rate)
            yield recognizer.decoded(kept[:cut], sound[:at], offset=done * step, nbest=nbest)
            kept, sound, done = kept[cut:], sound[at:], done + cut
    if len(kept):
        yield recognizer.decoded(kept, sound, offset=done * step, nbest=nbest)


def _windows(recognizer: Recognizer, blocks: Iterable[Audio], window: float) -> Iterator[tuple[npt.NDArray[np.float32], Audio]]:
    """Log-probabilities (T', V) of consecutive pieces, each from the middle of a window, and the samples that they are of."""
    frame = round(recognizer.frame_seconds * recognizer.sample_rate)  # samples between two encoder frames
    size = max(10, round(window * recognizer.sample_rate / frame))
    margin = int(_MARGIN * size)
    buffer = np.zeros(0, dtype=np.float32)
    before = 0  # encoder frames at the buffer's beginning that were given already
    for block in blocks:
        buffer = np.concatenate([buffer, block])
        while len(buffer) > size * frame + frame:
            said = recognizer.log_probs(buffer[: size * frame])
            end = size - margin
            yield said[before:end], buffer[before * frame : end * frame]
            buffer = buffer[(end - margin) * frame :]
            before = margin
    if len(buffer) > before * frame:
        yield recognizer.log_probs(buffer)[before:], buffer[before * frame :]


def _quiet_place(log_probs: npt.NDArray[np.float32], most: int, pause: int) -> int:
    """Where to cut (T', V) before frame `most`: in the middle of the last long run of blanks, else where the blank is most probable."""
    blank = log_probs[:most, 0]
    bounds = np.flatnonzero(np.diff(np.concatenate([[False], log_probs[:most].argmax(-1) == 0, [False]]).astype(np.int8)))
    runs = [
        (int(begin), int(end)) for begin, end in zip(bounds[::2], bounds[1::2], strict=True) if end - begin >= pause and end > most // 3
    ]
    if runs:
        begin, end = max(runs, key=lambda run: (min(run[1] - run[0], 3 * pause), run[1]))
        return max(1, (begin + end) // 2)
    return max(1, most // 2 + int(blank[most // 2 :].argmax()))
