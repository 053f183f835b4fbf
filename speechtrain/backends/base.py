"""The contract between the program and a framework: build, train, predict, save, load.

Any object with these methods can stand in for a framework, so tests can record what a backend is asked to do.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from speechtrain.backends.callbacks import Callback, TrainResult
from speechtrain.backends.schedules import Schedule
from speechtrain.config.targets import Direction
from speechtrain.data.batches import Batch
from speechtrain.data.loader import Loader
from speechtrain.errors import ConfigError, Problem
from speechtrain.tasks.base import Outputs, Task

if TYPE_CHECKING:
    import torch

Model = Any
"""A backend's own model: an encoder and the task's head."""


@dataclass(frozen=True)
class ModelInfo:
    """What a model says of itself.

    Attributes:
        parameters: trainable ones.
        subsampling: input frames an encoder frame.
        receptive_field: input frames that an encoder frame depends on; None: all of them.
        causal: whether no encoder frame depends on later input.
    """

    parameters: int
    subsampling: int
    receptive_field: int | None
    causal: bool


@dataclass(frozen=True)
class Plan:
    """How to train; the fields are those of `conf/trainer`, resolved.

    Attributes:
        optimizer: node with `_target_`, to be called with the parameters.
        monitor: metric that `best` and early stopping go by, and which way is better.
        folder: of the run; checkpoints go to `checkpoints` in it.
        extra: put into each checkpoint, so that it can be loaded alone.
    """

    optimizer: Mapping[str, Any]
    schedule: Schedule
    trainer: Mapping[str, Any]
    monitor: str
    direction: Direction
    folder: Path
    seed: int
    resume_from: Path | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def begin_schedule(self, batches: int) -> None:
        """Tell the schedule how many optimizer steps come, from the batches an epoch."""
        epoch_steps = -(-batches // self.trainer["accumulate_grad_batches"])
        total = epoch_steps * self.trainer["epochs"]
        self.schedule.begin(min(total, self.trainer["max_steps"] or total), epoch_steps)

    def saves_inside(self, batch_index: int, batches: int, steps: int) -> bool:
        """Whether the state is to be kept after a batch, so that a run can be resumed inside an epoch.

        Args:
            batch_index: of the batch that was trained on.
            batches: of the epoch; the last one's state is kept when the epoch is over.
            steps: of the optimizer so far.
        """
        every = self.trainer["checkpoint"]["every_n_steps"]
        stepped = (batch_index + 1) % self.trainer["accumulate_grad_batches"] == 0
        return every is not None and stepped and batch_index + 1 < batches and steps % every == 0

    def check_inside(self, written: int, batches: int) -> None:
        """Refuse to go on inside an epoch that is divided otherwise than the one that was stopped.

        Args:
            written: batches of the epoch when the checkpoint was written.
            batches: of the epoch now.

        Raises:
            ConfigError: they differ.
        """
        if written != batches:
            message = f"{self.resume_from} was written inside an epoch of {written} batches, which now has {batches}"
            fix = "resume with the same data and batch size, or from the checkpoint of a whole epoch"
            raise ConfigError([Problem("resume", message, fix)])


def default_threads() -> int:
    """Of one operation on the CPU: as OMP_NUM_THREADS says, else one a core, at most 4."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdigit() and int(told) else min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class Layer:
    """A part of a model, for people.

    Attributes:
        kind: its class.
    """

    name: str
    kind: str
    parameters: int
    megabytes: float


@dataclass(frozen=True)
class Conversion:
    """What a conversion needs to know.

    Attributes:
        input_size: F.
        frames: T of files with a fixed length.
        representative: features (1, T, F) that ranges of values are measured on, for quantisation.
    """

    input_size: int
    frames: int
    representative: Sequence[npt.NDArray[np.float32]] = ()


class Stream(Protocol):
    """A model on a live signal."""

    def push(self, features: torch.Tensor) -> npt.NDArray[np.float32]:
        """Values (t', V) that features (t, F) complete."""
        ...

    def finish(self) -> npt.NDArray[np.float32]:
        """Values (t', V) of what is left."""
        ...


