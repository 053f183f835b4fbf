"""The Keras backend keeps the contract, on TensorFlow here and on its other engines in processes of their own."""

import importlib.util
import os

import pytest
from task_conformance import ClassificationConformance, CtcConformance, RegressionConformance

from speechtrain.backends.base import Backend

if importlib.util.find_spec("keras") is None:  # importing it would choose its engine
    pytest.skip("needs the keras extra", allow_module_level=True)

pytestmark = pytest.mark.long


@pytest.fixture
def backend() -> Backend:
    from speechtrain.backends.keras.backend import KerasBackend

    return KerasBackend(os.environ.get("SPEECHTRAIN_TEST_ENGINE", "tensorflow"), threads=1)


class TestInShort:
    """The cases that every run has."""

    options = CtcConformance.options
    drawing = CtcConformance.drawing
    metrics = CtcConformance.metrics
    setup = CtcConformance.setup
    drawn = CtcConformance.drawn

    test_learns_a_tiny_set = CtcConformance.test_learns_a_tiny_set
    test_saves_and_loads = CtcConformance.test_saves_and_loads
    test_utterances_that_cannot_be_aligned_change_nothing = CtcConformance.test_utterances_that_cannot_be_aligned_change_nothing


@pytest.mark.slow
class TestKeras(CtcConformance):
    """With texts."""


@pytest.mark.slow
class TestKerasClassification(ClassificationConformance):
    """With classes."""


@pytest.mark.slow
class TestKerasRegression(RegressionConformance):
    """With signals."""
