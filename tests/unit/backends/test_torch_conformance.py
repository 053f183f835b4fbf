"""The Torch backend keeps the contract."""

import pytest
from conformance import BackendConformance

from speechtrain.backends.base import Backend
from speechtrain.backends.torch.backend import TorchBackend


class TestTorch(BackendConformance):
    @pytest.fixture
    def backend(self) -> Backend:
        return TorchBackend(threads=1)
