"""The Torch backend keeps the contract."""

import pytest
from task_conformance import ClassificationConformance, CtcConformance, RegressionConformance

from speechtrain.backends.base import Backend
from speechtrain.backends.torch.backend import TorchBackend


@pytest.fixture
def backend() -> Backend:
    return TorchBackend(threads=1)


class TestTorch(CtcConformance):
    """With texts."""


class TestTorchClassification(ClassificationConformance):
    """With classes."""


class TestTorchRegression(RegressionConformance):
    """With signals."""
