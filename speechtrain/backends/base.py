"""The contract between the program and a framework: build, train, predict, save, load.

Any object with these methods can stand in for a framework, so tests can record what a backend is asked to do.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt

from speechtrain.backends.callbacks import Callback, TrainResult
from speechtrain.backends.schedules import Schedule
from speechtrain.config.schemas.training import Trainer
from speechtrain.config.targets import Direction
from speechtrain.data.batches import Batch
from speechtrain.errors import ConfigError, Problem
from speechtrain.tasks.base import Outputs, Task

if TYPE_CHECKING:
    import torch

    from speechtrain.data.loader import Loader

Model = Any
"""The model of a backend: an encoder with the head of the task."""
LayerWeights = Sequence[Sequence[npt.NDArray[np.float32]]]
"""A layer with weights in each row, in the order in which the model holds them; its arrays as `keras.layers.Layer.weights` has them."""


@dataclass(frozen=True)
class ModelInfo:
    """The size of a model, and how its frames depend on its input.

    Attributes:
        parameters: how many of them are trained.
        subsampling: input frames for each encoder frame.
        receptive_field: how many input frames an encoder frame depends on; None: all of them.
        causal: whether no encoder frame depends on later input.
        head_trained: whether parameters of the task's head are trained.
    """

    parameters: int
    subsampling: int
    receptive_field: int | None
    causal: bool
    head_trained: bool = True


@dataclass(frozen=True)
class Monitor:
    """A metric that checkpoints or early stopping depend on, and the direction in which it is better."""

    metric: str
    direction: Direction

    @property
    def mode(self) -> Literal["min", "max"]:
        """Return the direction as Lightning and Keras write it."""
        return "min" if self.direction == "minimize" else "max"


@dataclass(frozen=True)
class TrainingPlan:
    """The settings with which a backend trains one run.

    Attributes:
        optimizer: node with `_target_`, to be called with the parameters.
        trainer: the keys of `conf/trainer`.
        objective: what the schedule goes by.
        checkpoint_monitor: what the best checkpoints are chosen by.
        stopping_monitor: what early stopping goes by.
        folder: folder of the run; checkpoints go to `checkpoints` in it.
        extra: written into each checkpoint, so that it can be loaded alone.
    """

    optimizer: Mapping[str, Any]
    schedule: Schedule
    trainer: Trainer
    objective: Monitor
    checkpoint_monitor: Monitor
    stopping_monitor: Monitor
    folder: Path
    seed: int
    resume_from: Path | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def begin_schedule(self, batches: int) -> None:
        """Tell the schedule how many optimizer steps come, from the batches an epoch."""
        epoch_steps = -(-batches // self.trainer.accumulate_grad_batches)
        total = epoch_steps * self.trainer.epochs
        self.schedule.begin(min(total, self.trainer.max_steps or total), epoch_steps)

    def restore_schedule(self, state: dict[str, Any], extra: Mapping[str, Any]) -> None:
        """Restore the state of the schedule from a checkpoint, unless another kind of schedule wrote it.

        Args:
            state: what the schedule returned when the checkpoint was written.
            extra: what the checkpoint was written with.
        """
        kinds = [config.get("scheduler", {}).get("_target_") for config in (extra.get("config", {}), self.extra.get("config", {}))]
        if None in kinds or kinds[0] == kinds[1]:
            self.schedule.load_state_dict(state)

    def changed_of_optimizer(self, extra: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of the optimizer that are others than those a checkpoint was written with, see `restore_schedule`."""
        before = extra.get("config", {}).get("optimizer", {})
        return {name: value for name, value in self.optimizer.items() if name in before and before[name] != value and name != "_target_"}

    def saves_inside(self, batch_index: int, batches: int, steps: int) -> bool:
        """Return whether the state is written after a batch, so that a run can be resumed inside an epoch.

        Args:
            batch_index: index of the batch that was trained on.
            batches: number of batches in the epoch; the state after the last one is written when the epoch is over.
            steps: number of optimizer steps so far.
        """
        every = self.trainer.checkpoint.every_n_steps
        stepped = (batch_index + 1) % self.trainer.accumulate_grad_batches == 0
        return every is not None and stepped and batch_index + 1 < batches and steps % every == 0

    def check_epoch_length(self, written: int, batches: int) -> None:
        """Refuse to resume inside an epoch that has another number of batches than the one that was stopped.

        Args:
            written: number of batches in the epoch when the checkpoint was written.
            batches: number of batches in the epoch now.

        Raises:
            ConfigError: they differ.
        """
        if written != batches:
            message = f"{self.resume_from} was written inside an epoch of {written} batches, which now has {batches}"
            fix = "resume with the same data, batch size and number of devices, or from the checkpoint of a whole epoch"
            raise ConfigError([Problem("resume", message, fix)])


