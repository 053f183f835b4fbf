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


class TestKeras(CtcConformance):
    """With texts."""


class TestKerasClassification(ClassificationConformance):
    """With classes."""


class TestKerasRegression(RegressionConformance):
    """With signals."""
