"""Schemas of features, tokenizers and augmentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from speechtrain.config.extras import needed
from speechtrain.config.schemas.node import HIGHEST_RATE, Rule, Target, choice, number
from speechtrain.files import is_file, is_folder, user_path


@dataclass
class LogMel(Target):
    sample_rate: int = number(ge=1000, most=HIGHEST_RATE)
    n_mels: int = number(ge=1, most=4096)
    window: float = number(gt=0, le=1)
    hop: float = number(gt=0, le=1)
    f_min: float = number(ge=0)
    f_max: float | None = number(gt=0)
    preemphasis: float = number(ge=0, lt=1)
    normalize: str = choice("utterance", "band", "none")
    top_db: float | None = number(gt=0)
    silence_db: float | None = number(gt=0)
    speech_db: float | None = number(ge=5)
    remove_dc: bool = MISSING

    def rules(self) -> Iterator[Rule]:
        nyquist = self.sample_rate / 2
        top = nyquist if self.f_max is None else self.f_max
        if top > nyquist:
            yield "f_max", f"is {top:g} Hz, above half of sample_rate ({nyquist:g} Hz)", f"set features.f_max={nyquist:g} or lower"
        if self.f_min >= top:
            yield "f_min", f"is {self.f_min:g} Hz, not below the upper limit of {top:g} Hz", "lower features.f_min"
        if self.speech_db is not None and self.silence_db is not None and self.speech_db >= self.silence_db:
            message = f"is {self.speech_db:g} dB: it must be below silence_db ({self.silence_db:g} dB), as silence is no speech"
            yield "speech_db", message, "for example features.speech_db=25 features.silence_db=60"
        if self.hop > self.window:
            yield "hop", f"is {self.hop} s, longer than the window of {self.window} s: samples would be left out", "lower features.hop"
        if round(self.hop * self.sample_rate) < 1 or round(self.window * self.sample_rate) < 2:
            message = f"is {self.hop} s, and the window {self.window} s: not a sample at {self.sample_rate} Hz"
            yield "hop", message, "for example features.hop=0.01 features.window=0.025"


@dataclass
class MicroFrontend(Target):
    sample_rate: int = number(ge=1000, most=48_000)
    n_mels: int = number(ge=1, most=128)
    window: float = number(gt=0, le=0.1)
    hop: float = number(gt=0, le=0.1)
    f_min: float = number(gt=0)
    f_max: float = number(gt=0)
    pcan: bool = MISSING

    def rules(self) -> Iterator[Rule]:
        most = 0.46875 * self.sample_rate  # the filter bank needs a bin behind its last
        if self.f_max > most:
            yield "f_max", f"is {self.f_max:g} Hz, too close to half of sample_rate", f"set features.f_max={most:g} or lower"
        if self.f_min >= self.f_max:
            yield "f_min", f"is {self.f_min:g} Hz, not below the upper limit of {self.f_max:g} Hz", "lower features.f_min"
        if self.hop > self.window:
            yield "hop", f"is {self.hop:g} s, longer than the window of {self.window:g} s", "lower features.hop"
        for key, seconds in (("window", self.window), ("hop", self.hop)):
            if abs(1000 * seconds - round(1000 * seconds)) > 1e-6:
                yield key, f"is {seconds:g} s, and the front end knows whole milliseconds", f"set features.{key}={round(seconds, 3):g}"


@dataclass
class WaveformFeatures(Target):
    sample_rate: int = number(ge=1000, most=HIGHEST_RATE)
    normalize: str = choice("utterance", "none")
    epsilon: float = number(gt=0, le=1)


EXTRACTORS = ("Wav2Vec2FeatureExtractor", "SeamlessM4TFeatureExtractor", "ParakeetFeatureExtractor")
"""The `feature_extractor_type` of pretrained checkpoints: samples, and the mel energies of two kinds of models."""
_SIZES = {"sampling_rate": (1000, HIGHEST_RATE), "feature_size": (1, 4096), "num_mel_bins": (1, 4096), "stride": (1, 64)}
_SIZES |= {"hop_length": (1, 1 << 16), "win_length": (1, 1 << 16), "n_fft": (2, 1 << 16)}
"""The least and the greatest number that such an extractor may have for a key."""


def extractor_problem(settings: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return what is wrong with a feature extractor's description, whoever wrote it, and what to do; None: nothing is."""
    kind = settings.get("feature_extractor_type")
    if kind not in EXTRACTORS:
        return f"is of the kind {kind!r:.80}", f"there is {', '.join(EXTRACTORS)}"
    if kind != EXTRACTORS[0] and not (settings.get("num_mel_bins") or settings.get("feature_size")):
        return "says no feature_size", "give the files of one checkpoint"
    for key, (least, most) in _SIZES.items():
        value = settings.get(key)
        if value is not None and not (isinstance(value, int) and least <= value <= most):
            return f"has {key}={value!r:.80}, which is no number from {least} to {most}", "give the files of one checkpoint"
    return None


