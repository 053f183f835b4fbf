"""Recurrent layers over padded batches, and in bfloat16 only where they can."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class LstmLayers(nn.LSTM):
    """PyTorch's LSTM, which under autocast computes in float32 on processors whose oneDNN has no bfloat16, for there it fails."""

    def __call__(self, input: Any, hx: Any = None) -> Any:  # noqa: A002
        """Compute what `torch.nn.LSTM` does."""
        if not torch.is_autocast_enabled("cpu") or self.weight_ih_l0.device.type != "cpu" or _has_bfloat16():
            return super().__call__(input, hx)
        with torch.autocast("cpu", enabled=False):
            if isinstance(input, nn.utils.rnn.PackedSequence):
                return super().__call__(input._replace(data=input.data.float()), hx)
            return super().__call__(input.float(), hx)


def encode_padded(layers: nn.LSTM | nn.GRU, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Encode padded sequences (B, T, D) of lengths (B,) as (B, T, H); the backward direction starts at the end of each sequence.

    On a GPU the batch is packed. On a processor each direction runs over the padded batch, the backward one over sequences that
    are reversed within their lengths: the backward pass of packed sequences takes quadratic time there. Zeros stand behind the end of
    a sequence.
    """
    if x.device.type != "cpu":
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(layers(packed)[0], batch_first=True, total_length=x.shape[1])[0]
    if isinstance(layers, nn.LSTM) and torch.is_autocast_enabled("cpu") and not _has_bfloat16():
        with torch.autocast("cpu", enabled=False):
            encoded = _over_padding(layers, x.float(), lengths)
    else:
        encoded = _over_padding(layers, x, lengths)
    return encoded.masked_fill(_frames(x) >= lengths[:, None, None], 0.0)


def _frames(x: torch.Tensor) -> torch.Tensor:
    """Return the numbers of the frames of x (B, T, D) as (1, T, 1)."""
    return torch.arange(x.shape[1], device=x.device)[None, :, None]


def _over_padding(layers: nn.LSTM | nn.GRU, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    if not layers.bidirectional:
        encoded: torch.Tensor = layers(x)[0]
        return encoded
    frames, last = _frames(x), lengths[:, None, None] - 1
    reverse = torch.where(frames <= last, last - frames, frames)  # its own inverse

    def reversed_in_time(x: torch.Tensor) -> torch.Tensor:
        return x.gather(1, reverse.expand(-1, -1, x.shape[2]))

    for layer in range(layers.num_layers):
        if layer > 0:
            x = nn.functional.dropout(x, layers.dropout, layers.training)
        forth = _one_direction(layers, x, f"_l{layer}")
        back = reversed_in_time(_one_direction(layers, reversed_in_time(x), f"_l{layer}_reverse"))
        x = torch.cat([forth, back], dim=2)
    return x


def _one_direction(layers: nn.LSTM | nn.GRU, x: torch.Tensor, suffix: str) -> torch.Tensor:
    """Run one layer in one direction, with the weights of that suffix."""
    names = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if layers.bias else [])]
    weights = [getattr(layers, f"{name}{suffix}") for name in names]
    state = x.new_zeros(1, x.shape[0], layers.hidden_size)
    if isinstance(layers, nn.LSTM):
        encoded = torch.lstm(x, (state, state), weights, layers.bias, 1, 0.0, layers.training, False, True)[0]
    else:
        encoded = torch.gru(x, state, weights, layers.bias, 1, 0.0, layers.training, False, True)[0]
    return encoded


def _has_bfloat16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
