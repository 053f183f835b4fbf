"""Scores of each class against the others, as scikit-learn counts them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
import numpy.typing as npt
from sklearn import metrics


@dataclass(frozen=True)
class ClassScores:
    """Holds the scores of one class against all others.

    Attributes:
        support: how many utterances belong to it.
        roc_auc, average_precision: areas below the curves; None where all utterances belong to it, or none.
    """

    name: str
    support: int
    precision: float
    recall: float
    f1: float
    roc_auc: float | None
    average_precision: float | None


@dataclass(frozen=True)
class Curve:
    """Holds the curve of one class: points (x, y) and the area below them."""

    name: str
    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    area: float


@dataclass(frozen=True)
class ClassResults:
    """Holds what a classifier got right and wrong in a split.

    Attributes:
        classes: names, in the order of their labels.
        confusion: counts (wanted, found); a row more than there are classes counts the utterances of no class.
        scores: the scores of each class.
        roc: false positive rate and true positive rate as the threshold falls.
        precision_recall: recall and precision as the threshold falls.
        accuracy: share of the utterances that is right.
    """

    classes: Sequence[str]
    confusion: npt.NDArray[np.int64]
    scores: Sequence[ClassScores]
    roc: Sequence[Curve]
    precision_recall: Sequence[Curve]
    accuracy: float


def class_results(
    wanted: Sequence[int], found: Sequence[int], probabilities: npt.NDArray[np.float32], classes: Sequence[str]
) -> ClassResults:
    """Count, score and draw the curves of a split.

    Args:
        wanted: labels (N,) of the references; -1 for no class.
        found: labels (N,) of the classifier.
        probabilities: (N, V) of the classifier.
        classes: names of the V classes.
    """
    true, guess = np.asarray(wanted), np.asarray(found)
    labels = list(range(len(classes)))
    confusion = np.zeros((len(classes) + 1, len(classes)), dtype=np.int64)
    np.add.at(confusion, (true, guess), 1)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(true, guess, labels=labels, zero_division=0)
    roc, curves = [], []
    scores = []
    for label, name in enumerate(classes):
        positive = true == label
        area = average = None
        if positive.any() and not positive.all():
            x, y, _ = metrics.roc_curve(positive, probabilities[:, label])
            area = float(metrics.auc(x, y))
            roc.append(Curve(name, x, y, area))
            high, low, _ = metrics.precision_recall_curve(positive, probabilities[:, label])
            average = float(metrics.average_precision_score(positive, probabilities[:, label]))
            curves.append(Curve(name, low, high, average))
        scores.append(
            ClassScores(name, int(support[label]), float(precision[label]), float(recall[label]), float(f1[label]), area, average)
        )
    accuracy = float(np.mean(true == guess)) if len(true) else 0.0
    return ClassResults(classes, confusion if (true < 0).any() else confusion[:-1], scores, roc, curves, accuracy)


def scores_csv(scores: Sequence[ClassScores]) -> str:
    """Return the table of the classes as CSV."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [each.name for each in fields(ClassScores)], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value is None else value for name, value in asdict(each).items()} for each in scores)
    return buffer.getvalue()
