"""A trained model with its features, tokenizer and task: from audio to log-probabilities, text and alignments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from speechtrain.backends.checkpoint_files import another_model, check_depth
from speechtrain.backends.zip_files import UNREADABLE
from speechtrain.config.build import build
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.config.pretrained import is_checkpoint
from speechtrain.config.stored import known_targets
from speechtrain.data.audio import from_samples, read_recording
from speechtrain.data.batches import stack_features
from speechtrain.data.text.base import build_tokenizer
from speechtrain.decode.base import RankingDecoder
from speechtrain.decode.pauses import between_pauses
from speechtrain.errors import ConfigError, DataError, Problem, UserError, first_line
from speechtrain.inference.alignment import Alignment, align_text
from speechtrain.inference.archive import stored_config, weights_of
from speechtrain.tasks.base import Transcription
from speechtrain.tasks.build import build_task

if TYPE_CHECKING:
    import torch

    from speechtrain.backends.base import Backend, Model
    from speechtrain.data.audio import Audio
    from speechtrain.data.features.features import Features
    from speechtrain.data.text.base import Tokenizer
    from speechtrain.tasks.base import Task

AudioInput = str | Path | bytes | npt.ArrayLike
"""A file, the content of a file, or samples (N,) or (N, channels) between -1 and 1."""


class Recognizer:
    """Transcribes and aligns recordings; `Recognizer.load` makes one from a file."""

    def __init__(self, backend: Backend, model: Model, task: Task, features: Features, tokenizer: Tokenizer, cfg: ExperimentConfig) -> None:
        self.backend = backend
        self.model = model
        self.task = task
        self.features = features
        self.tokenizer = tokenizer
        self.cfg = cfg

    @classmethod
    def load(cls, path: str | Path, *, trust: bool = False) -> Recognizer:
        """Load the model of a checkpoint or an archive, of either backend, as it was trained.

        Args:
            path: the file.
            trust: whether its config may name classes of other packages, which are then run.

        Raises:
            UserError: the file holds no model, or names classes of other packages.
        """
        return cls.of(path, *stored_config(path, trust=trust))

    @classmethod
    def of(
        cls,
        path: str | Path,
        cfg: ExperimentConfig,
        vocabulary: Sequence[str],
        *,
        features: Features | None = None,
        target_size: int = 0,
    ) -> Recognizer:
        """Build the model of a checkpoint or an archive from a config that was read from it, and load its weights.

        Args:
            path: the file.
            cfg: the stored config, perhaps with another decoder or backend; it may name only classes that are trusted.
            vocabulary: the tokens that the model was trained with.
            features: replace those that the config names, for a model that was not trained on audio.
            target_size: C of the signals that a model of signals gives.

        Raises:
            UserError: the weights cannot be read, or the task gives signals and `target_size` is 0.
        """
        try:
            if features is None:
                features = build("features", cfg.features)
                if not features.from_audio:
                    raise DataError(f"{path}: was trained on features that were made before, so it takes no audio")
            backend: Backend = build("backend", cfg.backend)
            tokenizer: Tokenizer = build_tokenizer(cfg.tokenizer, vocabulary=vocabulary)
            task = build_task(cfg, tokenizer=tokenizer, input_size=features.size, target_size=target_size)
            if not task.head.size:
                raise UserError(f"{path}: its task gives signals, which need recordings of them\n    -> use speechtrain.evaluate or export")
            model = _restored(backend, cfg, task, tokenizer, Path(path), input_size=features.size)
        except UNREADABLE as error:
            message = f"{path}: its model cannot be built from the config in it ({type(error).__name__}: {first_line(error, most=160)})"
            raise UserError(f"{message}\n    -> give a model that this version or an earlier one wrote, or copy the file again") from error
        return cls(backend, model, task, features, tokenizer, cfg)

    def with_decoder(self, cfg: ExperimentConfig) -> Recognizer:
        """Return the same model with the decoder of another config.

        Raises:
            ConfigError: the model's task decodes nothing.
        """
        if self.task.decoder is None:
            message = f"is not accepted by a model of the task {type(self.task).__name__}, which decodes nothing"
            raise ConfigError([Problem("decoder", message, "leave decoder out")])
        task = build_task(cfg, tokenizer=self.tokenizer, input_size=self.features.size)
        return Recognizer(self.backend, self.model, task, self.features, self.tokenizer, cfg)

    @property
    def sample_rate(self) -> int:
        """Return the sample rate in Hz of the audio that the model was trained on; other audio is resampled."""
        return self.features.sample_rate

    @property
    def channel(self) -> int | None:
        """Return which channel is heard of recordings that have several, counted from 0 (`data.channel`); None: the mean of all."""
        return self.cfg.data.channel

    @cached_property
    def frame_seconds(self) -> float:
        """Return the time between two encoder frames in seconds."""
        return self.backend.describe(self.model).subsampling / self.features.frame_rate

    @property
    def ranks(self) -> bool:
        """Return whether the decoder gives several texts for a recording."""
        return isinstance(self.task.decoder, RankingDecoder)

    def transcribe(self, audio: AudioInput, sample_rate: int | None = None, *, nbest: int = 0) -> Transcription:
        """Transcribe one recording, which is computed as a whole; `speechtrain.inference.long_audio` takes recordings of any length.

        Args:
            audio: a file, the content of one, or samples (N,) or (N, channels) between -1 and 1.
            sample_rate: sample rate of samples, Hz; None: the model's own. Files carry their own rate.
            nbest: number of alternative texts to return, where the decoder ranks several.

        Raises:
            DataError: the audio cannot be read, or is empty.
            UserError: the model's task gives no text.
        """
        return next(self.transcribe_all([audio], sample_rate, nbest=nbest))

    def transcribe_all(
        self, audios: Sequence[AudioInput], sample_rate: int | None = None, *, batch_seconds: float = 100.0, nbest: int = 0
    ) -> Iterator[Transcription]:
        """Transcribe several recordings in batches of at most so many seconds, and yield in their order; see `transcribe`."""
        for batch in self._batches((self.read(audio, sample_rate) for audio in audios), batch_seconds):
            for samples, values in zip(batch, self._outputs(batch), strict=True):
                yield self.decode(values, samples, nbest=nbest)

    def log_probs(self, audio: AudioInput, sample_rate: int | None = None) -> npt.NDArray[np.float32]:
        """Compute the model's outputs (T', V) for one recording: with CTC, log-probabilities of the blank and the vocabulary.

        Rows are `frame_seconds` apart.

        Raises:
            DataError: see `transcribe`.
        """
        return next(self._outputs([self.read(audio, sample_rate)]))

    def align(self, audio: AudioInput, text: str, sample_rate: int | None = None) -> Alignment:
        """Find when each word and token of a text was said, on the best path of the text through the recording (forced alignment).

        Raises:
            DataError: the text has tokens that the model lacks, or needs more frames than the recording has; or see `transcribe`.
            UserError: the model's outputs are no log-probabilities of labels.
        """
        if not self.task.timed:
            raise UserError(f"a model of the task {type(self.task).__name__} has no text to align\n    -> take a model of task=ctc")
        samples = self.read(audio, sample_rate)
        return self.align_outputs(next(self._outputs([samples])), text, samples)

    def align_outputs(self, log_probs: npt.NDArray[np.float32], text: str, samples: Audio) -> Alignment:
        """Align a text with log-probabilities (T', V) that were computed from samples (N,) before; see `align`."""
        return align_text(log_probs, text, self.tokenizer, samples, self.sample_rate, self.frame_seconds)

    def read(self, audio: AudioInput, sample_rate: int | None = None) -> Audio:
        """Read a recording as samples (N,) at the model's rate.

        Raises:
            DataError: it cannot be read, is empty, or holds samples that are NaN or infinite.
        """
        if isinstance(audio, (str, Path, bytes, bytearray)):
            return read_recording(audio, self.sample_rate, channel=self.channel)
        return from_samples(audio, sample_rate or self.sample_rate, self.sample_rate, channel=self.channel)

    def decode(
        self, values: npt.NDArray[np.float32], samples: Audio | None = None, *, offset: float = 0.0, nbest: int = 0
    ) -> Transcription:
        """Make text of a model's outputs.

        Args:
            values: (T', V), of one utterance.
            samples: (N,) that they were computed from: times of words then reach up to the pauses around them.
            offset: time added to the times of words, s.
            nbest: see `transcribe`.
        """
        transcription = self.task.transcription(_without_nan(values), frame_seconds=self.frame_seconds, offset=offset, nbest=nbest)
        if samples is None or not transcription.words:
            return transcription
        return replace(transcription, words=tuple(between_pauses(transcription.words, samples, self.sample_rate, offset)))

    def feature_frames(self, samples: Audio) -> torch.Tensor:
        """Compute features (T, F) of samples (N,) at the model's rate."""
        features = self.features
        return features.finish(features.mel(features.unpack(features.pack(features.spectrum(samples)))))

    def _batches(self, audios: Iterable[Audio], batch_seconds: float) -> Iterator[list[Audio]]:
        batch: list[Audio] = []
        seconds = 0.0
        for samples in audios:
            duration = len(samples) / self.sample_rate
            if batch and seconds + duration > batch_seconds:
                yield batch
                batch, seconds = [], 0.0
            batch.append(samples)
            seconds += duration
        if batch:
            yield batch

    def _outputs(self, audios: Sequence[Audio]) -> Iterator[npt.NDArray[np.float32]]:
        """Yield the outputs (T', V) of each recording (N,), computed in one batch."""
        features, lengths = stack_features([self.feature_frames(samples) for samples in audios])
        values, value_lengths = self.backend.infer(self.model, features, lengths)
        yield from (_without_nan(row[:length]) for row, length in zip(values, value_lengths, strict=True))


def _without_nan(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return a model's outputs (T', V).

    Raises:
        UserError: some are NaN, so that no text could be told from them.
    """
    if np.isnan(values).any():
        raise UserError(
            "the model's outputs are NaN for this recording\n    -> its weights are damaged, or too large: take another checkpoint"
        )
    return values


def _restored(backend: Backend, cfg: ExperimentConfig, task: Task, tokenizer: Tokenizer, path: Path, *, input_size: int) -> Model:
    """Build the model of a file, or of a pretrained checkpoint's folder, with its weights.

    Raises:
        UserError: they do not fit, or the config in the file names none that can be built.
    """
    if is_checkpoint(path):
        model = backend.build(cfg.model, task, input_size=input_size, seed=0)
        backend.load_pretrained(model, tokenizer.outputs)
        return model
    with weights_of(path) as weights:
        try:
            if backend.name == "keras" and cfg.model["_target_"] in known_targets("model"):
                _check_size(cfg, task, weights, input_size=input_size)
            return backend.restore(cfg.model, task, weights, input_size=input_size)
        except ConfigError as error:
            raise UserError(f"{path}: its model cannot be built; {error}") from error


def _check_size(cfg: ExperimentConfig, task: Task, weights: Path, *, input_size: int) -> None:
    """Check that a file of Keras has about the weights that its config asks for, which Keras cannot say before it makes them.

    Raises:
        UserError: it has far fewer.
    """
    from speechtrain.backends.keras.weights_file import sizes
    from speechtrain.backends.torch.backend import outline

    try:
        found = sizes(weights)
    except UNREADABLE as error:
        raise another_model(weights, first_line(error, most=120)) from error
    check_depth(cfg.model, len(found), weights)
    twin = {**cfg.model, "_target_": str(cfg.model["_target_"]).replace(".keras.", ".torch.", 1)}  # of the same weights
    wanted = sum(parameter.numel() for parameter in outline(twin, task, input_size=input_size).parameters())
    if wanted > 2 * sum(found):
        raise another_model(weights, f"its config asks for {wanted:,} weights, and it has {sum(found):,}")
