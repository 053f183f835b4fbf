"""Convolutions, a recurrent stack, a feed-forward layer (the CRDNN of SpeechBrain; Sainath et al. 2015 call it CLDNN).

Layer norms before and behind the recurrent stack: without the second one it stays with blanks for hundreds of steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from speechtrain.backends.torch.encoder import ConvStem, Encoder
from speechtrain.backends.torch.models.recurrent import LstmLayers, encode_padded


class Crdnn(Encoder):
    """See `conf/model/crdnn.yaml` for the arguments; `input_size` is F."""

    def __init__(
        self,
        input_size: int,
        conv_channels: Sequence[int],
        conv_time_strides: Sequence[int],
        rnn: str,
        rnn_size: int,
        rnn_layers: int,
        bidirectional: bool,
        dnn_size: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.stem = ConvStem(input_size, list(conv_channels), list(conv_time_strides), rnn_size)
        self.norm = nn.LayerNorm(rnn_size)
        kind = {"lstm": LstmLayers, "gru": nn.GRU}[rnn]
        self.rnn = kind(
            rnn_size,
            rnn_size,
            num_layers=rnn_layers,
            batch_first=True,
            bidirectional=bidirectional,
            dropout=dropout if rnn_layers > 1 else 0.0,
        )
        width = rnn_size * (2 if bidirectional else 1)
        self.rnn_norm = nn.LayerNorm(width)
        self.dnn = nn.Sequential(nn.Linear(width, dnn_size), nn.ReLU(), nn.Dropout(dropout))
        self.output_size = dnn_size
        self.subsampling = math.prod(conv_time_strides)
        self.receptive_field = None

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Compute the numbers of encoder frames (B,) of input frames (B,)."""
        return self.stem.output_lengths(lengths)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode features (B, T, F) as (B, T', D), with their lengths (B,)."""
        x, lengths = self.stem(features, lengths)
        x = encode_padded(self.rnn, torch.relu(self.norm(x)), lengths)
        return self.dnn(self.rnn_norm(x)), lengths
