"""Schemas of backends, tasks, the trainer, decoders and trackers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from omegaconf import MISSING

from speechtrain.config.extras import needed
from speechtrain.config.schemas.node import Node, Rule, Target, choice, number

MOST_THREADS = 1024
"""More threads of one operation than any machine has cores for; tens of thousands end PyTorch's process."""


@dataclass
class TorchBackend(Target):
    name: str = MISSING
    threads: int | None = number(ge=1, le=MOST_THREADS)
    compile: bool = MISSING


@dataclass
class KerasBackend(Target):
    name: str = MISSING
    engine: str = choice("tensorflow", "jax", "torch")
    threads: int | None = number(ge=1, le=MOST_THREADS)
    jit_compile: bool | None = MISSING
    precision: str = MISSING
    deterministic: bool = MISSING

    def rules(self) -> Iterator[Rule]:
        yield from needed("engine", ("keras", self.engine) if self.engine != "torch" else ("keras",))


@dataclass
class Task(Target):
    """A task with its `metric`, which `objective.metric` takes unless it is set itself; it is not passed to `_target_`."""

    metric: str = MISSING


@dataclass
class CtcTask(Task):
    goes_with: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "tokenizer": ("Char", "TokenList", "Bpe", "Words", "Phonemes", "PretrainedTokens")
    }
    on_infeasible: str = choice("skip", "error", "keep")
    consistency: float = number(ge=0)
    intermediate: float = number(ge=0, lt=1)
    label_smoothing: float = number(ge=0, lt=1)


@dataclass
class ClassificationTask(Task):
    goes_with: ClassVar[Mapping[str, tuple[str, ...]]] = {"tokenizer": ("Label",)}
    pool: str = choice("mean", "max", "last")
    class_weights: Any = MISSING
    label_smoothing: float = number(ge=0, lt=1)

    def rules(self) -> Iterator[Rule]:
        weights, example = self.class_weights, "for example task.class_weights=balanced or '{yes: 2, no: 1}'"
        if isinstance(weights, dict):
            bad = {
                name: value
                for name, value in weights.items()
                if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0
            }
            for name, value in bad.items():
                yield "class_weights", f"must be numbers of at least 0, received {value!r} for {name!s}", example
        elif weights not in (None, "balanced"):
            yield "class_weights", f"must be balanced, null or a weight for each class, received {weights!r}", example


@dataclass
class RegressionTask(Task):
    goes_with: ClassVar[Mapping[str, tuple[str, ...]]] = {"data": ("Signals", "Hdf5Signals")}
    criterion: str = choice("mse", "mae", "huber", "smooth_l1")
    delta: float = number(gt=0)
    mixture_channel: int | None = number(ge=0)


_STRATEGIES = ("ddp", "fsdp", "deepspeed", "single_", "xla")


@dataclass
class EarlyStopping(Node):
    patience: int | None = number(ge=0)
    min_delta: float = number(ge=0)
    monitor: str | None = MISSING


@dataclass
class Checkpoint(Node):
    save_top_k: int = number(ge=0)
    save_last: bool = MISSING
    every_n_epochs: int | None = number(ge=1)
    every_n_steps: int | None = number(ge=1)
    monitor: str | None = MISSING
    filename: str = MISSING

    def rules(self) -> Iterator[Rule]:
        if self.every_n_steps is not None and not self.save_last:
            fix = "set trainer.checkpoint.save_last=true"
            yield "every_n_steps", f"is {self.every_n_steps}, and the last checkpoint is not kept", fix


@dataclass
class Trainer(Node):
    epochs: int = number(ge=1)
    max_steps: int | None = number(ge=1)
    gradient_clip_val: float | None = number(gt=0)
    gradient_clip_algorithm: str = choice("norm", "value")
    accumulate_grad_batches: int = number(ge=1)
    ema_decay: float | None = number(gt=0, lt=1)
    layer_dropout: float = number(ge=0, lt=1)
    average_last: int | None = number(ge=1, most=10_000)
    gradient_checkpointing: bool = MISSING
    try_largest: bool | None = MISSING
    find_lr: bool = MISSING
    batch_seconds: str | None = choice("auto")
    max_skipped_steps: int = number(ge=0)
    precision: str = choice("32-true", "16-mixed", "bf16-mixed", "bf16-true", "64-true")
    accelerator: str = choice("auto", "cpu", "gpu", "cuda", "mps", "tpu")
    devices: Any = MISSING
    strategy: str = MISSING
    sync_batchnorm: bool = MISSING
    deterministic: bool = MISSING
    val_every_n_epochs: int = number(ge=1)
    log_every_n_steps: int | None = number(ge=1)
    limit_epochs: int | None = number(ge=1)
    limit_train_batches: int | None = number(ge=1)
    limit_val_batches: int | None = number(ge=1)
    limit_test_batches: int | None = number(ge=1)
    fast_dev_run: bool = MISSING
    test_checkpoint: str = choice("best", "last", "mean")
    early_stopping: EarlyStopping = field(default_factory=EarlyStopping)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)

    def rules(self) -> Iterator[Rule]:
        if self.strategy != "auto" and not self.strategy.startswith(_STRATEGIES):
            yield (
                "strategy",
                f"is {self.strategy}, which Lightning does not know",
                f"it begins with one of {', '.join(_STRATEGIES)}, or is auto",
            )
        if self.test_checkpoint == "mean" and self.average_last is None:
            yield "test_checkpoint", "is mean, and no weights are averaged", "set trainer.average_last=5"


@dataclass
class GreedyDecoder(Target):
    pass


@dataclass
class BeamDecoder(Target):
    beam_size: int = number(ge=1, most=100_000)
    beam_size_token: int | None = number(ge=1, most=1_000_000)
    beam_threshold: float = number(gt=0)
    lexicon: str | None = MISSING
    lm: str | None = MISSING
    lm_weight: float = number(ge=0)
    word_score: float = number()
    hot_words: list[str] = MISSING
    hot_word_score: float = number()


@dataclass
class MlflowTracking(Target):
    tracking_uri: str | None = MISSING
    experiment: str | None = MISSING
    run_name: str | None = MISSING
    log_checkpoint: bool = MISSING
    log_last: bool = MISSING
    log_model: bool = MISSING
    registered_model: str | None = MISSING
    system_metrics: float | None = number(gt=0)
    patience: float = number(ge=0)

    def rules(self) -> Iterator[Rule]:
        if self.experiment is not None and not 1 <= len(self.experiment.strip()) <= 500:
            yield "experiment", f"has {len(self.experiment)} letters, and MLflow takes 1 to 500", "shorten the name, or write null"
        if self.registered_model is not None and (not self.registered_model.strip() or set("/:") & set(self.registered_model)):
            message = f"is {self.registered_model!r:.100}, and MLflow takes no empty name, and none with '/' or ':'"
            yield "registered_model", message, "choose another name, or write null"


@dataclass
class TensorBoardTracking(Target):
    folder: str = MISSING
    table_rows: int = number(ge=0)


@dataclass
class WandbTracking(Target):
    project: str = MISSING
    entity: str | None = MISSING
    mode: str = choice("auto", "online", "offline")
    log_checkpoint: bool = MISSING
