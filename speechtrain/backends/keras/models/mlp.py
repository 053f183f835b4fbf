"""A perceptron on a few stacked frames: no temporal context beyond them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import keras

from speechtrain.backends.keras.layers import PACKAGE, Encoder, layer_norm, linear, stack_frames


@keras.saving.register_keras_serializable(PACKAGE)
class Mlp(Encoder):
    """See `conf/model/mlp.yaml` for the arguments; `input_size` is F."""

    def __init__(self, input_size: int, hidden_sizes: Sequence[int], stack: int, dropout: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        sizes = [input_size * stack, *hidden_sizes]
        self.layers = []
        for inputs, outputs in pairwise(sizes):
            self.layers += [linear(inputs, outputs), layer_norm(), keras.layers.ReLU(), keras.layers.Dropout(dropout)]
        self.output_size = sizes[-1]
        self.subsampling = stack
        self.receptive_field = stack

    def call(self, features: Any, lengths: Any, training: bool | None = None) -> Any:
        """Map features (B, T, F) to encoder frames (B, T', D), and their lengths (B,) to those of the output."""
        x = stack_frames(features, self.subsampling)
        for layer in self.layers:
            x = layer(x, training=training) if isinstance(layer, keras.layers.Dropout) else layer(x)
        return x, self.output_lengths(lengths)
