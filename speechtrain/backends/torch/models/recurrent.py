"""Recurrent layers that compute in bfloat16 only where they can."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


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


def _has_bfloat16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
