"""What every config group may hold: names, types, ranges and units, registered with Hydra's ConfigStore.

The values live in `conf/`, next to comments for people; the dataclasses here have no defaults, so that each value is written down once.
A group option takes its schema with `- /schema/<group>/<name>@_here_` in its defaults list, after which Hydra refuses an unknown key
or a wrong type while composing. Ranges, and rules between the keys of one node (`rules`), are checked by `config.node_checks`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from speechtrain.config.internals import read_config_files_in_c, share_schemas
from speechtrain.config.schemas.commands import COMMANDS
from speechtrain.config.schemas.data import (
    An4,
    CommonVoice,
    Digits,
    Featurised,
    Folder,
    Hdf5Signals,
    HuggingFace,
    Kaldi,
    KeywordWindows,
    LhotseCuts,
    LibriSpeech,
    LJSpeech,
    Manifest,
    Mix,
    Shar,
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
    Jasper,
    Lstm,
    Mlp,
    Pretrained,
    QuartzNet,
    Tdnn,
    Wav2Vec2,
    Zipformer,
)
from speechtrain.config.schemas.node import Node, Rule, choice, number
from speechtrain.config.schemas.optimisation import (
    AdamLike,
    Exponential,
    Plateau,
    RmsProp,
    Schedule,
    Sgd,
    StepDecay,
    WarmupCosine,
    WarmupStableDecay,
)
from speechtrain.config.schemas.sound import (
    Augment,
    Bpe,
    Char,
    Label,
    LogMel,
    MicroFrontend,
    Phonemes,
    PretrainedFeatures,
    PretrainedTokens,
    StoredFeatures,
    TokenList,
    WaveformFeatures,
    Words,
)
from speechtrain.config.schemas.sweeps import PoolOptions, RayOptions, SshOptions, SweeperOptions
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
    worst: int = number(ge=0, most=100_000)
    audio: bool = MISSING
    posteriors: int = number(ge=0, most=10_000)
    bootstrap: int = number(ge=1, most=1_000_000)


CHOSEN = (
    *("data.val", "data.test", "data.split.by", "data.split.val", "data.split.test", "features.sample_rate", "features.n_mels"),
    *("model.time_strides", "model.channels", "trainer.precision", "trainer.epochs"),
)
"""The keys that `choose` may name; `speechtrain.training.choices` says how each is chosen."""

FORMATS = ("torchscript", "pt2", "onnx", "keras", "tflite", "tflite_int8", "tflite_micro", "huggingface", "archive")


@dataclass
class Exports(Node):
    on_train_end: list[str] = MISSING

    def rules(self) -> Iterator[Rule]:
        for name in self.on_train_end:
            if name not in FORMATS:
                yield "on_train_end", f"there is no format '{name}'", f"choose of {', '.join(FORMATS)}"


@dataclass
class Config(Node):
    """The root of a config; groups are typed by the schema of the chosen option, so their fields here stay open."""

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
    run_name: str | None = MISSING
    callbacks: list[Any] = MISSING
    budget_minutes: float | None = number(gt=0, most=1_000_000)
    choose: list[str] = choice(*CHOSEN)
    seed: int = number(ge=0, lt=2**32)
    dry_run: bool = MISSING
    test_run: str | None = choice("quick", "dry_run", "fast_dev_run")
    resume: str | None = MISSING
    init_from: str | None = MISSING
    rerun: str | None = MISSING
    trust: bool = MISSING
    objective: Objective = field(default_factory=Objective)
    language_model: str | None = choice("tokens", "words")
    samples: int = number(ge=0)
    report: Report = field(default_factory=Report)
    export: Exports = field(default_factory=Exports)
    output_dir: str = MISSING


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
        "shar": Shar,
        "huggingface": HuggingFace,
        "keyword_windows": KeywordWindows,
        "mix": Mix,
    },
    "features": {
        "logmel": LogMel,
        "microfrontend": MicroFrontend,
        "stored": StoredFeatures,
        "waveform": WaveformFeatures,
        "pretrained": PretrainedFeatures,
    },
    "tokenizer": {
        "char": Char,
        "list": TokenList,
        "label": Label,
        "bpe": Bpe,
        "word": Words,
        "phoneme": Phonemes,
        "pretrained": PretrainedTokens,
    },
    "augment": {"spectrum": Augment},
    "model": {
        "tdnn": Tdnn,
        "conformer": Conformer,
        "fastconformer": FastConformer,
        "ebranchformer": EBranchformer,
        "zipformer": Zipformer,
        "wav2vec2": Wav2Vec2,
        "pretrained": Pretrained,
        "crdnn": Crdnn,
        "quartznet": QuartzNet,
        "jasper": Jasper,
        "lstm": Lstm,
        "mlp": Mlp,
    },
    "optimizer": {"adam": AdamLike, "adamw": AdamLike, "sgd": Sgd, "rmsprop": RmsProp},
    "scheduler": {
        "constant": Schedule,
        "warmup": Schedule,
        "warmup_cosine": WarmupCosine,
        "warmup_stable_decay": WarmupStableDecay,
        "cosine": WarmupCosine,
        "step": StepDecay,
        "exponential": Exponential,
        "plateau": Plateau,
    },
    "backend": {"torch": TorchBackend, "keras": KerasBackend},
    "task": {"ctc": CtcTask, "classification": ClassificationTask, "regression": RegressionTask},
    "trainer": {"trainer": Trainer},
    "decoder": {"greedy": GreedyDecoder, "beam": BeamDecoder},
    "tracking": {"mlflow": MlflowTracking, "tensorboard": TensorBoardTracking, "wandb": WandbTracking},
    "sweeper": {"optuna": SweeperOptions},
    "launcher": {"pool": PoolOptions, "ray": RayOptions, "ssh": SshOptions},
}


def register() -> None:
    """Register the schemas with Hydra, under `schema/<group>/<name>` and `base`."""
    share_schemas()
    read_config_files_in_c()
    store = ConfigStore.instance()
    store.store(name="base", node=Config)
    for name, schema in COMMANDS.items():
        store.store(name=f"base_{name}", node=schema)
    for group, options in SCHEMAS.items():
        for name, schema in options.items():
            store.store(group=f"schema/{group}", name=name, node=schema)
