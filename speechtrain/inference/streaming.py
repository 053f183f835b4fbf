"""Transcription of live signals: features, model and text a chunk at a time, with the latency of each label."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch

from speechtrain.backends.base import Stream
from speechtrain.config.experiment import class_name
from speechtrain.console import errors
from speechtrain.data.features.features import LogMel
from speechtrain.decode.greedy import GreedyDecoder
from speechtrain.errors import ConfigError, Problem
from speechtrain.inference.long_audio import quiet_place

if TYPE_CHECKING:
    from speechtrain.data.audio import Audio
    from speechtrain.inference.recognizer import Recognizer
    from speechtrain.tasks.base import Transcription

_BLOCK = 0.08  # s that are computed at a time
_LATEST = 10_000  # labels whose latency is known
_PAUSE = 0.5  # s without a label after which a text ends
_LONGEST = 30.0  # s, after which a text ends even without a pause


def check_streams(recognizer: Recognizer) -> Stream:
    """Return a fresh state of the model for a live signal.

    Raises:
        ConfigError: the model or its features need whole utterances.
    """
    problems = []
    stream = recognizer.backend.stream(recognizer.model)
    if stream is None:
        name = class_name(recognizer.cfg.model)
        fix = "train model=lstm, or model=conformer model.chunk_frames=16, with backend=torch"
        problems.append(Problem("streaming", f"{name} needs whole utterances", fix))
    features: object = recognizer.features
    if not isinstance(features, LogMel) or features.normalize != "none" or features.top_db is not None:
        fix = "train with features.normalize=none features.top_db=null"
        problems.append(Problem("streaming", "the model's features are computed from whole utterances", fix))
    if problems:
        raise ConfigError(problems)
    assert stream is not None
    return stream


class LiveFeatures:
    """Computes log-mel frames as soon as their samples are there, equal to those of the whole signal."""

    def __init__(self, features: LogMel) -> None:
        self._features = features
        self._context = -(-features.n_fft // (2 * features.hop_length)) + 1  # frames that samples reach into
        self._kept = np.zeros(0, dtype=np.float32)
        self._begin = 0  # frame that the kept samples begin with
        self._done = 0  # number of frames that were returned

    def push(self, samples: Audio) -> torch.Tensor:
        """Return the frames (t, F) that samples (N,) complete."""
        self._kept = np.concatenate([self._kept, samples])
        return self._frames(self._begin + len(self._kept) // self._features.hop_length - self._context)

    def finish(self) -> torch.Tensor:
        """Return the frames (t, F) that are left."""
        return self._frames(self._begin + self._features.num_frames(len(self._kept)))

    def _frames(self, end: int) -> torch.Tensor:
        features = self._features
        if end <= self._done:
            return torch.zeros(0, features.size)
        energies = features.mel(features.unpack(features.pack(features.spectrum(self._kept))))
        frames = features.finish(energies[self._done - self._begin : end - self._begin])
        self._done = end
        drop = max(0, self._done - self._context - self._begin)
        self._kept = self._kept[drop * features.hop_length :]
        self._begin += drop
        return frames


class LiveTranscriber:
    """Transcribes a live signal with a model that streams: a text is final at each pause.

    The signal is computed in blocks of one length, so that how it is divided when it comes changes nothing.

    Args:
        recognizer: a recognizer whose model passes `check_streams`.

    Attributes:
        received: seconds that have been computed.
        changed: whether there are labels that `partial` has not told yet.
        late: for each of the latest labels, s between the end of its frame and its log-probabilities, the time of computing them included.

    Raises:
        ConfigError: the model or its features need whole utterances.
    """

    exact = True
    """Whether texts are final as soon as they are spoken."""

    def __init__(self, recognizer: Recognizer) -> None:
        self._stream = check_streams(recognizer)
        features: object = recognizer.features
        assert isinstance(features, LogMel)
        self._recognizer = recognizer
        self._features = LiveFeatures(features)
        self._block = max(1, round(_BLOCK / (features.hop_length / features.sample_rate))) * features.hop_length
        self._waiting = np.zeros(0, dtype=np.float32)  # samples of the block that is not full yet
        self._step = recognizer.frame_seconds
        self._pause = max(1, round(_PAUSE / self._step))
        self._kept = np.zeros((0, len(recognizer.tokenizer.vocabulary)), dtype=np.float32)  # log-probabilities that are no final text yet
        self._audio = np.zeros(0, dtype=np.float32)  # samples from their beginning
        self._done = 0  # number of encoder frames before them
        self._labels: list[int] = []
        self._texts: list[str] = []
        self.received = 0.0
        self.changed = False
        self.late: deque[float] = deque(maxlen=_LATEST)

    @property
    def nbytes(self) -> int:
        """Return how many bytes are held between two blocks, those of the model's state included."""
        return self._stream.nbytes + self._kept.nbytes + self._audio.nbytes + self._waiting.nbytes

    @property
    def text(self) -> str:
        """Return all final texts as one. With a greedy decoder it is that of the whole signal, also where a word has a pause in it."""
        if isinstance(self._recognizer.task.decoder, GreedyDecoder):
            return self._recognizer.tokenizer.decode(self._labels).strip()
        return " ".join(self._texts)

    def push(self, block: Audio) -> Iterator[Transcription]:
        """Yield the texts that samples (N,) at the model's rate make final, with times from the signal's beginning."""
        self._waiting = np.concatenate([self._waiting, block])
        begin = 0
        while len(self._waiting) - begin >= self._block:
            yield from self._compute(self._waiting[begin : begin + self._block])
            begin += self._block
        self._waiting = self._waiting[begin:].copy()

    def finish(self) -> Iterator[Transcription]:
        """Yield the texts that are left at the end of the signal."""
        rest, self._waiting = self._waiting, self._waiting[:0]
        yield from self._compute(rest, last=True)
        if self.speaks():
            yield self._final(len(self._kept))

    def speaks(self) -> bool:
        """Return whether there are labels that belong to no final text yet."""
        return bool(len(self._kept) and self._kept.argmax(-1).any())

    def partial(self) -> Transcription | None:
        """Return the text of what was heard since the last final one; None: there is none."""
        self.changed = False
        return self._recognizer.decode(self._kept, offset=self._done * self._step) if self.speaks() else None

    def _compute(self, samples: Audio, *, last: bool = False) -> Iterator[Transcription]:
        self.received += len(samples) / self._recognizer.sample_rate
        self._audio = np.concatenate([self._audio, samples])
        start = time.perf_counter()
        log_probs = self._stream.push(self._features.push(samples))
        if last:
            log_probs = np.concatenate([log_probs, self._stream.push(self._features.finish()), self._stream.finish()])
        took = time.perf_counter() - start
        before = self._done + len(self._kept)
        self._kept = np.concatenate([self._kept, log_probs])
        labels = np.flatnonzero(log_probs.argmax(-1))
        self.changed = self.changed or len(labels) > 0
        if not last:
            self.late.extend(self.received - self._step * (before + int(frame) + 1) + took for frame in labels)
        yield from self._cut()

    def _cut(self) -> Iterator[Transcription]:
        """Yield the text before a pause, or a part of one without pauses; forget silence."""
        spoken = np.flatnonzero(self._kept.argmax(-1))
        if len(spoken) and len(self._kept) - spoken[-1] > self._pause:
            yield self._final(len(self._kept))
            self._drop(len(self._kept))
        elif not len(spoken):
            self._drop(max(0, len(self._kept) - self._pause))
        elif len(self._kept) * self._step > _LONGEST:
            cut = quiet_place(self._kept, len(self._kept), self._pause // 4 or 1)
            yield self._final(cut)
            self._drop(cut)

    def _final(self, frames: int) -> Transcription:
        """Return the text of the first frames that are kept."""
        log_probs, samples = self._kept[:frames], self._audio[: round(frames * self._step * self._recognizer.sample_rate)]
        final = self._recognizer.decode(log_probs, samples, offset=self._done * self._step)
        if isinstance(decoder := self._recognizer.task.decoder, GreedyDecoder):
            self._labels += decoder(log_probs[None], np.array([frames]))[0]
        elif final.text:
            self._texts.append(final.text)
        return final

    def _drop(self, frames: int) -> None:
        """Forget encoder frames with their samples, and no sample twice for fractions of one."""
        if not frames:
            return
        rate = self._recognizer.sample_rate
        begin, end = (round(at * self._step * rate) for at in (self._done, self._done + frames))
        self._kept, self._audio, self._done = self._kept[frames:].copy(), self._audio[end - begin :].copy(), self._done + frames


def transcribe_live(recognizer: Recognizer, blocks: Iterable[Audio]) -> Iterator[Transcription]:
    """Transcribe a live signal: yield a text at each pause, and print the latency of labels at the end.

    Args:
        recognizer: a recognizer whose model passes `check_streams`.
        blocks: samples (N,) at the model's rate, as they come.
    """
    transcriber = LiveTranscriber(recognizer)
    busy = 0.0
    for block in chain(blocks, [None]):
        start = time.perf_counter()
        texts = list(transcriber.finish() if block is None else transcriber.push(block))
        busy += time.perf_counter() - start
        yield from texts
    if transcriber.late:
        middle, most = np.quantile(list(transcriber.late), [0.5, 0.95])
        factor = busy / max(transcriber.received, 1e-9)
        text = f"latency after the end of a label: median {middle:.2f} s, 95 % within {most:.2f} s; real-time factor {factor:.3f}"
        errors.print(text, style="dim", markup=False)
