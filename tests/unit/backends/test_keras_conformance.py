"""The Keras backend keeps the contract, on TensorFlow here and on its other engines in processes of their own."""

import pytest
from conformance import BackendConformance

from speechtrain.backends.base import Backend

pytest.importorskip("keras")


class TestKeras(BackendConformance):
    @pytest.fixture
    def backend(self) -> Backend:
        from speechtrain.backends.keras.backend import KerasBackend

        return KerasBackend("tensorflow", threads=1)
