"""What the contract asks of a backend holds with a pretrained encoder, with a new head and with its checkpoint's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from backend_setup import Setup
from checkpoints import Make
from conftest import TINY
from task_conformance import CtcConformance

from speechtrain.backends.base import Backend
from speechtrain.backends.torch.backend import TorchBackend
from speechtrain.config.checkpoint_values import with_checkpoint_files


class PretrainedSetup(Setup):
    """Has a pretrained encoder where the suite has a model of its own, and another one where that has other sizes."""

    def __init__(self, backend: Backend, folder: Path, *overrides: str) -> None:
        super().__init__(backend, folder, *overrides, base=[*TINY[:1], *TINY[2:]])
        self.cfg = with_checkpoint_files(self.cfg)

    def build(self, **sizes: Any) -> Any:
        return super().build(**({"architecture": _wider(self.cfg.model["architecture"])} if "hidden_sizes" in sizes else {}))


def _wider(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """An architecture no weight of which has the shape of the other's."""
    sizes = {"hidden_size": 24, "intermediate_size": 48, "conv_dim": [24] * 7, "subsampling_conv_channels": 12}
    return {key: _wider(value) if isinstance(value, Mapping) else sizes.get(key, value) for key, value in architecture.items()}


@pytest.fixture
def backend() -> Backend:
    return TorchBackend(threads=1)


class OnACheckpoint:
    """Gives the suite a checkpoint."""

    kind: ClassVar[str] = "wav2vec2"
    """See `checkpoints.KINDS`."""
    own: ClassVar[list[str]] = []
    """Further options."""
    learns: ClassVar[float] = 0.5
    """Times the loss of before, below which it comes on a tiny set."""

    @pytest.fixture(autouse=True)
    def _checkpoint(self, made: Make) -> None:
        self.model = ["model=pretrained", f"model.path={made(self.kind)}"]

    def setup(self, backend: Backend, folder: Path, *overrides: str) -> Setup:
        kept = [each for each in overrides if not each.startswith(("model=", "model."))]
        return PretrainedSetup(backend, folder, *self.model, "data.train_size=16", *kept, "augment.freq_masks=0", *self.own)


class TestInShort(OnACheckpoint):
    """One case of the suite."""

    test_saves_and_loads = CtcConformance.test_saves_and_loads


class PretrainedConformance(OnACheckpoint, CtcConformance):
    """Leaves out what the suite asks of our own models by their names."""

    test_an_encoder_of_limited_context_begins_with_all_labels_alike = None  # type: ignore[assignment]

    def test_padding_changes_no_output(self, backend: Backend, tmp_path: Path) -> None:  # type: ignore[override]
        self.check_padding(backend, tmp_path)

    def test_learns_a_tiny_set(self, backend: Backend, tmp_path: Path) -> None:
        options = ["augment=none", "trainer.epochs=20", "data.batch_size=8", "optimizer.lr=0.01"]
        setup = self.setup(backend, tmp_path, *options)
        model = setup.build()
        before = setup.measure(model, "train")["train/loss"]
        setup.train(model)
        assert setup.measure(model, "train")["train/loss"] < self.learns * before


@pytest.mark.slow
class TestNewHead(PretrainedConformance):
    """wav2vec 2.0."""


@pytest.mark.slow
class TestOwnHead(PretrainedConformance):
    """wav2vec 2.0 with the vocabulary of its checkpoint."""

    own: ClassVar[list[str]] = ["tokenizer=pretrained"]


@pytest.mark.slow
class TestMels(PretrainedConformance):
    """A model of mel energies, with low-rank updates."""

    kind = "parakeet"
    own: ClassVar[list[str]] = ["model.lora_rank=2"]
    learns: ClassVar[float] = 0.8  # as what is updated stands on weights that were drawn at random
