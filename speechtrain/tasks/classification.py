"""One class for a whole utterance: keywords, commands, speakers, languages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from speechtrain.config.targets import Direction
from speechtrain.data.batches import Batch, Reference
from speechtrain.data.text.base import Tokenizer
from speechtrain.decode.base import ranking
from speechtrain.errors import ConfigError, Problem, did_you_mean
from speechtrain.tasks.base import Array, Head, Ops, Outputs, Sample, Scorer, Task, Transcription

Weights = Literal["balanced"] | Mapping[str, float] | None


class Classification(Task):
    """Cross-entropy of one class an utterance.

    Args:
        tokenizer: its vocabulary are the classes, and a text has one label.
        pool: how the encoder's frames become one: `mean`, `max`, or `last`, which suits an encoder that is causal.
        class_weights: what a class' loss counts; `balanced`: as much less as it is frequent in the training data, 1 in the mean over the
            data; or by class, 1 where none is given.
        label_smoothing: share of the wanted probability that all classes have in common (Szegedy et al. 2016).
    """

    directions: Mapping[str, Direction] = {
        "loss": "minimize",
        "accuracy": "maximize",
        "precision": "maximize",
        "recall": "maximize",
        "f1": "maximize",
    }
    shown = ("loss", "accuracy", "f1")
    report = "classes"

    def __init__(
        self,
        tokenizer: Tokenizer,
        pool: Literal["mean", "max", "last"] = "mean",
        class_weights: Weights = None,
        label_smoothing: float = 0.0,
    ) -> None:
        self.tokenizer = tokenizer
        self.classes = list(tokenizer.vocabulary)
        self.pool = pool
        self.label_smoothing = label_smoothing
        self.weights = np.ones(len(self.classes), dtype=np.float32)
        self._balanced = class_weights == "balanced"
        if isinstance(class_weights, Mapping):
            problems = [
                Problem(f"task.class_weights.{name}", "there is no such class", did_you_mean(str(name), self.classes))
                for name in class_weights
                if name not in self.classes
            ]
            if problems:
                raise ConfigError(problems)
            for name, weight in class_weights.items():
                self.weights[self.classes.index(name)] = weight

    @property
    def head(self) -> Head:
        """Describe a head of one frame of log-probabilities per utterance."""
        return Head(len(self.classes), pool=self.pool)

    def learn(self, references: Sequence[str]) -> None:
        """Count each class in the training targets, for balanced weights."""
        if not self._balanced:
            return
        counts = Counter(label for text in references for label in self.tokenizer.encode(text))
        for label, count in counts.items():
            self.weights[label] = counts.total() / (len(counts) * count)

    def target(self, reference: Reference) -> npt.NDArray[np.int64]:
        """Return the label of the class (1,); an empty array (0,) for a text that is no class."""
        return np.array(self.tokenizer.encode(reference.text)[:1], dtype=np.int64)

    def loss(self, ops: Ops, values: Array, lengths: Array, targets: Array, target_lengths: Array) -> Array:  # noqa: ARG002
        """Compute the weighted loss (B,) in nats; with label smoothing each class has its own weight, as in PyTorch."""
        share = self.label_smoothing / len(self.classes)
        wanted = (1 - self.label_smoothing) * ops.one_hot(targets[:, 0], len(self.classes)) + share
        losses = -ops.sum(wanted * ops.constant(self.weights, like=values) * values[:, 0], axis=1)
        return losses * ops.mask(target_lengths, targets)[:, 0]

    def transcription(
        self,
        values: npt.NDArray[np.float32],
        *,
        frame_seconds: float,  # noqa: ARG002
        offset: float = 0.0,  # noqa: ARG002
        nbest: int = 0,
    ) -> Transcription:
        """Give the most probable class as text, with its probability as confidence; see `Task.transcription`.

        Raises:
            ConfigError: alternatives are asked for.
        """
        if nbest:
            ranking(self.decoder)
        probabilities = np.exp(values[0])
        best = int(probabilities.argmax())
        return Transcription(self.classes[best], float(probabilities[best]))

    def scorer(self, *, detailed: bool = False) -> Scorer:
        """Return a new scorer; its samples hold the probabilities of all classes if it is detailed."""
        return ClassificationScorer(self.tokenizer, detailed=detailed)


class ClassificationScorer(Scorer):
    """Loss an utterance; accuracy; precision, recall and F1 as plain means over the classes that were wanted or found (macro averages)."""

    def __init__(self, tokenizer: Tokenizer, *, detailed: bool = False) -> None:
        self._tokenizer = tokenizer
        self._detailed = detailed
        self._loss = 0.0
        size = len(tokenizer.vocabulary)
        self.confusion = np.zeros((size + 1, size), dtype=np.int64)  # wanted x found; the last row: texts that are no class
        self.samples: list[Sample] = []

    def update(self, batch: Batch, outputs: Outputs) -> None:
        """Add the predictions for a batch to the counts."""
        self._loss += float(outputs.losses.sum())
        probabilities = np.exp(outputs.values[:, 0])
        for row, (utterance, text) in enumerate(zip(batch.ids, batch.texts, strict=True)):
            wanted = int(batch.targets[row, 0]) if batch.target_lengths[row] else -1
            found = int(probabilities[row].argmax())
            self.confusion[wanted, found] += 1
            reference = self._tokenizer.vocabulary[wanted] if wanted >= 0 else text
            arrays = {"probabilities": probabilities[row]} if self._detailed else {}
            confidence = float(probabilities[row, found]) if self._detailed else None
            hypothesis = self._tokenizer.vocabulary[found]
            self.samples.append(Sample(utterance, reference, hypothesis, confidence, ((hypothesis, confidence or 0.0),), arrays=arrays))

    def totals(self) -> tuple[float, npt.NDArray[np.int64], list[Sample]]:
        """Return the loss, the confusion matrix and the samples."""
        return self._loss, self.confusion, self.samples

    def add(self, totals: tuple[float, npt.NDArray[np.int64], list[Sample]]) -> None:
        """Add the counts of another process."""
        loss, confusion, samples = totals
        self._loss += loss
        self.confusion += confusion
        self.samples += samples

    def compute(self) -> dict[str, float]:
        """Compute `loss` in nats, `accuracy`, `precision`, `recall` and `f1`."""
        count = int(self.confusion.sum())
        if count == 0:
            return {}
        known = self.confusion[:-1]
        right, wanted, found = known.diagonal(), known.sum(1), self.confusion.sum(0)
        seen = (wanted + found) > 0
        precision, recall = right / np.maximum(found, 1), right / np.maximum(wanted, 1)
        f1 = 2 * right / np.maximum(wanted + found, 1)
        return {
            "loss": self._loss / count,
            "accuracy": float(right.sum() / count),
            "precision": float(precision[seen].mean()),
            "recall": float(recall[seen].mean()),
            "f1": float(f1[seen].mean()),
        }
