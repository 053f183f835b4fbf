"""A trained model and all that turns audio into its features and its output into text: load a file, then transcribe."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import soundfile
import torch
import torchaudio
from omegaconf import OmegaConf

from speechtrain.backends.files import read_extra
from speechtrain.config.build import build, plain
from speechtrain.config.checks import foreign_targets
from speechtrain.data.batches import without_references
from speechtrain.errors import ConfigError, DataError, Problem
from speechtrain.tasks.build import build_task

if TYPE_CHECKING:
    from speechtrain.backends.base import Backend
    from speechtrain.data.corpus import Audio
    from speechtrain.data.features import Features
    from speechtrain.data.tokenizer import Tokenizer
    from speechtrain.tasks.base import Sample, Task


@dataclass(frozen=True)
class Transcription:
    """What was recognised.

    Attributes:
        confidence: that it is right, 0 to 1.
        words: each with its own.
    """

    text: str
    confidence: float
    words: tuple[tuple[str, float], ...] = ()


class Recognizer:
    """A model that is ready to be used; see `load`."""

    def __init__(self, backend: Backend, model: Any, task: Task, features: Features, tokenizer: Tokenizer) -> None:
        self.backend = backend
        self.model = model
        self.task = task
        self.features = features
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, path: str | Path, *, trust: bool = False) -> Recognizer:
        """The model of a checkpoint, of either backend.

        Args:
            path: of the file.
            trust: whether its config may name classes of other packages, which are then run.

        Raises:
            UserError: the file is no model, or names classes of other packages.
        """
        extra = read_extra(Path(path))
        cfg = OmegaConf.create(dict(extra["config"]))
        if not trust and (foreign := foreign_targets(cfg)):
            fix = "load it with trust=True if you trust the file"
            raise ConfigError([Problem(key, f"in {path} is {target}, which is not of this package", fix) for key, target in foreign])
        features: Features = build("features", cfg.features)
        if not features.hears:
            raise DataError(f"{path}: was trained on features that were made before, so it cannot listen to audio")
        backend: Backend = build("backend", cfg.backend)
        tokenizer: Tokenizer = build("tokenizer", cfg.tokenizer, vocabulary=list(extra["vocabulary"]))
        task = build_task(cfg, tokenizer=tokenizer, input_size=features.size)
        model = backend.build(plain("model", cfg.model), task, input_size=features.size, seed=0)
        backend.load(model, Path(path))
        return cls(backend, model, task, features, tokenizer)

    @property
    def sample_rate(self) -> int:
        """Hz of the audio that the model was trained on; other audio is resampled."""
        return self.features.sample_rate

    def transcribe(self, audio: str | Path | bytes | npt.ArrayLike, sample_rate: int | None = None) -> Transcription:
        """Text of one recording.

        Args:
            audio: a file, the content of one, or samples (N,) or (N, channels) between -1 and 1.
            sample_rate: Hz of samples; None: the model's own. Files know theirs.

        Raises:
            DataError: it cannot be read, or is empty.
        """
        return next(self.transcribe_all([audio], sample_rate))

    def transcribe_all(
        self, audios: Sequence[Any], sample_rate: int | None = None, *, batch_seconds: float = 100.0
    ) -> Iterator[Transcription]:
        """Text of several recordings, in their order; see `transcribe`."""
        group: list[torch.Tensor] = []
        seconds = 0.0
        for audio in audios:
            samples = self.read(audio, sample_rate)
            features = self.features.finish(self.features.mel(self.features.unpack(self.features.pack(self.features.spectrum(samples)))))
            duration = len(samples) / self.sample_rate
            if group and seconds + duration > batch_seconds:
                yield from self._recognized(group)
                group, seconds = [], 0.0
            group.append(features)
            seconds += duration
        if group:
            yield from self._recognized(group)

    def read(self, audio: Any, sample_rate: int | None) -> Audio:
        """Samples (N,) of a recording at the model's rate.

        Raises:
            DataError: it cannot be read, is empty, or holds samples that are no numbers.
        """
        name = str(audio) if isinstance(audio, (str, Path)) else "the audio"
        if isinstance(audio, (str, Path, bytes, bytearray)):
            source = io.BytesIO(audio) if isinstance(audio, (bytes, bytearray)) else str(audio)
            try:
                samples, rate = soundfile.read(source, dtype="float32", always_2d=True)
            except (OSError, soundfile.SoundFileError) as error:
                raise DataError(f"{name}: cannot be read as audio ({error})\n    -> give a WAV, FLAC, OGG or MP3 file") from None
        else:
            try:
                samples, rate = np.asarray(audio, dtype=np.float32), sample_rate or self.sample_rate
            except (ValueError, TypeError) as error:
                raise DataError(f"the samples are no array of numbers ({error})") from None
        if samples.ndim == 2:
            samples = samples.mean(axis=1)
        if samples.ndim != 1 or samples.size == 0:
            raise DataError(f"{name}: holds no samples, or has the shape {samples.shape}\n    -> give (samples,) or (samples, channels)")
        if not np.isfinite(samples).all():
            raise DataError(f"{name}: holds samples that are NaN or infinite")
        if rate != self.sample_rate:
            samples = torchaudio.functional.resample(torch.from_numpy(samples), int(rate), self.sample_rate).numpy()
        return np.ascontiguousarray(samples, dtype=np.float32)

    def _recognized(self, items: Sequence[torch.Tensor]) -> Iterator[Transcription]:
        batch = without_references(items, self.features.frame_rate, self.task.placeholder)
        scorer = self.task.scorer(detailed=True)
        for done, outputs in self.backend.predict(self.model, [batch], self.task):
            scorer.update(done, outputs)
        yield from (_transcription(sample) for sample in scorer.samples)


def _transcription(sample: Sample) -> Transcription:
    return Transcription(sample.hypothesis, sample.confidence if sample.confidence is not None else 0.0, sample.words)
