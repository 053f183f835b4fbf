"""Classes: their labels, their weights, and metrics that are scikit-learn's."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn import metrics

from speechtrain.data.batches import Batch, Reference
from speechtrain.data.text.tokenizers import LabelTokenizer
from speechtrain.errors import ConfigError, DataError
from speechtrain.report.classes import class_results, scores_csv
from speechtrain.tasks.base import Outputs
from speechtrain.tasks.classification import Classification

CLASSES = ["no", "off", "on", "yes"]


def task(**options: object) -> Classification:
    return Classification(LabelTokenizer(vocabulary=CLASSES), **options)  # type: ignore[arg-type]


def batch_of(texts: list[str], probabilities: np.ndarray) -> tuple[Batch, Outputs]:
    found = [task().target(Reference(text)) for text in texts]
    sizes = np.array([len(each) for each in found])
    targets = np.array([each[0] if len(each) else 0 for each in found])[:, None]
    count = len(texts)
    log_probs = np.log(probabilities)[:, None].astype(np.float32)
    losses = np.full(count, 0.5, np.float32)
    names = tuple(map(str, range(count)))
    return (
        Batch(np.zeros((count, 1, 1), np.float32), np.ones(count, np.int64), targets, sizes, names, tuple(texts), 1.0),
        Outputs(log_probs, np.ones(count, np.int64), losses),
    )


def test_metrics_are_those_of_scikit_learn_on_all_utterances_and_not_means_of_batches() -> None:
    rng = np.random.default_rng(3)
    texts = [CLASSES[index] for index in rng.choice(3, size=60, p=[0.7, 0.2, 0.1])]  # "yes" never is, but may be found
    probabilities = rng.dirichlet(np.ones(4), size=60)
    scorer = task().scorer(detailed=True)
    for rows in (slice(0, 7), slice(7, 60)):
        scorer.update(*batch_of(texts[rows], probabilities[rows]))
    found = scorer.compute()
    guesses = [CLASSES[index] for index in probabilities.argmax(1)]
    assert found["loss"] == pytest.approx(0.5)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(texts, guesses))
    wanted = metrics.precision_recall_fscore_support(texts, guesses, average="macro", zero_division=0)
    assert [found[name] for name in ("precision", "recall", "f1")] == pytest.approx(wanted[:3])
    assert [(each.reference, each.hypothesis) for each in scorer.samples] == list(zip(texts, guesses, strict=True))
    assert [each.confidence for each in scorer.samples] == pytest.approx(probabilities.max(1), rel=1e-5)
    assert task().scorer().compute() == {}


def test_a_text_that_is_no_class_is_never_right_and_changes_no_loss() -> None:
    scorer = task().scorer()
    batch, outputs = batch_of(["yes", "perhaps"], np.array([[0.1, 0.1, 0.1, 0.7], [0.1, 0.1, 0.1, 0.7]]))
    assert batch.target_lengths.tolist() == [1, 0]
    scorer.update(batch, outputs)
    assert scorer.compute()["accuracy"] == 0.5
    assert scorer.compute()["precision"] == 0.5


def test_balanced_weights_follow_the_training_texts_and_are_one_in_the_mean() -> None:
    balanced = task(class_weights="balanced")
    texts = ["no"] * 6 + ["off"] * 3 + ["on"] * 3
    balanced.learn(texts)
    weights = dict(zip(CLASSES, balanced.weights, strict=True))
    assert weights == pytest.approx({"no": 12 / 18, "off": 12 / 9, "on": 12 / 9, "yes": 1.0})
    assert np.mean([weights[text] for text in texts]) == pytest.approx(1.0)
    given = task(class_weights={"yes": 3})
    given.learn(texts)
    assert given.weights.tolist() == [1, 1, 1, 3]
    with pytest.raises(ConfigError, match=r"task.class_weights.yess: there is no such class[\s\S]*'yes'"):
        task(class_weights={"yess": 3})


def test_labels_are_the_texts_of_the_training_data_or_the_ones_listed() -> None:
    assert LabelTokenizer(["b", "a", "b"]).vocabulary == ["a", "b"]
    listed = LabelTokenizer(["go", "stop", "tree"], classes=["stop", "go"], unknown="_unknown_")
    assert listed.vocabulary == ["stop", "go", "_unknown_"]
    assert [listed.encode(text) for text in ("go", "tree", "_unknown_")] == [[1], [2], [2]]
    assert listed.unknown("tree") == []
    again = LabelTokenizer(vocabulary=listed.vocabulary, unknown="_unknown_")
    assert again.encode("tree") == [2]
    assert LabelTokenizer(["a", "b"]).unknown("c") == ["c"]


@pytest.mark.parametrize(
    ("texts", "options", "said"),
    [
        (["go", "tree", "tree"], {"classes": ["go", "stop"]}, r"lacks texts of the training data: 'tree' \(2x\)[\s\S]*tokenizer.unknown"),
        (["go", "go"], {}, r"only one class"),
        ([f"a sentence of its own, {index}" for index in range(60)], {}, r"60 classes in 60 training utterances[\s\S]*task=ctc"),
    ],
)
def test_texts_that_are_no_classes_are_refused(texts: list[str], options: dict[str, object], said: str) -> None:
    with pytest.raises(DataError, match=said):
        LabelTokenizer(texts, **options)  # type: ignore[arg-type]


def test_curves_and_their_areas_are_of_each_class_against_the_others() -> None:
    rng = np.random.default_rng(0)
    wanted = [0] * 20 + [1] * 15 + [2] * 5 + [-1] * 2
    probabilities = rng.dirichlet(np.ones(4), size=42).astype(np.float32)
    probabilities[:20, 0] += 1
    found = probabilities.argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = class_results(wanted, found, probabilities, CLASSES)
    assert results.confusion.shape == (5, 4)
    assert results.confusion.sum() == 42
    assert results.confusion[4].sum() == 2
    by_name = {each.name: each for each in results.scores}
    assert by_name["no"].roc_auc == pytest.approx(metrics.roc_auc_score(np.array(wanted) == 0, probabilities[:, 0]))
    assert by_name["no"].support == 20
    assert by_name["yes"].roc_auc is None  # there is none of it
    assert [curve.name for curve in results.roc] == [curve.name for curve in results.precision_recall] == ["no", "off", "on"]
    lines = scores_csv(results.scores).splitlines()
    assert lines[0] == "name,support,precision,recall,f1,roc_auc,average_precision"
    assert lines[4] == "yes,0,0.0,0.0,0.0,,"
