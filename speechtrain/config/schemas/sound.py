"""Features, tokenizers, augmentation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from speechtrain.config.schemas.node import Rule, Target, choice, number


@dataclass
class LogMel(Target):
    sample_rate: int = number(ge=1000)
    n_mels: int = number(ge=1)
    window: float = number(gt=0, le=1)
    hop: float = number(gt=0, le=1)
    f_min: float = number(ge=0)
    f_max: float | None = number(gt=0)
    preemphasis: float = number(ge=0, lt=1)
    normalize: str = choice("utterance", "band", "none")
    top_db: float | None = number(gt=0)

    @staticmethod
    def rules(node: Any) -> Iterator[Rule]:
        nyquist = node.sample_rate / 2
        top = nyquist if node.f_max is None else node.f_max
        if top > nyquist:
            yield "f_max", f"is {top:g} Hz, above half of sample_rate ({nyquist:g} Hz)", f"set features.f_max={nyquist:g} or lower"
        if node.f_min >= top:
            yield "f_min", f"is {node.f_min:g} Hz, not below the upper limit of {top:g} Hz", "lower features.f_min"
        if node.hop > node.window:
            yield "hop", f"is {node.hop} s, longer than the window of {node.window} s: samples would be left out", "lower features.hop"


@dataclass
class WaveformFeatures(Target):
    sample_rate: int = number(ge=1000)
    normalize: str = choice("utterance", "none")


@dataclass
class StoredFeatures(Target):
    sample_rate: int = number(ge=1)
    normalize: str = choice("utterance", "band", "none")


@dataclass
class TokenList(Target):
    vocabulary_file: str = MISSING
    blank: str = choice("first", "last")


@dataclass
class Label(Target):
    classes: list[str] | None = MISSING
    unknown: str | None = MISSING

    @staticmethod
    def rules(node: Any) -> Iterator[Rule]:
        classes = list(node.classes or [])
        twice = sorted({name for name in classes if classes.count(name) > 1})
        if twice:
            yield "classes", f"names {', '.join(twice)} twice", "name each class once"
        if node.classes is not None and len({*classes, *([node.unknown] if node.unknown else [])}) < 2:
            yield "classes", f"is {classes}: there is nothing to tell apart", "name at least two classes, or set tokenizer.unknown as well"


@dataclass
class Char(Target):
    lowercase: bool = MISSING


@dataclass
class Bpe(Target):
    vocab_size: int = number(ge=2)


@dataclass
class Words(Target):
    min_count: int = number(ge=1)
    unknown: str | None = MISSING


@dataclass
class Phonemes(Target):
    lexicon: str | None = MISSING
    language: str = MISSING
    stress: bool = MISSING

    @staticmethod
    def rules(node: Any) -> Iterator[Rule]:
        if node.lexicon is not None and not Path(node.lexicon).expanduser().is_file():
            yield "lexicon", f"no such file: {Path(node.lexicon).expanduser().absolute()}", "give a file such as cmudict.dict, or null"


@dataclass
class Augment(Target):
    speed: float = number(ge=0, lt=0.5)
    tempo: float = number(ge=0, lt=0.5)
    warp: float = number(ge=0, lt=0.5)
    noise_prob: float = number(ge=0, le=1)
    noise_snr_db: list[float] = field(default=MISSING)
    eq_db: float = number(ge=0)
    freq_masks: int = number(ge=0)
    freq_mask_width: int = number(ge=0)
    time_masks: int = number(ge=0)
    time_mask_width: int = number(ge=0)
    time_mask_ratio: float = number(ge=0, le=1)
    recombine_prob: float = number(ge=0, le=1)
    delay: float = number(ge=0)
    frame_dropout: float = number(ge=0, lt=1)
    noise_folder: str | None = MISSING
    noise_folder_prob: float = number(ge=0, le=1)
    reverb_folder: str | None = MISSING
    reverb_prob: float = number(ge=0, le=1)
    lowpass_prob: float = number(ge=0, le=1)
    lowpass_hz: list[float] = number(gt=0)
    codec_prob: float = number(ge=0, le=1)
    gain_db: float = number(ge=0)

    @staticmethod
    def rules(node: Any) -> Iterator[Rule]:
        for key, unit, example in (("noise_snr_db", "dB", "[5,30]"), ("lowpass_hz", "Hz", "[2000,4000]")):
            values = list(node[key])
            if len(values) != 2 or values[0] > values[1]:
                yield key, f"must be [lowest, highest] in {unit}, received {values}", f"for example augment.{key}={example}"
        for key in ("noise_folder", "reverb_folder"):
            if node[key] is not None and not Path(node[key]).expanduser().is_dir():
                message = f"no such folder: {Path(node[key]).expanduser().absolute()}"
                yield key, message, f"set augment.{key} to a folder of recordings, or null"
