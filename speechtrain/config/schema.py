"""What every config group may hold: names, types, ranges and units, registered with Hydra's ConfigStore.

The values live in `conf/`, next to comments for people; the dataclasses here have no defaults, so that each value is written down once.
A group option takes its schema with `- /schema/<group>/<name>@_here_` in its defaults list, after which Hydra refuses an unknown key
or a wrong type while composing. Ranges, and rules between the keys of one node (`rules`), are checked by `config.checks`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from speechtrain.config.schemas.data import (
    An4,
    CommonVoice,
    Digits,
    Featurised,
    Folder,
    Hdf5Signals,
    HuggingFace,
    Kaldi,
    LhotseCuts,
    LibriSpeech,
    LJSpeech,
    Manifest,
    Mix,
    Signals,
    SpeechCommands,
    Synthetic,
    Timit,
    YesNo,
)
from speechtrain.config.schemas.models import (
    Conformer,
    Crdnn,
    EBranchformer,
    FastConformer,
    Lstm,
    Mlp,
    QuartzNet,
    Tdnn,
    Wav2Vec2,
    Zipformer,
)
from speechtrain.config.schemas.node import Node, Rule, choice, number
from speechtrain.config.schemas.optimisation import AdamLike, Exponential, Plateau, RmsProp, Schedule, Sgd, Step, WarmupCosine
from speechtrain.config.schemas.sound import Augment, Bpe, Char, Label, LogMel, Phonemes, StoredFeatures, TokenList, WaveformFeatures, Words
from speechtrain.config.schemas.sweeps import OptunaSweeper, PoolLauncher, SshLauncher
from speechtrain.config.schemas.training import (
    BeamDecoder,
    ClassificationTask,
    CtcTask,
    GreedyDecoder,
    KerasBackend,
    MlflowTracking,
    RegressionTask,
    TensorBoardTracking,
    TorchBackend,
    Trainer,
    WandbTracking,
)


@dataclass
class Objective(Node):
    metric: str = MISSING


@dataclass
class Report(Node):
    enabled: bool | None = MISSING
    worst: int = number(ge=0)
    audio: bool = MISSING
    posteriors: int = number(ge=0)
    bootstrap: int = number(ge=1)


FORMATS = ("torchscript", "pt2", "onnx", "keras", "tflite", "tflite_int8", "archive")


@dataclass
class Exports(Node):
    on_train_end: list[str] = MISSING

    @staticmethod
    def rules(node: Any) -> Iterator[Rule]:
        for name in node.on_train_end:
            if name not in FORMATS:
                yield "on_train_end", f"there is no format '{name}'", f"choose of {', '.join(FORMATS)}"


@dataclass
class Config(Node):
    """The root. Groups are typed by the schema of the chosen option, so their fields here stay open."""

    data: Any = MISSING
    features: Any = MISSING
    tokenizer: Any = MISSING
    augment: Any = MISSING
    model: Any = MISSING
    optimizer: Any = MISSING
    scheduler: Any = MISSING
    backend: Any = MISSING
    task: Any = MISSING
    trainer: Any = MISSING
    decoder: Any = MISSING
    tracking: Any = field(default_factory=dict)
    seed: int = number(ge=0, lt=2**32)
    dry_run: bool = MISSING
    test_run: str | None = choice("quick", "dry_run", "fast_dev_run")
    resume: str | None = MISSING
    init_from: str | None = MISSING
    rerun: str | None = MISSING
    trust: bool = MISSING
    objective: Objective = field(default_factory=Objective)
    samples: int = number(ge=0)
    report: Report = field(default_factory=Report)
    export: Exports = field(default_factory=Exports)
    output_dir: str = MISSING


@dataclass
class CompareConfig(Node):
    """Of `python -m speechtrain.compare`."""

    runs: list[str] = MISSING
    study: list[str] = MISSING
    tags: dict[str, Any] = MISSING
    experiment: str = MISSING
    tracking_uri: str | None = MISSING
    metrics: list[str] | None = MISSING
    sort: str | None = MISSING
    top: int | None = number(ge=1)
    out: str | None = MISSING
    bootstrap: int = number(ge=1)


@dataclass
class OfModel(Node):
    """Keys of all commands that take a trained model; Python has no field called `from`, as which `source` is written."""

    source: str | None = MISSING
    trust: bool = MISSING
    experiment: str = MISSING
    tracking_uri: str | None = MISSING


@dataclass
class EvaluateConfig(OfModel):
    """Of `python -m speechtrain.evaluate`."""

    split: str | None = choice("train", "val", "test")
    out: str | None = MISSING
    nbest: int = number(ge=0)
    on_unknown: str = choice("error", "warn")
    report: bool = MISSING
    n_trials: int | None = number(ge=1)
    metric: str | None = MISSING
    seed: int = number(ge=0, lt=2**32)


@dataclass
class TranscribeConfig(OfModel):
    """Of `python -m speechtrain.transcribe`."""

    files: list[str] = MISSING
    format: str = choice("text", "json", "srt", "vtt")
    out: str | None = MISSING
    window: float = number(ge=2)
    streaming: bool = MISSING
    chunk: float = number(gt=0)
    raw_rate: int | None = number(ge=1000)
    nbest: int = number(ge=0)


@dataclass
class AlignConfig(OfModel):
    """Of `python -m speechtrain.align`."""

    audio: str | None = MISSING
    text: str | None = MISSING
    split: str = choice("train", "val", "test")
    format: list[str] = MISSING
    out: str = MISSING


@dataclass
class ExportConfig(OfModel):
    """Of `python -m speechtrain.export`."""

    format: list[str] = MISSING
    out: str | None = MISSING
    utterances: int = number(ge=1)
    representative: int = number(ge=1)
    split: str = choice("train", "val", "test")
    frames: int | None = number(ge=1)


@dataclass
class ServeConfig(OfModel):
    """Of `python -m speechtrain.serve`."""

    host: str = MISSING
    port: int = number(ge=0, le=65535)
    max_megabytes: float = number(gt=0)
    max_seconds: float = number(gt=0)
    queue: int = number(ge=1)


@dataclass
class LmConfig(OfModel):
    """Of `python -m speechtrain.lm`."""

    text: list[str] = MISSING
    out: str = MISSING
    order: int = number(ge=1, le=10)
    units: str = choice("words", "tokens")
    lexicon: str | None = MISSING
    heldout: str | None = MISSING


COMMANDS: dict[str, type[Node]] = {
    "compare": CompareConfig,
    "evaluate": EvaluateConfig,
    "transcribe": TranscribeConfig,
    "align": AlignConfig,
    "export": ExportConfig,
    "serve": ServeConfig,
    "lm": LmConfig,
}
"""The other commands, by the names of their files in `conf/`."""

SCHEMAS: dict[str, dict[str, type[Node]]] = {
    "data": {
        "digits": Digits,
        "synthetic": Synthetic,
        "manifest": Manifest,
        "featurised": Featurised,
        "folder": Folder,
        "speech_commands": SpeechCommands,
        "signals": Signals,
        "hdf5_signals": Hdf5Signals,
        "librispeech": LibriSpeech,
        "yesno": YesNo,
        "ljspeech": LJSpeech,
        "an4": An4,
        "common_voice": CommonVoice,
        "timit": Timit,
        "kaldi": Kaldi,
        "lhotse": LhotseCuts,
        "huggingface": HuggingFace,
        "mix": Mix,
    },
    "features": {"logmel": LogMel, "stored": StoredFeatures, "waveform": WaveformFeatures},
    "tokenizer": {"char": Char, "list": TokenList, "label": Label, "bpe": Bpe, "word": Words, "phoneme": Phonemes},
    "augment": {"spectrum": Augment},
    "model": {
        "tdnn": Tdnn,
        "conformer": Conformer,
        "fastconformer": FastConformer,
        "ebranchformer": EBranchformer,
        "zipformer": Zipformer,
        "wav2vec2": Wav2Vec2,
        "crdnn": Crdnn,
        "quartznet": QuartzNet,
        "lstm": Lstm,
        "mlp": Mlp,
    },
    "optimizer": {"adam": AdamLike, "adamw": AdamLike, "sgd": Sgd, "rmsprop": RmsProp},
    "scheduler": {
        "constant": Schedule,
        "warmup": Schedule,
        "warmup_cosine": WarmupCosine,
        "step": Step,
        "exponential": Exponential,
        "plateau": Plateau,
    },
    "backend": {"torch": TorchBackend, "keras": KerasBackend},
    "task": {"ctc": CtcTask, "classification": ClassificationTask, "regression": RegressionTask},
    "trainer": {"trainer": Trainer},
    "decoder": {"greedy": GreedyDecoder, "beam": BeamDecoder},
    "tracking": {"mlflow": MlflowTracking, "tensorboard": TensorBoardTracking, "wandb": WandbTracking},
    "sweeper": {"optuna": OptunaSweeper},
    "launcher": {"pool": PoolLauncher, "ssh": SshLauncher},
}


def register() -> None:
    """Make the schemas known to Hydra, under `schema/<group>/<name>` and `base`."""
    store = ConfigStore.instance()
    store.store(name="base", node=Config)
    for name, schema in COMMANDS.items():
        store.store(name=f"base_{name}", node=schema)
    for group, options in SCHEMAS.items():
        for name, schema in options.items():
            store.store(group=f"schema/{group}", name=name, node=schema)
