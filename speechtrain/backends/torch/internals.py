"""The private names of Lightning, PyTorch and torchaudio that are used, each in one function.

`tests/unit/backends/test_torch_internals.py` says which library has changed when one of them is gone.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import lightning.pytorch as pl


def hide_transformers_from_metrics() -> None:
    """Keep torchmetrics, which Lightning imports, from importing Transformers with it, where that is installed: a second of each start."""
    imports: Any = importlib.import_module("lightning_utilities.core.imports")
    if not hasattr(imports._version, "of_others"):
        imports._version = _VersionOfOthers(imports._version)


class _VersionOfOthers:
    """Looks up the version of any package but Transformers, which seems not to be installed."""

    def __init__(self, look_up: Any) -> None:
        self.of_others = look_up

    def __call__(self, name: str) -> str:
        if name == "transformers":
            raise PackageNotFoundError(name)
        return str(self.of_others(name))


def ignore_sigterm_notices(trainer: pl.Trainer) -> None:
    """Keep Lightning from telling other ranks of a SIGTERM while they wait for something else."""
    trainer._signal_connector._sigterm_notifier_fn = lambda *_: None  # type: ignore[method-assign]


def epochs_processed(trainer: pl.Trainer) -> int:
    """Return the number of the coming epoch, also just after a restart, when Lightning's `current_epoch` is still one behind."""
    return int(trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]


def lerp_all(tensors: Sequence[torch.Tensor], ends: Sequence[torch.Tensor], weight: float) -> None:
    """Move each tensor in place towards its end by a share of the distance, all in one call."""
    torch._foreach_lerp_(list(tensors), list(ends), weight)


def copy_all(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    """Copy each source into its target, all in one call."""
    torch._foreach_copy_(list(targets), list(sources))


def allow_compiled_shapes(count: int) -> None:
    """Let `torch.compile` make at least so many versions of a function, one for each shape."""
    dynamo: Any = torch._dynamo
    dynamo.config.recompile_limit = max(count, dynamo.config.recompile_limit)


def bundle_file(bundle: Any) -> str:
    """Return the name of the file with the weights of one of `torchaudio.pipelines`' bundles."""
    return str(bundle._path).rpartition("/")[2]


def bundle_kind(bundle: Any) -> str:
    """Return which of its models torchaudio makes of a bundle: `Wav2Vec2` or `WavLM`."""
    return str(bundle._model_type)


def bundle_arguments(bundle: Any) -> dict[str, Any]:
    """Return the arguments of `torchaudio.models.wav2vec2_model` for a bundle."""
    return dict(bundle._params)
