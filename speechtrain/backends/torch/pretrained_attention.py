"""Attention of pretrained encoders where that of Transformers cannot be exported, or keeps what the batch before left."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from speechtrain.backends.torch.encoder import frame_mask

PARAKEET, RELATIVE = "speechtrain_rows", "speechtrain_relative"
"""The names by which Transformers finds the functions of this file, once they are registered."""


def register() -> None:
    """Tell Transformers of the functions of this file."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(PARAKEET, attention_of_rows)
    AttentionInterface.register(RELATIVE, attention_to_relative_positions)
    AttentionMaskInterface.register(RELATIVE, eager_mask)


def attention_of_rows(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    frames: torch.Tensor | None = None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attend as Transformers does, to no frame behind the utterance.

    Args:
        module: the attention.
        query: (B, H, T', D / H).
        key: the same.
        value: the same.
        attention_mask: scores (B, H, T', T') to be added; where nothing is to be seen they are the lowest number there is.
        frames: how many (B,) each utterance has.
        options: of Transformers.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if frames is not None and attention_mask is not None:
        behind = ~frame_mask(frames, attention_mask.shape[-1])
        attention_mask = attention_mask.masked_fill(behind[:, None, None, :], -math.inf)
    if torch.compiler.is_exporting():  # the fused attention leaves strides that exporters of ONNX cannot view
        scores = query @ key.transpose(2, 3) * options["scaling"] + attention_mask
        return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


def attention_to_relative_positions(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend with scores of relative positions (Dai et al. 2019, section 3.3) as the layers of Transformers add them.

    Args:
        module: the attention, with the weights of positions where the checkpoint has them.
        query: (B, H, T', D / H).
        key: the same.
        value: the same.
        attention_mask: scores (B, 1, T', T') to be added; None: all frames are seen.
        options: of Transformers.
    """
    frames, heads, width = key.shape[2], key.shape[1], key.shape[3]
    positions = module.linear_pos(relative_positions(frames, heads * width, query)).view(1, -1, heads, width).permute(0, 2, 3, 1)
    by_position = F.pad((query + module.pos_bias_v[:, None, :]) @ positions, (1, 0))  # (B, H, T', 2 T')
    shifted = by_position.reshape(-1, heads, 2 * frames, frames)[:, :, 1:].reshape(-1, heads, frames, 2 * frames - 1)
    scores = (query + module.pos_bias_u[:, None, :]) @ key.transpose(2, 3) + shifted[..., :frames]
    scores = scores * options["scaling"]
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.dropout(scores.softmax(-1), options["dropout"], training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), None


def relative_positions(frames: int, width: int, like: torch.Tensor) -> torch.Tensor:
    """Return sines and cosines (1, 2 T' - 1, D) of the distances from T' - 1 down to 1 - T'."""
    distances = torch.arange(frames - 1, -frames, -1, device=like.device, dtype=torch.float32)
    rates = torch.exp(torch.arange(0, width, 2, device=like.device, dtype=torch.float32) * -(math.log(10000.0) / width))
    angles = distances[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[None].to(like.dtype)


class RotaryPositions(nn.Module):
    """Cosines and sines (2, T', 1, 1, D / H) of positions, computed for each batch.

    Transformers keeps those of the batch before, though they may be of inference mode, another device or another precision.

    Args:
        theirs: the module in whose place this one stands.
    """

    inv_freq: torch.Tensor

    def __init__(self, theirs: nn.Module) -> None:
        super().__init__()
        self.register_buffer("inv_freq", theirs.get_buffer("inv_freq"), persistent="inv_freq" in theirs.state_dict())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return them for what the layers see, (B, T', D)."""
        angles = torch.arange(x.shape[1], device=x.device).type_as(self.inv_freq)[:, None] * self.inv_freq
        angles = torch.cat((angles, angles), dim=-1)
        return torch.stack([angles.cos()[:, None, None, :], angles.sin()[:, None, None, :]]).type_as(x)


def replace_positions(net: Any) -> None:
    """Let layers of conformers compute positions as this file does, where their checkpoint has relative or rotary ones."""
    kind = getattr(net.config, "position_embeddings_type", None)
    if kind == "rotary":
        net.encoder.embed_positions = RotaryPositions(net.encoder.embed_positions)
    elif kind == "relative":
        net.encoder.embed_positions = None
        for layer in net.encoder.layers:
            layer.self_attn.position_embeddings_type = None  # the scores of positions are those of the function above
