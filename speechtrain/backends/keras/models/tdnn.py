"""A time-delay network: a 2-D convolution stem and dilated residual 1-D convolutions (Waibel et al. 1989; Peddinti et al. 2015)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from speechtrain.backends.keras.layers import PACKAGE, BatchNorm, ConvStem, Encoder, conv, counted, frame_mask


@keras.saving.register_keras_serializable(PACKAGE)
class Tdnn(Encoder):
    """See `conf/model/tdnn.yaml` for the arguments; `input_size` is F."""

    def __init__(
        self,
        input_size: int,
        stem_channels: Sequence[int],
        stem_time_strides: Sequence[int],
        channels: int,
        kernel_size: int,
        dilations: Sequence[int],
        dropout: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.stem = ConvStem(input_size, stem_channels, stem_time_strides, channels)
        self.blocks = [Block(channels, kernel_size, dilation, dropout) for dilation in dilations]
        self.output_size = channels
        self.subsampling = math.prod(stem_time_strides)
        self.receptive_field = self.stem.receptive_field + self.subsampling * (kernel_size - 1) * sum(dilations)

    def output_lengths(self, lengths: Any) -> Any:
        """Compute the numbers of encoder frames (B,) of input frames (B,)."""
        return self.stem.output_lengths(lengths)

    def call(self, features: Any, lengths: Any, training: bool | None = None) -> Any:
        """Map features (B, T, F) to encoder frames (B, T', D), and their lengths (B,) to those of the output."""
        x, lengths = self.stem(features, lengths=lengths)
        frames = ops.shape(x)[1]
        inside = ops.cast(frame_mask(lengths, frames), x.dtype)[:, :, None]
        seen = counted(lengths, frames)
        x = x * inside
        for block in self.blocks:
            x = block(x, inside, seen, training=training)
        return x, lengths


class Block(keras.layers.Layer):  # type: ignore[misc]
    """A residual block: x + dropout(relu(norm(conv(x))))."""

    def __init__(self, channels: int, kernel_size: int, dilation: int, dropout: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.conv = conv(channels, channels, kernel_size, dilation=dilation)
        self.norm = BatchNorm()
        self.dropout = keras.layers.Dropout(dropout)

    def call(self, x: Any, inside: Any, seen: Any, training: bool | None = None) -> Any:
        """Map (B, T', D) to (B, T', D), zero outside `inside` (B, T', 1); statistics over `seen` (B, T')."""
        branch = ops.relu(self.norm(self.conv(x), seen, training=training))
        return (x + self.dropout(branch, training=training)) * inside
