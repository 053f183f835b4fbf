"""Attention of WavLM with one mask: Transformers gives PyTorch one of booleans beside one of numbers, and PyTorch warns in each step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers.models.wavlm.modeling_wavlm import WavLMAttention


class OneMaskAttention(WavLMAttention):  # type: ignore[misc] # Transformers has no types
    """Hides the frames behind an utterance by the scores of positions, to which PyTorch would add them."""

    def torch_multi_head_self_attention(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, gated_position_bias: torch.Tensor
    ) -> Any:
        """Return the output (B, T', D) and the weights (B, H, T', T') of attention.

        Args:
            hidden_states: (B, T', D).
            attention_mask: (B, T'), 1 inside the utterance; None: all frames are.
            gated_position_bias: scores (B H, T', T') to be added.
        """
        if attention_mask is not None:
            behind = attention_mask.ne(1).repeat_interleave(self.num_heads, 0)
            gated_position_bias = gated_position_bias.masked_fill(behind[:, None, :], -math.inf)
        return super().torch_multi_head_self_attention(hidden_states, None, gated_position_bias)


def use_one_mask(net: nn.Module) -> None:
    """Let the layers of a WavLM attend as this file does; their weights and names stay."""
    for module in net.modules():
        if type(module) is WavLMAttention:
            module.__class__ = OneMaskAttention
