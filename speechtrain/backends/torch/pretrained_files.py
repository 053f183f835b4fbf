"""Weights of pretrained checkpoints: read from safetensors, or from PyTorch's files without running anything in them."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from speechtrain.backends.checkpoint_files import check_torch_file
from speechtrain.backends.zip_files import UNREADABLE
from speechtrain.config.extras import require
from speechtrain.config.pretrained import LFS_POINTER, Checkpoint
from speechtrain.errors import ConfigError, Problem, first_line

_HEADS = ("lm_head", "ctc_head")
_PREFIXES = {"wav2vec2-conformer": "wav2vec2_conformer.", "data2vec-audio": "data2vec_audio.", "wav2vec2-bert": "wav2vec2_bert."}
_PREFIXES |= {"parakeet_ctc": "encoder."}
"""What the names of an encoder's weights begin with in a model with a head, by `model_type`; where it is missing, the type itself."""
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64)
"""The types that weights may have; whole numbers count batches, and no model is trained in those of a quantised one."""
_NORMS = (("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1"))
"""The names of length and direction of a weight with weight norm (Salimans and Kingma 2016), as PyTorch has had them."""


@dataclass(frozen=True)
class Weights:
    """The weights of a checkpoint, in float32.

    Attributes:
        encoder: by their names in the model without its head.
        head: weight (V, D) and bias (V,); None if it has none.
        mask: what stands for a hidden frame (D,); None if it has none.
    """

    encoder: Mapping[str, torch.Tensor]
    head: tuple[torch.Tensor, torch.Tensor] | None
    mask: torch.Tensor | None


def prefix_of(kind: str) -> str:
    """Return what the names of an encoder's weights begin with in a model with a head."""
    return _PREFIXES.get(kind, f"{kind}.")


def read_pretrained(checkpoint: Checkpoint, architecture: Mapping[str, Any], revision: str | None, language: str | None) -> Weights:
    """Read the weights of a checkpoint, with those of a language's adapter in place of its own.

    Raises:
        ConfigError: a file cannot be read, or holds what is no weight.
    """
    state: dict[str, torch.Tensor] = {}
    for path in checkpoint.weight_files(revision, language):
        weights = {name: value.float() if value.is_floating_point() else value for name, value in _read(path).items()}
        if path.name.startswith("adapter."):
            _check_adapter(path, weights, state)
        state |= weights
    prefix = prefix_of(str(architecture["model_type"]))
    heads = [name for name in _HEADS if f"{name}.weight" in state]
    head = None
    if heads:
        weight = state[f"{heads[0]}.weight"]
        bias = state.get(f"{heads[0]}.bias", torch.zeros(weight.shape[:1]))
        if weight.ndim < 2 or bias.shape != weight.shape[:1]:
            raise _of_several(checkpoint.folder, f"its head has weights of the shapes {tuple(weight.shape)} and {tuple(bias.shape)}")
        head = weight.flatten(1), bias
    encoder = {name.removeprefix(prefix): value for name, value in state.items()}
    for length, direction in _NORMS:
        for name in [name for name in encoder if name.endswith(f".{length}")]:
            stem = name.removesuffix(length)
            v = encoder.pop(f"{stem}{direction}", None)
            if v is None:
                raise _of_several(checkpoint.folder, f"it has a weight {name}, and none {stem}{direction}")
            encoder[f"{stem}weight"] = v * (encoder.pop(name) / v.norm(dim=(0, 1), keepdim=True))
    return Weights(encoder, head, encoder.get("masked_spec_embed"))


def _of_several(place: Path, message: str) -> ConfigError:
    return ConfigError([Problem("model.path", f"{place}: {message}", "give a checkpoint whose files are of one model")])


def _check_adapter(path: Path, adapter: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> None:
    """Check that a file holds a language's adapter of a model, for whose head the language may have tokens of its own.

    Raises:
        ConfigError: it has a weight that the model has not, or none of the adapter.
    """
    wrong = [name for name in adapter if name not in state]
    if wrong or not any("adapter_layer" in name for name in adapter):
        what = f"has a weight {wrong[0]!r:.80}, which the model has not" if wrong else "has no weights of an adapter"
        raise _of_several(path, what)


def _read(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a file by their names.

    Raises:
        ConfigError: it cannot be read, or holds anything else.
    """
    require(f"model.path={path}", ("safetensors",))
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                fix = f"run git lfs pull in {path.parent}"
                raise ConfigError([Problem("model.path", f"{path} is a pointer of Git LFS, and not the file itself", fix)])
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            if zipfile.is_zipfile(path):  # files of before PyTorch 1.6 are none, and have no checksums
                check_torch_file(path)
            state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not all(isinstance(each, torch.Tensor) for each in state.values()):
            raise ValueError("it holds more than weights by their names")
        if other := [name for name, value in state.items() if value.dtype not in _DTYPES]:
            kind = str(state[other[0]].dtype).removeprefix("torch.")
            raise ValueError(f"its weight {other[0]!r:.80} is of the type {kind}: give the checkpoint as it was before it was quantised")
        if bad := [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]:
            raise ValueError(f"its weight {bad[0]!r:.80} holds NaN or infinity")
    except (*UNREADABLE, SafetensorError) as error:
        why, fix = first_line(error, most=160), "fetch it again"
        if isinstance(error, pickle.UnpicklingError):
            why, fix = "it holds more than weights, and nothing of it was run", "give model.safetensors, or fetch it again"
        raise ConfigError([Problem("model.path", f"{path} cannot be read ({why})", fix)]) from error
    return dict(state)
