"""Pretrained models as Transformers builds them from an architecture, with weights drawn at random and, if asked for, low-rank updates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from speechtrain.backends.torch import pretrained_attention
from speechtrain.backends.torch.models.wav2vec2 import without_weight_norm
from speechtrain.config.pretrained import without_code
from speechtrain.errors import ConfigError, Problem

PARAKEET, BERT, CONFORMER = "parakeet_ctc", "wav2vec2-bert", "wav2vec2-conformer"
_DROPOUTS = (
    *("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout", "dropout"),
    "conformer_conv_dropout",
)
_MOST_LAYERS, _MOST_WEIGHTS = 1000, 8_000_000_000
FIX = "give a checkpoint whose config.json is whole, and of the same model as its other files"
_LORA_TARGETS = {"wavlm": ("intermediate_dense", "output_dense")}  # its attention takes weights, not layers
_LORA_TARGETS |= dict.fromkeys((CONFORMER, BERT), ("linear_q", "linear_v"))
_QUERIES_AND_VALUES = ("q_proj", "v_proj")


def build_net(architecture: Mapping[str, Any], dropout: float | None) -> Any:
    """Build the model of an architecture without its head, with weights drawn at random.

    Raises:
        ConfigError: Transformers cannot build it.
    """
    from transformers import CONFIG_MAPPING, AutoModelForCTC

    pretrained_attention.register()
    kind = str(architecture["model_type"])
    # a bias for each pair of positions leaves nothing to fuse, and what exporters of ONNX cannot view
    attention = {PARAKEET: pretrained_attention.PARAKEET, **dict.fromkeys(("wavlm", BERT, CONFORMER), "eager")}.get(kind, "sdpa")
    values = _without_masks(without_code(architecture))
    if dropout is not None:
        for part in (values, values.get("encoder_config", {})):
            part.update({name: dropout for name in _DROPOUTS if name in part or part is values})
    _check_sizes(values)
    try:
        config = CONFIG_MAPPING[kind].from_dict(values)
        if kind in (BERT, CONFORMER) and config.position_embeddings_type == "relative":
            attention = pretrained_attention.RELATIVE
        with torch.device("meta"):
            outline: Any = AutoModelForCTC.from_config(config, attn_implementation=attention)  # type: ignore[no-untyped-call]
        count = sum(each.numel() for each in (*outline.parameters(), *outline.buffers()))
        if count > _MOST_WEIGHTS:
            raise ValueError(f"it would have {count:,} weights, and {_MOST_WEIGHTS:,} are the most")
        whole: Any = AutoModelForCTC.from_config(config, attn_implementation=attention)  # type: ignore[no-untyped-call]
    except Exception as error:  # a config of any content meets all of Transformers here
        message = f"no {kind} can be built of it ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        raise ConfigError([Problem("model.architecture", message, FIX)]) from error
    net: Any = whole.encoder if kind == PARAKEET else getattr(whole, whole.base_model_prefix)
    for module in [each for each in net.modules() if nn.utils.parametrize.is_parametrized(each)]:
        without_weight_norm(module)
    pretrained_attention.replace_positions(net)
    if kind == "wavlm":
        from speechtrain.backends.torch.wavlm_attention import use_one_mask

        use_one_mask(net)
    return net


def _check_sizes(values: Mapping[str, Any]) -> None:
    """Check that layers can be built one by one, and that each convolution has a kernel and goes forward.

    Raises:
        ConfigError: they cannot.
    """
    for key, value in values.items():
        if isinstance(value, Mapping):
            _check_sizes(value)
        least, most = 1 if "kernel" in key or "stride" in key else -math.inf, _MOST_LAYERS if "layers" in key else math.inf
        sizes = [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, int)]
        if wrong := [each for each in sizes if not least <= each <= most]:
            bound = f"{least} is the least" if wrong[0] < least else f"{most} is the most"
            raise ConfigError([Problem("model.architecture", f"asks for {key}={wrong[0]}, and {bound}", FIX)])


def _without_masks(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Return an architecture without masks and skipped layers of its own, which would not follow from the seed of a run."""
    values = {key: dict(value) if isinstance(value, Mapping) else value for key, value in architecture.items()}
    values |= {"mask_time_prob": 0.0, "mask_feature_prob": 0.0, "apply_spec_augment": False, "layerdrop": 0.0}
    if isinstance(encoder := values.get("encoder_config"), dict):
        encoder["layerdrop"] = 0.0
    return values


def add_low_rank(net: nn.Module, kind: str, rank: int, alpha: float, dropout: float, targets: Sequence[str] | None) -> None:
    """Add low-rank updates to linear layers, which alone are trained besides the head.

    Args:
        net: the model.
        kind: the `model_type` of its architecture.
        rank: rank of the updates.
        alpha: their factor times the rank.
        dropout: probability that a value is dropped before them.
        targets: names of the layers; None: those of queries and values, or what takes their place.

    Raises:
        ConfigError: no layer has one of the names.
    """
    from peft import LoraConfig, inject_adapter_in_model

    targets = targets or _LORA_TARGETS.get(kind, _QUERIES_AND_VALUES)
    names = sorted({name.rpartition(".")[2] for name, module in net.named_modules() if isinstance(module, nn.Linear)})
    if unknown := [name for name in targets if name not in names]:
        raise ConfigError([Problem("model.lora_targets", f"there is no linear layer {unknown[0]}", f"there is {', '.join(names)}")])
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(targets))
    inject_adapter_in_model(config, net)
