"""Weights of pretrained checkpoints: read from safetensors, or from PyTorch's files without running anything in them."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from speechtrain.backends.checkpoint_files import check_torch_file
from speechtrain.backends.zip_files import UNREADABLE
from speechtrain.config.extras import require
from speechtrain.config.pretrained import Checkpoint
from speechtrain.errors import ConfigError, Problem, first_line

_HEADS = ("lm_head", "ctc_head")
_PREFIXES = {"wav2vec2-conformer": "wav2vec2_conformer.", "data2vec-audio": "data2vec_audio.", "wav2vec2-bert": "wav2vec2_bert."}
_PREFIXES |= {"parakeet_ctc": "encoder."}
"""What the names of an encoder's weights begin with in a model with a head, by `model_type`; where it is missing, the type itself."""
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
        state |= {name: value.float() if value.is_floating_point() else value for name, value in _read(path).items()}
    prefix = prefix_of(str(architecture["model_type"]))
    heads = [name for name in _HEADS if f"{name}.weight" in state]
    head = None
    if heads:
        weight = state[f"{heads[0]}.weight"]
        head = weight.flatten(1), state.get(f"{heads[0]}.bias", torch.zeros(len(weight)))
    encoder = {name.removeprefix(prefix): value for name, value in state.items()}
    for length, direction in _NORMS:
        for name in [name for name in encoder if name.endswith(f".{length}")]:
            stem = name.removesuffix(length)
            v = encoder.pop(f"{stem}{direction}")
            encoder[f"{stem}weight"] = v * (encoder.pop(name) / v.norm(dim=(0, 1), keepdim=True))
    return Weights(encoder, head, encoder.get("masked_spec_embed"))


def _read(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a file by their names.

    Raises:
        ConfigError: it cannot be read, or holds anything else.
    """
    require(f"model.path={path}", ("safetensors",))
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            if zipfile.is_zipfile(path):  # files of before PyTorch 1.6 are none, and have no checksums
                check_torch_file(path)
            state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not all(isinstance(each, torch.Tensor) for each in state.values()):
            raise ValueError("it holds more than weights by their names")
        if bad := [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]:
            raise ValueError(f"its weight {bad[0]!r:.80} holds NaN or infinity")
    except (*UNREADABLE, SafetensorError) as error:
        raise ConfigError([Problem("model.path", f"{path} cannot be read ({first_line(error, most=160)})", "fetch it again")]) from error
    return dict(state)
