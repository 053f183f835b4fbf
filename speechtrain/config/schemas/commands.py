"""The keys of the commands beside training, each a file in `conf/`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from speechtrain.config.extras import SERVER, needed
from speechtrain.config.schemas.node import HIGHEST_RATE, Node, Rule, choice, number


@dataclass
class CompareConfig(Node):
    """The keys of `python -m speechtrain.compare`."""

    runs: list[str] = MISSING
    study: list[str] = MISSING
    tags: dict[str, Any] = MISSING
    experiment: str | None = MISSING
    tracking_uri: str | None = MISSING
    metrics: list[str] | None = MISSING
    sort: str | None = MISSING
    top: int | None = number(ge=1)
    out: str | None = MISSING
    bootstrap: int = number(ge=1, most=1_000_000)


@dataclass
class ModelCommand(Node):
    """The keys of all commands that take a trained model; `source` is written `from`, which Python does not allow as a field."""

    source: str | None = MISSING
    trust: bool = MISSING
    experiment: str | None = MISSING
    tracking_uri: str | None = MISSING


@dataclass
class EvaluateConfig(ModelCommand):
    """The keys of `python -m speechtrain.evaluate`."""

    split: str | None = choice("train", "val", "test")
    out: str | None = MISSING
    nbest: int = number(ge=0, most=10_000)
    on_unknown: str | None = choice("error", "warn")
    report: bool = MISSING
    n_trials: int | None = number(ge=1)
    metric: str | None = MISSING
    seed: int = number(ge=0, lt=2**32)


@dataclass
class TranscribeConfig(ModelCommand):
    """The keys of `python -m speechtrain.transcribe`."""

    files: list[str] = MISSING
    format: str = choice("text", "json", "srt", "vtt")
    out: str | None = MISSING
    window: float = number(ge=2, most=86_400)
    streaming: bool = MISSING
    chunk: float = number(gt=0, most=3600)
    raw_rate: int | None = number(ge=1000, most=HIGHEST_RATE)
    nbest: int = number(ge=0, most=10_000)


@dataclass
class AlignConfig(ModelCommand):
    """The keys of `python -m speechtrain.align`."""

    audio: str | None = MISSING
    text: str | None = MISSING
    split: str = choice("train", "val", "test")
    format: list[str] = MISSING
    out: str | None = MISSING


@dataclass
class TfLite(Node):
    operators: str = choice("int8", "int8_or_float")
    input: str = choice("float32", "int8")
    output: str = choice("float32", "int8")
    recording: bool = MISSING
    max_bytes: int | None = number(ge=1)
    max_arena_bytes: int | None = number(ge=1)
    max_accuracy_loss: float | None = number(ge=0, le=100)


@dataclass
class ExportConfig(ModelCommand):
    """The keys of `python -m speechtrain.export`."""

    format: list[str] = MISSING
    out: str | None = MISSING
    utterances: int = number(ge=1)
    representative: int = number(ge=1)
    split: str = choice("train", "val", "test")
    frames: int | None = number(ge=1, most=10_000_000)
    tflite: TfLite = field(default_factory=TfLite)


@dataclass
class ServeConfig(ModelCommand):
    """The keys of `python -m speechtrain.serve`; `source` names one model or several."""

    source: Any = MISSING
    host: str = MISSING
    port: int = number(ge=0, le=65535)
    max_megabytes: float = number(gt=0, most=2_000)
    max_seconds: float = number(gt=0, most=86_400)
    queue: int = number(ge=1, most=1_000_000)
    memory_megabytes: float | None = number(gt=0)
    connections: int = number(ge=1)
    header_seconds: float = number(gt=0)
    body_seconds: float = number(gt=0)
    min_rate: float = number(gt=0)
    write_seconds: float = number(gt=0)
    drain_seconds: int = number(ge=0)
    streams: int = number(ge=1)
    stream_seconds: float = number(gt=0, most=86_400)
    token_file: str | None = MISSING
    requests_per_minute: float | None = number(gt=0)
    tls_certificate: str | None = MISSING
    tls_key: str | None = MISSING

    def rules(self) -> Iterator[Rule]:
        yield from needed("serve", SERVER)
        if self.requests_per_minute is not None and self.token_file is None:
            yield "requests_per_minute", "counts the requests of each token, and token_file names no tokens", "set token_file"
        if self.tls_key is not None and self.tls_certificate is None:
            yield "tls_key", "has no certificate", "set tls_certificate"


@dataclass
class LmConfig(ModelCommand):
    """The keys of `python -m speechtrain.lm`."""

    text: list[str] = MISSING
    out: str = MISSING
    order: int = number(ge=1, le=10)
    units: str = choice("words", "tokens")
    lexicon: str | None = MISSING
    heldout: str | None = MISSING


@dataclass
class InspectConfig(Node):
    """The keys of `python -m speechtrain.inspect`, beside those of a training."""

    source: str | None = MISSING
    files: list[str] = MISSING
    out: str | None = MISSING
    examples: int = number(ge=0, most=10_000)
    profile: bool = MISSING


@dataclass
class FeaturiseConfig(Node):
    """The keys of `python -m speechtrain.featurise`, beside those of a training."""

    out: str = MISSING


@dataclass
class UiConfig(Node):
    """The keys of `python -m speechtrain.ui`."""

    experiment: str | None = MISSING
    tracking_uri: str | None = MISSING
    host: str = MISSING
    port: int = number(ge=0, le=65_535)
    browser: bool | None = MISSING


@dataclass
class ShardConfig(Node):
    """The keys of `python -m speechtrain.shard`, beside those of a training."""

    out: str = MISSING
    tars: str | None = MISSING
    shard_size: int = number(ge=1, most=1_000_000)


@dataclass
class SpotConfig(ModelCommand):
    """The keys of `python -m speechtrain.spot`."""

    background: list[str] = MISSING
    split: str = choice("train", "val", "test")
    out: str | None = MISSING
    window: float = number(gt=0, most=60)
    step: float = number(gt=0, most=60)
    smooth: int = number(ge=1, most=10_000)
    hold: float = number(ge=0, most=3600)
    ignore: list[str] = MISSING
    thresholds: list[float] = number(gt=0, le=1)

    def rules(self) -> Iterator[Rule]:
        if not self.background:
            yield "background", "names no recordings, in which false alarms are counted", "give files and folders without keywords"
        if self.step > self.window:
            yield "step", f"is {self.step:g} s, longer than the window of {self.window:g} s, so that audio is left out", "lower step"


COMMANDS: dict[str, type[Node]] = {
    "compare": CompareConfig,
    "evaluate": EvaluateConfig,
    "transcribe": TranscribeConfig,
    "align": AlignConfig,
    "export": ExportConfig,
    "serve": ServeConfig,
    "lm": LmConfig,
    "spot": SpotConfig,
    "inspect": InspectConfig,
    "featurise": FeaturiseConfig,
    "ui": UiConfig,
    "shard": ShardConfig,
}
"""The schemas of the commands, by the names of their files in `conf/`."""