class Backend(ABC):
    """A framework."""

    name: ClassVar[str]
    suffix: ClassVar[str]
    """Of its files of weights."""

    formats: ClassVar[Mapping[str, str]] = {}
    """What `convert` can write, with the endings of the files."""

    @abstractmethod
    def build(self, model: Mapping[str, Any], task: Task, *, input_size: int, seed: int) -> Model:
        """An encoder from its config node (`_target_` and arguments) with the task's head, weights drawn from `seed`."""

    def load_pretrained(self, model: Model) -> None:  # noqa: B027 # most models name none
        """Take the weights of files that the model's own config names; called before a training that begins anew.

        Raises:
            ConfigError: they do not fit.
        """

    @abstractmethod
    def describe(self, model: Model) -> ModelInfo:
        """Size, subsampling and context of a model."""

    def layers(self, model: Model) -> Sequence[Layer]:  # noqa: ARG002
        """The parts of a model in order."""
        return ()

    def multiply_adds(
        self,
        model: Model,  # noqa: ARG002
        features: npt.NDArray[np.float32],  # noqa: ARG002
        lengths: npt.NDArray[np.int64],  # noqa: ARG002
    ) -> int | None:
        """Count the multiply-adds of a pass over features (B, T, F) of lengths (B,); None: unknown."""
        return None

    def step_seconds(self, model: Model, batch: Batch, task: Task, trainer: Mapping[str, Any]) -> float:  # noqa: ARG002
        """How long a batch's loss and gradient take; the model is left as it was.

        Raises:
            OutOfMemoryError: they do not fit into memory, beside what an optimizer keeps.
            ConfigError: the backend cannot tell.
        """
        message = f"is auto; backend={self.name} cannot measure a step by itself"
        raise ConfigError([Problem("trainer.batch_seconds", message, "set data.batch_seconds, or backend=torch")])

    @abstractmethod
    def output_lengths(self, model: Model, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Encoder frames (B,) of input frames (B,)."""

    @abstractmethod
    def train(self, model: Model, train: Loader, val: Loader | None, task: Task, plan: Plan, callbacks: Sequence[Callback]) -> TrainResult:
        """Train in place.

        Raises:
            NonFiniteLossError: the loss became NaN or infinite.
            KeyboardInterrupt: the user stopped it; the last finished epoch is in its checkpoint.
        """

    @abstractmethod
    def infer(
        self, model: Model, features: npt.NDArray[np.float32], lengths: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Compute a model's outputs in evaluation mode, without a loss.

        Args:
            model: with its weights.
            features: (B, T, F), zero behind each utterance's end.
            lengths: (B,) frames of each.

        Returns:
            Outputs (B, T', V) as the head gives them, and their lengths (B,).
        """

    @abstractmethod
    def predict(self, model: Model, batches: Iterable[Batch], task: Task) -> Iterator[tuple[Batch, Outputs]]:
        """Yield outputs and losses of each batch in evaluation mode, in order: for validation and test, where targets are known."""

    @abstractmethod
    def save(self, model: Model, path: Path, extra: Mapping[str, Any]) -> None:
        """Write weights and `extra` to a file that appears whole or not at all."""

    def stream(self, model: Model) -> Stream | None:  # noqa: ARG002
        """A fresh state for one live signal; None: the model needs whole utterances."""
        return None

    def export(self, model: Model, folder: Path, extra: Mapping[str, Any], *, blank_last: bool) -> Path | None:  # noqa: ARG002
        """Write the model for programs that do not know this one, if its checkpoints are not what they can read.

        Args:
            model: trained.
            folder: to write to.
            extra: what belongs to the model, such as its vocabulary.
            blank_last: whether those programs have the blank behind the other labels.

        Returns:
            The file; None: there is nothing to write.
        """
        return None

    def convert(self, model: Model, kind: str, path: Path, options: Conversion) -> None:
        """Write a model for another runtime; see `formats`.

        Raises:
            NotImplementedError: the model has parts that the format has not; the message names them.
        """
        raise NotImplementedError(kind)

    @abstractmethod
    def check_file(self, path: Path) -> None:
        """Read a checkpoint of `train` without using it.

        Raises:
            UserError: it is damaged, or none.
        """

    @abstractmethod
    def warm_start(self, model: Model, path: Path) -> Sequence[str]:
        """Put those weights of a file into a model that fit it by name and shape; returns what was left as it was.

        Raises:
            UserError: the file is damaged, of another backend, or no weight of its encoder fits.
        """

    @abstractmethod
    def load(self, model: Model, path: Path) -> Mapping[str, Any]:
        """Put the weights of a file, or of a checkpoint of `train`, into a model of the same shape; returns its `extra`.

        Raises:
            UserError: the file is damaged or belongs to another model.
        """