def default_threads() -> int:
    """Return the threads of one operation on the CPU: OMP_NUM_THREADS, else one a core and at most 4."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return int(threads) if threads.isdigit() and int(threads) else min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class LayerSize:
    """The size of one part of a model, for a report.

    Attributes:
        name: its path in the model.
        kind: the name of its class.
        megabytes: size of its weights and running statistics in MB.
    """

    name: str
    kind: str
    parameters: int
    megabytes: float


@dataclass(frozen=True)
class Conversion:
    """The sizes that an exported model is made for, and the data that it is quantised on.

    Attributes:
        input_size: F, features of a frame.
        frames: T, frames of an utterance in formats of fixed length.
        representative: features (1, T, F) on which the ranges of values are measured for quantisation.
        whole_operators: whether each operator of `tflite_int8` must compute in whole numbers.
        input_type, output_type: `float32` or `int8`, of the features and values of `tflite_int8`.
    """

    input_size: int
    frames: int
    representative: Sequence[npt.NDArray[np.float32]] = ()
    whole_operators: bool = False
    input_type: str = "float32"
    output_type: str = "float32"


class Stream(Protocol):
    """Runs a model on a live signal, piece by piece."""

    def push(self, features: torch.Tensor) -> npt.NDArray[np.float32]:
        """Return the values (t', V) that are complete with these features (t, F)."""
        ...

    def finish(self) -> npt.NDArray[np.float32]:
        """Return the values (t', V) of the frames that are left at the end."""
        ...

    @property
    def nbytes(self) -> int:
        """Return how many bytes the state takes; it may grow with the signal, where a model attends to all of the past."""
        ...


class Backend(ABC):
    """The contract that each framework's backend fulfils."""

    name: ClassVar[str]
    suffix: ClassVar[str]
    """The ending of its files of weights."""

    formats: ClassVar[Mapping[str, str]] = {}
    """The formats that `convert` can write, with the endings of their files."""

    @abstractmethod
    def build(self, model: Mapping[str, Any], task: Task, *, input_size: int, seed: int) -> Model:
        """Build an encoder from its config node (`_target_` and arguments), with the task's head and weights drawn from `seed`."""

    def load_pretrained(self, model: Model, outputs: Sequence[int] | None = None) -> None:  # noqa: B027 # most models name none
        """Load the weights of files that the model's own config names; called before a training that is not resumed.

        Args:
            model: the model.
            outputs: for each of the V values of the model's head the output of the files' own head with the same meaning; None: the
                model's head stays as it was built.

        Raises:
            ConfigError: the weights do not fit the model, or there is no head in the files.
        """

    @abstractmethod
    def describe(self, model: Model) -> ModelInfo:
        """Return the size, subsampling and context of a model."""

    def layers(self, model: Model) -> Sequence[LayerSize]:  # noqa: ARG002
        """Return the sizes of the parts of a model, in order."""
        return ()

    def multiply_adds(
        self,
        model: Model,  # noqa: ARG002
        features: npt.NDArray[np.float32],  # noqa: ARG002
        lengths: npt.NDArray[np.int64],  # noqa: ARG002
    ) -> int | None:
        """Count the multiply-adds of a pass over features (B, T, F) of lengths (B,); None: unknown."""
        return None

    def step_seconds(self, model: Model, batch: Batch, task: Task, trainer: Trainer) -> float:  # noqa: ARG002
        """Measure the seconds that the loss and the gradient of a batch take; the model is restored afterwards.

        Raises:
            OutOfMemoryError: they do not fit into memory beside the state of an optimizer.
            ConfigError: the backend cannot measure a step by itself.
        """
        message = f"is auto; backend={self.name} cannot measure a step by itself"
        raise ConfigError([Problem("trainer.batch_seconds", message, "set data.batch_seconds, or backend=torch")])

    @abstractmethod
    def output_lengths(self, model: Model, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the encoder frames (B,) of input frames (B,)."""

    @abstractmethod
    def train(
        self, model: Model, train: Loader, val: Loader | None, task: Task, plan: TrainingPlan, callbacks: Sequence[Callback]
    ) -> TrainResult:
        """Train the model in place.

        Raises:
            NonFiniteLossError: the loss became NaN or infinite.
            KeyboardInterrupt: the user stopped the training; the last finished epoch is in its checkpoint.
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
        """Yield each batch with its outputs and losses in evaluation mode, in order: for validation and test, where targets are known."""

    @abstractmethod
    def save(self, model: Model, path: Path, extra: Mapping[str, Any]) -> None:
        """Write weights and `extra` to a file that appears whole or not at all."""

    def stream(self, model: Model) -> Stream | None:  # noqa: ARG002
        """Return a fresh state for one live signal; None: the model needs whole utterances."""
        return None

    def export(self, model: Model, folder: Path, extra: Mapping[str, Any], *, blank_last: bool) -> Path | None:  # noqa: ARG002
        """Write the trained model for other programs, where they cannot read its checkpoints.

        Args:
            model: the trained model.
            folder: where the file is written.
            extra: what belongs to the model, such as its vocabulary.
            blank_last: whether those programs expect the blank behind the other labels.

        Returns:
            The path of the file; None: nothing had to be written.
        """
        return None

    def convert(self, model: Model, kind: str, path: Path, options: Conversion) -> None:
        """Write a model for another runtime; see `formats`.

        Raises:
            NotImplementedError: the format has no counterpart for a part of the model; the message names it.
        """
        raise NotImplementedError(kind)

    def layer_weights(self, model: Model) -> LayerWeights:
        """Return the weights of a model layer by layer, as Keras holds them.

        Raises:
            NotImplementedError: a weight belongs to no layer that Keras has; the message names it.
        """
        raise NotImplementedError(f"a model of backend={self.name} has no counterpart in Keras")

    def set_layer_weights(self, model: Model, rows: LayerWeights) -> None:
        """Put the weights of another backend's model of the same config into a model, see `layer_weights`.

        Raises:
            NotImplementedError: the layers are others; the message names the first.
        """
        raise NotImplementedError(f"a model of backend={self.name} takes no weights of another backend")

    @abstractmethod
    def check_file(self, path: Path) -> None:
        """Read a checkpoint of `train` without using it.

        Raises:
            UserError: the file is damaged, or no checkpoint.
        """

    @abstractmethod
    def warm_start(self, model: Model, path: Path, labels: Sequence[int | None] | None = None) -> Sequence[str]:
        """Put those weights of a file into a model that fit it by name and shape; returns the names of those that did not.

        Args:
            model: the model.
            path: the file.
            labels: for each of the V values of the model's head the one with the same meaning in the head of the file, None where that has
                none; what is new there begins as the model was built. None: the head is loaded like the rest.

        Raises:
            UserError: the file is damaged, of another backend, or no weight of its encoder fits.
        """

    def restore(self, model: Mapping[str, Any], task: Task, path: Path, *, input_size: int) -> Model:
        """Build a model as `build` does, with the weights of a file that may be from anywhere; see `load`."""
        built = self.build(model, task, input_size=input_size, seed=0)
        self.load(built, path)
        return built

    @abstractmethod
    def load(self, model: Model, path: Path) -> Mapping[str, Any]:
        """Put the weights of a file, or of a checkpoint of `train`, into a model of the same shape; returns its `extra`.

        Raises:
            UserError: the file is damaged or belongs to another model.
        """
