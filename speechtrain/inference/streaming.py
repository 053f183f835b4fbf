"""Transcription of live signals: features, model and text a chunk at a time, with the latency of each label."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from speechtrain.backends.base import Stream
from speechtrain.config.experiment import class_name
from speechtrain.console import errors
from speechtrain.data.features.features import LogMel
from speechtrain.errors import ConfigError, Problem

if TYPE_CHECKING:
    from speechtrain.data.audio import Audio
    from speechtrain.inference.recognizer import Recognizer
    from speechtrain.tasks.base import Transcription

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


def transcribe_live(recognizer: Recognizer, blocks: Iterable[Audio]) -> Iterator[Transcription]:
    """Transcribe a live signal: yield a text at each pause, and print the latency of labels at the end.

    Args:
        recognizer: a recognizer whose model passes `check_streams`.
        blocks: samples (N,) at the model's rate, as they come.
    """
    stream = check_streams(recognizer)
    features: object = recognizer.features
    assert isinstance(features, LogMel)
    live = LiveFeatures(features)
    step = recognizer.frame_seconds
    pause = max(1, round(_PAUSE / step))
    kept = np.zeros((0, len(recognizer.tokenizer.vocabulary)), dtype=np.float32)
    done = 0
    received = busy = 0.0
    late: list[float] = []

    def follow(log_probs: npt.NDArray[np.float32], took: float) -> Iterator[Transcription]:
        nonlocal kept, done
        before = done + len(kept)
        kept = np.concatenate([kept, log_probs])
        late.extend(received - step * (before + int(frame) + 1) + took for frame in np.flatnonzero(log_probs.argmax(-1)))
        quiet = kept.argmax(-1) == 0
        spoken = np.flatnonzero(~quiet)
        if (len(spoken) and len(kept) - spoken[-1] > pause) or len(kept) * step > _LONGEST:
            yield recognizer.decode(kept, offset=done * step)
            done, kept = done + len(kept), kept[:0]
        elif not len(spoken) and len(kept) > pause:
            done, kept = done + len(kept) - pause, kept[-pause:]

    for block in blocks:
        received += len(block) / recognizer.sample_rate
        start = time.perf_counter()
        log_probs = stream.push(live.push(block))
        took = time.perf_counter() - start
        busy += took
        yield from follow(log_probs, took)
    start = time.perf_counter()
    last = [stream.push(live.finish()), stream.finish()]
    took = time.perf_counter() - start
    yield from follow(np.concatenate(last), took)
    if len(kept) and kept.argmax(-1).any():
        yield recognizer.decode(kept, offset=done * step)
    if late:
        middle, most = np.quantile(late, [0.5, 0.95])
        factor = (busy + took) / max(received, 1e-9)
        text = f"latency after the end of a label: median {middle:.2f} s, 95 % within {most:.2f} s; real-time factor {factor:.3f}"
        errors.print(text, style="dim", markup=False)
