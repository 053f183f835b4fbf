"""A trained model and all that turns audio into its features and its output into text: load a file, then transcribe or align."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from omegaconf import DictConfig, OmegaConf

from speechtrain.backends.checkpoint_files import read_extra
from speechtrain.config.build import build, plain
from speechtrain.config.checks import foreign_targets
from speechtrain.config.moved import with_present_names
from speechtrain.data.audio import from_samples, read_recording
from speechtrain.data.batches import without_references
from speechtrain.decode.align import Word, align, path_score, spans_of, words_of
from speechtrain.decode.base import RankingDecoder
from speechtrain.decode.pauses import between_pauses
from speechtrain.errors import ConfigError, DataError, Problem, UserError
from speechtrain.inference.archive import weights_of
from speechtrain.tasks.build import build_task
from speechtrain.tasks.ctc import Ctc

if TYPE_CHECKING:
    from speechtrain.backends.base import Backend
    from speechtrain.data.audio import Audio
    from speechtrain.data.batches import Batch
    from speechtrain.data.features.features import Features
    from speechtrain.data.text.tokenizers import Tokenizer
    from speechtrain.tasks.base import Sample, Task


@dataclass(frozen=True)
class Transcription:
    """What was recognised.

    Attributes:
        confidence: that it is right, 0 to 1.
        words: each with its own, and when it was said.
        alternatives: other texts with their scores (natural logarithms), the best first, where the decoder has any and they were asked for.
    """

    text: str
    confidence: float
    words: tuple[Word, ...] = ()
    alternatives: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Alignment:
    """When the words and tokens of a given text were said.

    Attributes:
        duration: s, of the recording.
        score: mean log-probability of a frame on the best path; far below that of others where text and audio do not belong together.
    """

    words: tuple[Word, ...]
    tokens: tuple[Word, ...]
    duration: float
    score: float


def config_of(path: str | Path, *, trust: bool = False) -> tuple[DictConfig, list[str]]:
    """The resolved config and the vocabulary that a model of a checkpoint or an archive was trained with.

    Raises:
        UserError: the file is no model, or names classes of other packages and is not trusted.
    """
    with weights_of(Path(path)) as weights:
        extra = read_extra(weights)
    cfg = with_present_names(OmegaConf.create(dict(extra["config"])))
    if not trust and (foreign := foreign_targets(cfg)):
        fix = "trust=true runs it, if you trust the file"
        raise ConfigError([Problem(key, f"in {path} is {target}, which is not of this package", fix) for key, target in foreign])
    return cfg, list(extra["vocabulary"])


def one_answer() -> ConfigError:
    """What is told where several answers are asked of a decoder that has one."""
    return ConfigError([Problem("nbest", "the greedy decoder has one answer", "set decoder=beam")])


class Recognizer:
    """A model that is ready to be used; see `load`."""

    def __init__(
        self, backend: Backend, model: Any, task: Task, features: Features, tokenizer: Tokenizer, cfg: DictConfig | None = None
    ) -> None:
        self.backend = backend
        self.model = model
        self.task = task
        self.features = features
        self.tokenizer = tokenizer
        self.cfg = cfg if cfg is not None else OmegaConf.create()

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        trust: bool = False,
        cfg: DictConfig | None = None,
        features: Features | None = None,
        target_size: int = 0,
    ) -> Recognizer:
        """The model of a checkpoint or an archive, of either backend.

        Args:
            path: of the file.
            trust: whether its config may name classes of other packages, which are then run.
            cfg: what `config_of` gave, with other values for its decoder or its backend; None: as it was trained.
            features: in place of those that the config names, for a model that has not been trained on audio.
            target_size: C of the signals that a model of signals gives.

        Raises:
            UserError: the file is no model, or names classes of other packages.
        """
        settings, vocabulary = config_of(path, trust=trust)
        cfg = cfg if cfg is not None else settings
        if features is None:
            features = build("features", cfg.features)
            if not features.hears:
                raise DataError(f"{path}: was trained on features that were made before, so it cannot listen to audio")
        backend: Backend = build("backend", cfg.backend)
        tokenizer: Tokenizer = build("tokenizer", cfg.tokenizer, vocabulary=vocabulary)
        task = build_task(cfg, tokenizer=tokenizer, input_size=features.size, target_size=target_size)
        if not task.head.size:
            raise UserError(f"{path}: its task gives signals, which need recordings of them\n    -> use speechtrain.evaluate or export")
        model = backend.build(plain("model", cfg.model), task, input_size=features.size, seed=0)
        with weights_of(Path(path)) as weights:
            backend.load(model, weights)
        return cls(backend, model, task, features, tokenizer, cfg)

    def with_decoder(self, node: DictConfig) -> Recognizer:
        """The same model with another decoder, for its texts.

        Raises:
            ConfigError: the model's task has no texts to be decoded.
        """
        if not isinstance(self.task, Ctc):
            fix = "leave decoder out"
            raise ConfigError([Problem("decoder", f"the model's task is {type(self.task).__name__}, which nothing is decoded for", fix)])
        cfg = self.cfg.copy()
        cfg.decoder = node
        task = build_task(cfg, tokenizer=self.tokenizer, input_size=self.features.size)
        return Recognizer(self.backend, self.model, task, self.features, self.tokenizer, cfg)

    @property
    def sample_rate(self) -> int:
        """Hz of the audio that the model was trained on; other audio is resampled."""
        return self.features.sample_rate

    @property
    def frame_seconds(self) -> float:
        """Between two encoder frames."""
        return self.backend.describe(self.model).subsampling / self.features.frame_rate

    @property
    def ranks(self) -> bool:
        """Whether its decoder has several answers."""
        return isinstance(self.task, Ctc) and isinstance(self.task.decoder, RankingDecoder)

    def transcribe(self, audio: str | Path | bytes | npt.ArrayLike, sample_rate: int | None = None, *, nbest: int = 0) -> Transcription:
        """Text of one recording, which is computed as a whole; `speechtrain.inference.long_audio` takes recordings of any length.

        Args:
            audio: a file, the content of one, or samples (N,) or (N, channels) between -1 and 1.
            sample_rate: Hz of samples; None: the model's own. Files know theirs.
            nbest: how many texts to give as alternatives, where the decoder has several.

        Raises:
            DataError: it cannot be read, or is empty.
        """
        return next(self.transcribe_all([audio], sample_rate, nbest=nbest))

    def transcribe_all(
        self, audios: Sequence[Any], sample_rate: int | None = None, *, batch_seconds: float = 100.0, nbest: int = 0
    ) -> Iterator[Transcription]:
        """Text of several recordings, in their order; see `transcribe`."""
        for group in self._batches((self.read(audio, sample_rate) for audio in audios), batch_seconds):
            yield from self._recognized(group, nbest)

    def log_probs(self, audio: str | Path | bytes | npt.ArrayLike, sample_rate: int | None = None) -> npt.NDArray[np.float32]:
        """What the model says (T', V) of one recording: with CTC log-probabilities of the blank and the vocabulary, `frame_seconds` apart.

        Raises:
            DataError: see `transcribe`.
        """
        (group,) = self._batches([self.read(audio, sample_rate)], 1.0)
        return next(self._outputs(group))

    def align(self, audio: str | Path | bytes | npt.ArrayLike, text: str, sample_rate: int | None = None) -> Alignment:
        """When each word and token of a text was said, on the best path of the text through the recording (forced alignment).

        Raises:
            DataError: the text has tokens that the model lacks, or needs more frames than the recording has; or see `transcribe`.
        """
        self._needs_text("align")
        samples = self.read(audio, sample_rate)
        (group,) = self._batches([samples], 1.0)
        return self.aligned(next(self._outputs(group)), text, samples)

    def aligned(self, log_probs: npt.NDArray[np.float32], text: str, samples: Audio) -> Alignment:
        """The same for log-probabilities (T', V) that are there already; see `align`."""
        duration = len(samples) / self.sample_rate
        if unknown := self.tokenizer.unknown(text):
            shown = ", ".join(map(repr, dict.fromkeys(unknown)))
            raise DataError(
                f"the text {text[:60]!r} holds {shown}, which the model has no token for\n    -> write it as the model was trained"
            )
        labels = self.tokenizer.encode(text)
        spans = align(log_probs, labels)
        if spans is None:
            raise DataError(
                f"the text {text[:60]!r} has {len(labels)} tokens, and the recording of {duration:.2f} s only {len(log_probs)} frames"
                "\n    -> give the recording that it belongs to"
            )
        step = self.frame_seconds
        names = self.tokenizer.vocabulary
        tokens = tuple(
            Word(names[span.label], step * span.start, min(step * span.end, duration), span.probability) for span in spans if span.label
        )
        words = between_pauses(words_of(spans, self.tokenizer, step), samples, self.sample_rate)
        return Alignment(tuple(words), tokens, duration, path_score(log_probs, spans))

    def read(self, audio: Any, sample_rate: int | None) -> Audio:
        """Samples (N,) of a recording at the model's rate.

        Raises:
            DataError: it cannot be read, is empty, or holds samples that are no numbers.
        """
        if isinstance(audio, (str, Path, bytes, bytearray)):
            return read_recording(audio, self.sample_rate)
        return from_samples(audio, sample_rate or self.sample_rate, self.sample_rate)

    def decoded(
        self, log_probs: npt.NDArray[np.float32], samples: Audio | None = None, *, offset: float = 0.0, nbest: int = 0
    ) -> Transcription:
        """Text of log-probabilities (T', V), and of the samples (N,) that they are of, with times that begin at `offset` seconds."""
        task = self._needs_text("decode")
        (labels,) = task.decoder(log_probs[None], np.array([len(log_probs)]))
        words = words_of(spans_of(log_probs, labels), self.tokenizer, self.frame_seconds, offset)
        if samples is not None:
            words = between_pauses(words, samples, self.sample_rate, offset)
        confidence = float(np.mean([word.confidence for word in words])) if words else float(np.exp(log_probs.max(-1).sum()))
        return Transcription(self.tokenizer.decode(labels).strip(), confidence, tuple(words), self._alternatives(task, log_probs, nbest))

    def _alternatives(self, task: Ctc, log_probs: npt.NDArray[np.float32], nbest: int) -> tuple[tuple[str, float], ...]:
        if not nbest:
            return ()
        if not isinstance(task.decoder, RankingDecoder):
            raise one_answer()
        return tuple((self.tokenizer.decode(each.labels), each.score) for each in task.decoder.best(log_probs, nbest))

    def _needs_text(self, what: str) -> Ctc:
        if not isinstance(self.task, Ctc):
            raise UserError(f"a model of the task {type(self.task).__name__} has no text to {what}\n    -> give one of task=ctc")
        return self.task

    def feature_frames(self, samples: Audio) -> torch.Tensor:
        """Features (T, F) of samples (N,) at the model's rate."""
        features = self.features
        return features.finish(features.mel(features.unpack(features.pack(features.spectrum(samples)))))

    def _batches(self, audios: Iterable[Audio], batch_seconds: float) -> Iterator[list[Audio]]:
        group: list[Audio] = []
        seconds = 0.0
        for samples in audios:
            duration = len(samples) / self.sample_rate
            if group and seconds + duration > batch_seconds:
                yield group
                group, seconds = [], 0.0
            group.append(samples)
            seconds += duration
        if group:
            yield group

    def _batch(self, audios: Sequence[Audio]) -> Batch:
        return without_references([self.feature_frames(samples) for samples in audios], self.features.frame_rate, self.task.placeholder)

    def values(
        self, features: npt.NDArray[np.float32], lengths: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """What the model says (B, T', V), (B,) of features (B, T, F), (B,)."""
        items = [torch.from_numpy(row[:length]) for row, length in zip(features, lengths, strict=True)]
        batch = without_references(items, self.features.frame_rate, self.task.placeholder)
        (found,) = (outputs for _, outputs in self.backend.predict(self.model, [batch], self.task))
        return found.values, found.lengths

    def _outputs(self, audios: Sequence[Audio]) -> Iterator[npt.NDArray[np.float32]]:
        batch = self._batch(audios)
        for _, outputs in self.backend.predict(self.model, [batch], self.task):
            yield from (values[:length] for values, length in zip(outputs.values, outputs.lengths, strict=True))

    def _recognized(self, audios: Sequence[Audio], nbest: int = 0) -> Iterator[Transcription]:
        if isinstance(self.task, Ctc):
            found = zip(audios, self._outputs(audios), strict=True)
            yield from (self.decoded(log_probs, samples, nbest=nbest) for samples, log_probs in found)
            return
        batch = self._batch(audios)
        scorer = self.task.scorer(detailed=True)
        for done, outputs in self.backend.predict(self.model, [batch], self.task):
            scorer.update(done, outputs)
        yield from (_transcription(sample) for sample in scorer.samples)


def _transcription(sample: Sample) -> Transcription:
    return Transcription(sample.hypothesis, sample.confidence if sample.confidence is not None else 0.0)


def joined(parts: Sequence[Transcription]) -> Transcription:
    """The text of a long recording from its pieces; its confidence is that of a word."""
    words = tuple(word for part in parts for word in part.words)
    text = " ".join(part.text for part in parts if part.text)
    confidence = float(np.mean([word.confidence for word in words])) if words else min((part.confidence for part in parts), default=1.0)
    return Transcription(text, confidence, words)
