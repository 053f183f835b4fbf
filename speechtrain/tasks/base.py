"""What a task owns: its targets, its head, its loss, its metrics and the direction in which each is better. No framework is imported here.

Everything else asks the task through this contract and never which task it is; `docs/tasks.md` adds one in a single file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt

from speechtrain.config.targets import Direction
from speechtrain.data.batches import Batch, Reference, Target
from speechtrain.data.text.base import count_repeats
from speechtrain.errors import UserError

if TYPE_CHECKING:
    from speechtrain.decode.align import Word
    from speechtrain.decode.base import Decoder

Array = Any
"""An array of the framework that computes the loss."""


@dataclass(frozen=True)
class Head:
    """The head on the encoder, as each backend builds it: [pool over time] -> linear -> [log-softmax].

    Attributes:
        size: V, values a frame; with `per_input_frame` of an input frame.
        pool: how the frames of an utterance become one: `mean`, `max` or `last`; None: they stay as they are.
        log_softmax: whether the values are normalised to log-probabilities, in float32.
        per_input_frame: whether there are values for each frame that went in, whatever the encoder's subsampling.
        zero_init: whether the linear layer's weights start as zeros behind an encoder of limited context (docs/decisions/0010).
    """

    size: int
    pool: Literal["mean", "max", "last"] | None = None
    log_softmax: bool = True
    per_input_frame: bool = False
    zero_init: bool = False


class Ops(Protocol):
    """The operations in which losses are written, so that they are the same on every backend; arrays are the framework's own.

    `framework` has the rest: `torch`, or `keras.ops`.
    """

    framework: Any

    def ctc(self, log_probs: Array, lengths: Array, targets: Array, target_lengths: Array) -> Array:
        """Return the CTC loss (B,) of (B, T', V), blank 0; 0 where no alignment exists."""
        ...

    def mask(self, lengths: Array, like: Array) -> Array:
        """Make a mask (B, T) in float32: 1 inside each row of another array (B, T, ...), 0 behind its end."""
        ...

    def one_hot(self, labels: Array, size: int) -> Array:
        """Map (B,) of whole numbers to (B, size) in float32."""
        ...

    def constant(self, values: Any, like: Array) -> Array:
        """Return an array of numbers in float32, on the device of another one."""
        ...

    def sum(self, values: Array, axis: int | tuple[int, ...]) -> Array:
        """Reduce over one axis or several."""
        ...

    def mean(self, values: Array, axis: int | tuple[int, ...]) -> Array:
        """Reduce over one axis or several."""
        ...

    def absolute(self, values: Array) -> Array:
        """Compute the absolute value at each place."""
        ...

    def where(self, condition: Array, yes: Array, no: Array) -> Array:
        """Choose each value from one array or the other by a condition."""
        ...


@dataclass(frozen=True)
class Outputs:
    """The outputs of a model for a batch.

    Attributes:
        values: (B, T', V) float32, as the head gives them: log-probabilities, or signals.
        lengths: (B,) int64, frames of them.
        losses: (B,) float32, summed over each utterance.
    """

    values: npt.NDArray[np.float32]
    lengths: npt.NDArray[np.int64]
    losses: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Sample:
    """The hypothesis for an utterance beside its reference.

    Attributes:
        reference, hypothesis: texts; empty where a task has none.
        confidence: probability that the hypothesis is right, from 0 to 1; None if it was not requested.
        words: words of the hypothesis, each with its own confidence.
        measures: metrics of this utterance alone.
        arrays: what pictures are made of, by name.
    """

    id: str
    reference: str = ""
    hypothesis: str = ""
    confidence: float | None = None
    words: tuple[tuple[str, float], ...] = ()
    measures: Mapping[str, float] = field(default_factory=dict)
    arrays: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Transcription:
    """The text that was recognised in a recording, or in a piece of one.

    Attributes:
        confidence: probability that the text is right, 0 to 1.
        words: each with its own confidence, and its times in s.
        alternatives: other texts with their scores (natural logarithms), the best first, where the decoder ranks several and they were
            asked for.
    """

    text: str
    confidence: float
    words: tuple[Word, ...] = ()
    alternatives: tuple[tuple[str, float], ...] = ()


class Scorer(ABC):
    """Adds up one pass over a split; rates are corpus totals, not means of batches."""

    samples: list[Sample]
    """The scored utterances, in the order of the batches."""

    @abstractmethod
    def update(self, batch: Batch, outputs: Outputs) -> None:
        """Count the utterances of a batch."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Return the metrics by name without the stage, such as `loss` and `cer`."""

    def totals(self) -> Any:
        """Return the counts, to be added to those of another process; needed where a run trains on several devices."""
        raise NotImplementedError(f"{type(self).__name__} has no totals(), which training on several devices needs")

    def add(self, totals: Any) -> None:
        """Count what another process has counted."""
        raise NotImplementedError(f"{type(self).__name__} has no add(), which training on several devices needs")


class Task(ABC):
    """A kind of training target."""

    directions: Mapping[str, Direction]
    """Which way each metric is better, by its name without the stage."""

    shown: ClassVar[tuple[str, ...]] = ("loss",)
    """Metrics in the line of an epoch, by their names without the stage."""

    report: ClassVar[str | None] = None
    """The report on a finished run: a function of `speechtrain.report.reports` by name, or a dotted path; None: nothing but the history."""

    consistency: float = 0.0
    """Weight of the divergence between the outputs of two augmented views of an utterance; 0: one view."""

    intermediate: float = 0.0
    """Weight of the loss of a second head, the same one, in the middle of the encoder; the last one has the rest of 1."""

    on_infeasible: str | None = None
    """What happens to training utterances that `infeasible` finds: `skip`, `error` or `keep`; None: there are none to look for."""

    decoder: Decoder | None = None
    """Turns outputs into labels; None: the task has nothing to decode."""

    timed: ClassVar[bool] = False
    """Whether outputs are log-probabilities of the blank and the tokenizer's labels in each frame (T', V). Words then have times, texts can
    be aligned with recordings, and long recordings are computed in windows."""

    @property
    def views(self) -> int:
        """Return how many augmented views of each utterance a training batch has."""
        return 2 if self.consistency else 1

    @property
    @abstractmethod
    def head(self) -> Head:
        """Describe the head that is put on the encoder."""

    def transcription(
        self,
        values: npt.NDArray[np.float32],  # noqa: ARG002
        *,
        frame_seconds: float,  # noqa: ARG002
        offset: float = 0.0,  # noqa: ARG002
        nbest: int = 0,  # noqa: ARG002
    ) -> Transcription:
        """Turn the outputs of one utterance into text.

        Args:
            values: (T', V), as the head gives them.
            frame_seconds: between two encoder frames.
            offset: s, added to the times of words.
            nbest: how many alternatives to give.

        Raises:
            UserError: the task has no texts, or its decoder gives one text only and alternatives are asked for.
        """
        raise UserError(f"a model of the task {type(self).__name__} gives no text\n    -> take a model of task=ctc")

    @abstractmethod
    def target(self, reference: Reference) -> Target:
        """Return the target of an utterance: labels (L,) of whole numbers, or frames (L, C) of float32."""

    @abstractmethod
    def loss(self, ops: Ops, values: Array, lengths: Array, targets: Array, target_lengths: Array) -> Array:
        """Compute the loss of each utterance (B,), summed over its targets; 0 for one without targets.

        A training step divides the sum over the batch by the number of its targets (`target_lengths`).

        Args:
            ops: what to compute it with.
            values: (B, T', V), as the head gives them.
            lengths: (B,) frames of them.
            targets: (B, L) or (B, L, C), zero behind each row's end.
            target_lengths: (B,).
        """

    def regularised(self, ops: Ops, losses: Array, values: Array, lengths: Array) -> Array:  # noqa: ARG002
        """Return the losses (B,) to train on, where they differ from those that are reported."""
        return losses

    @abstractmethod
    def scorer(self, *, detailed: bool = False) -> Scorer:
        """Return a new scorer; `detailed`: its samples hold more than texts."""

    def learn(self, references: Sequence[str]) -> None:  # noqa: B027
        """Collect statistics of the training texts, such as the frequency of each class, before training."""

    def count_labels(self, texts: Iterable[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Count the labels in the target of each text (N,), and the equal neighbours among them (N,)."""
        targets = (self.target(Reference(text)) for text in texts)
        counts = [(len(target), count_repeats(target)) for target in targets]
        sizes, repeats = np.array(counts, dtype=np.int64).reshape(-1, 2).T
        return sizes, repeats

    def infeasible(
        self,
        lengths: npt.NDArray[np.int64],  # noqa: ARG002
        target_lengths: npt.NDArray[np.int64],
        repeats: npt.NDArray[np.int64],  # noqa: ARG002
    ) -> npt.NDArray[np.bool_]:
        """Return which utterances (B,) cannot be learnt with that many encoder frames, labels, and equal neighbours among these."""
        return np.zeros(len(target_lengths), dtype=bool)

    def direction(self, metric: str) -> Direction:
        """Return the direction in which `stage/metric` is better.

        Raises:
            KeyError: the task has no such metric.
        """
        return self.directions[metric.rpartition("/")[2]]