@dataclass
class PretrainedFeatures(Target):
    sample_rate: int = number(ge=1000, most=HIGHEST_RATE)
    path: str | None = MISSING
    revision: str | None = MISSING
    extractor: dict[str, Any] | None = MISSING

    def rules(self) -> Iterator[Rule]:
        if self.path is None and self.extractor is None:
            yield "path", "is not given, and the model names no checkpoint", "set model=pretrained model.path=..., or features.path=..."
        if self.extractor is not None and (problem := extractor_problem(self.extractor)) is not None:
            yield "extractor", *problem


@dataclass
class StoredFeatures(Target):
    sample_rate: int = number(ge=1, most=HIGHEST_RATE)
    normalize: str = choice("utterance", "band", "none")


@dataclass
class TextTokenizer(Target):
    """A tokenizer of texts with the `metric` that `task=ctc` is judged by; it is not passed to `_target_`."""

    metric: str = MISSING


@dataclass
class TokenList(TextTokenizer):
    vocabulary_file: str = MISSING
    blank: str = choice("first", "last")


@dataclass
class Label(Target):
    classes: list[str] | None = MISSING
    unknown: str | None = MISSING

    def rules(self) -> Iterator[Rule]:
        classes = list(self.classes or [])
        twice = sorted({name for name in classes if classes.count(name) > 1})
        if twice:
            yield "classes", f"names {', '.join(twice)} twice", "name each class once"
        if self.classes is not None and len({*classes, *([self.unknown] if self.unknown else [])}) < 2:
            yield "classes", f"is {classes}: there is nothing to distinguish", "name at least two classes, or set tokenizer.unknown as well"


@dataclass
class Char(TextTokenizer):
    lowercase: bool = MISSING


@dataclass
class Bpe(TextTokenizer):
    vocab_size: int = number(ge=2, most=1_000_000)


@dataclass
class Words(TextTokenizer):
    min_count: int = number(ge=1)
    unknown: str | None = MISSING


@dataclass
class PretrainedTokens(TextTokenizer):
    path: str | None = MISSING
    revision: str | None = MISSING
    language: str | None = MISSING
    definition: dict[str, Any] | None = MISSING

    def rules(self) -> Iterator[Rule]:
        if self.path is None and self.definition is None:
            yield "path", "is not given, and the model names no checkpoint", "set model=pretrained model.path=..., or tokenizer.path=..."


@dataclass
class Phonemes(TextTokenizer):
    lexicon: str | None = MISSING
    language: str = MISSING
    stress: bool = MISSING

    def rules(self) -> Iterator[Rule]:
        if self.lexicon is None:
            yield from needed("lexicon", ("espeakng_loader",))
        elif not is_file(user_path(self.lexicon)):
            yield "lexicon", f"no such file: {user_path(self.lexicon).absolute()}", "give a file such as cmudict.dict, or null"


@dataclass
class Augment(Target):
    speed: float = number(ge=0, lt=0.5)
    tempo: float = number(ge=0, lt=0.5)
    warp: float = number(ge=0, lt=0.5)
    noise_prob: float = number(ge=0, le=1)
    noise_snr_db: list[float] = number(most=200)
    eq_db: float = number(ge=0, most=200)
    freq_masks: int = number(ge=0, most=1000)
    freq_mask_width: int = number(ge=0)
    time_masks: int = number(ge=0, most=1000)
    time_mask_width: int = number(ge=0)
    time_mask_ratio: float = number(ge=0, le=1)
    recombine_prob: float = number(ge=0, le=1)
    delay: float = number(ge=0, most=1000)
    frame_dropout: float = number(ge=0, lt=1)
    noise_folder: str | None = MISSING
    noise_folder_prob: float = number(ge=0, le=1)
    reverb_folder: str | None = MISSING
    reverb_prob: float = number(ge=0, le=1)
    lowpass_prob: float = number(ge=0, le=1)
    lowpass_hz: list[float] = number(gt=0)
    codec_prob: float = number(ge=0, le=1)
    gain_db: float = number(ge=0, most=200)

    def rules(self) -> Iterator[Rule]:
        for key, values, unit, example in (
            ("noise_snr_db", self.noise_snr_db, "dB", "[5,30]"),
            ("lowpass_hz", self.lowpass_hz, "Hz", "[2000,4000]"),
        ):
            if len(values) != 2 or values[0] > values[1]:
                yield key, f"must be [lowest, highest] in {unit}, received {values}", f"for example augment.{key}={example}"
        for key, folder in (("noise_folder", self.noise_folder), ("reverb_folder", self.reverb_folder)):
            if folder is not None and not is_folder(user_path(folder)):
                message = f"no such folder: {user_path(folder).absolute()}"
                yield key, message, f"set augment.{key} to a folder of recordings, or null"
