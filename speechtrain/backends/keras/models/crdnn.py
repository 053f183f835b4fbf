"""Convolutions, a recurrent stack, a feed-forward layer (the CRDNN of SpeechBrain; Sainath et al. 2015 call it CLDNN).

Layer norms before and behind the recurrent stack: without the second one it stays with blanks for hundreds of steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from speechtrain.backends.keras.layers import PACKAGE, ConvStem, Encoder, frame_mask, layer_norm, linear, uniform


@keras.saving.register_keras_serializable(PACKAGE)
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
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.stem = ConvStem(input_size, conv_channels, conv_time_strides, rnn_size)
        self.norm = layer_norm()
        self.rnns = [_recurrent(rnn, rnn_size, bidirectional) for _ in range(rnn_layers)]
        self.dropouts = [keras.layers.Dropout(dropout) for _ in range(rnn_layers - 1)]
        self.rnn_norm = layer_norm()
        self.dnn = linear(rnn_size * (2 if bidirectional else 1), dnn_size)
        self.dropout = keras.layers.Dropout(dropout)
        self.output_size = dnn_size
        self.subsampling = math.prod(conv_time_strides)
        self.receptive_field = None

    def output_lengths(self, lengths: Any) -> Any:
        """Compute the numbers of encoder frames (B,) of input frames (B,)."""
        return self.stem.output_lengths(lengths)

    def call(self, features: Any, lengths: Any, training: bool | None = None) -> Any:
        """Map features (B, T, F) to encoder frames (B, T', D), and their lengths (B,) to those of the output."""
        x, lengths = self.stem(features, lengths=lengths)
        inside = frame_mask(lengths, ops.shape(x)[1])
        x = ops.relu(self.norm(x))
        for index, rnn in enumerate(self.rnns):
            x = rnn(x if index == 0 else self.dropouts[index - 1](x, training=training), mask=inside, training=training)
            x = x * ops.cast(inside, x.dtype)[:, :, None]
        return self.dropout(ops.relu(self.dnn(self.rnn_norm(x))), training=training), lengths


def _recurrent(kind: str, size: int, bidirectional: bool) -> Any:
    """Return a layer whose backward direction starts at each utterance's own end, by the mask."""
    options = {
        "kernel_initializer": uniform(size),
        "recurrent_initializer": uniform(size),
        "bias_initializer": uniform(size),
        "return_sequences": True,
    }
    layer = (
        keras.layers.GRU(size, reset_after=True, **options) if kind == "gru" else keras.layers.LSTM(size, unit_forget_bias=False, **options)
    )
    return keras.layers.Bidirectional(layer) if bidirectional else layer
