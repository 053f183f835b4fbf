"""What a task owns: the size and loss of the head, its metrics, and which way each of them is better. No framework in here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from speechtrain.data.batches import Batch

Direction = Literal["minimize", "maximize"]


@dataclass(frozen=True)
class Outputs:
    """What a model says of a batch.

    Attributes:
        log_probs: (B, T', V) float32.
        lengths: (B,) int64, encoder frames.
        losses: (B,) float32, summed over each utterance.
    """

    log_probs: npt.NDArray[np.float32]
    lengths: npt.NDArray[np.int64]
    losses: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Sample:
    """A reference beside what was recognised.

    Attributes:
        confidence: that it is right, from 0 to 1; None: not asked for.
        words: of the hypothesis, each with its own confidence.
    """

    id: str
    reference: str
    hypothesis: str
    confidence: float | None = None
    words: tuple[tuple[str, float], ...] = ()


class Scorer(ABC):
    """Adds up one pass over a split; rates are corpus totals, not means of batches."""

    samples: list[Sample]
    """In the order of the batches."""

    @abstractmethod
    def update(self, batch: Batch, outputs: Outputs) -> None:
        """Count a batch."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Metrics without their stage: `loss`, `cer`, ..."""


class Task(ABC):
    """A kind of training target."""

    directions: ClassVar[dict[str, Direction]]
    """Which way each metric is better, by its name without the stage."""

    loss: ClassVar[str]
    """Name of the loss in the backend's `losses`."""

    writes_text: ClassVar[bool] = False
    """Whether its samples are texts, to be compared word by word."""

    consistency: float = 0.0
    """Weight of the divergence between the outputs of two augmented views of an utterance; 0: one view."""

    @property
    @abstractmethod
    def output_size(self) -> int:
        """V, outputs of the head a frame."""

    @abstractmethod
    def infeasible(
        self, lengths: npt.NDArray[np.int64], target_lengths: npt.NDArray[np.int64], repeats: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        """Which utterances (B,) cannot be learnt with that many encoder frames."""

    @abstractmethod
    def scorer(self, *, confidence: bool = False) -> Scorer:
        """A fresh count; with confidences in its samples if they are asked for."""

    def direction(self, metric: str) -> Direction:
        """Which way `stage/metric` is better.

        Raises:
            KeyError: the task has no such metric.
        """
        return self.directions[metric.rpartition("/")[2]]
