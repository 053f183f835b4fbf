"""Conformer (Gulati et al. 2020) with rotary positions (Su et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from speechtrain.backends.keras.layers import PACKAGE, BatchNorm, ConvStem, Depthwise, Encoder, counted, frame_mask, layer_norm, linear
from speechtrain.errors import ConfigError, Problem


@keras.saving.register_keras_serializable(PACKAGE)
class Conformer(Encoder):
    """See `conf/model/conformer.yaml` for the arguments; `input_size` is F."""

    def __init__(
        self,
        input_size: int,
        d_model: int,
        n_layers: int,
        n_heads: int,
        ff_multiplier: float,
        kernel_size: int,
        subsampling: int,
        stem_channels: int,
        dropout: float,
        chunk_frames: int | None = None,
        left_chunks: int | None = None,  # noqa: ARG002
        train_chunk_frames: Sequence[int | None] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for key, value in (("chunk_frames", chunk_frames), ("train_chunk_frames", train_chunk_frames)):
            if value is not None:
                message = f"is {value}; the Keras backend's conformer looks at whole utterances"
                raise ConfigError([Problem(f"model.{key}", message, f"set model.{key}=null, or backend=torch")])
        # one halving layer for each factor of two; at least two layers, so that mels are reduced to a quarter
        halvings = int(math.log2(subsampling))
        strides = [2] * halvings + [1] * (2 - halvings)
        self.stem = ConvStem(input_size, [stem_channels] * len(strides), strides, d_model)
        self.dropout = keras.layers.Dropout(dropout)
        hidden = round(ff_multiplier * d_model)
        self.layers = [ConformerLayer(d_model, n_heads, hidden, kernel_size, dropout) for _ in range(n_layers)]
        self.half = d_model // n_heads // 2
        self.output_size = d_model
        self.subsampling = subsampling
        self.receptive_field = None

    def output_lengths(self, lengths: Any) -> Any:
        """Compute the numbers of encoder frames (B,) of input frames (B,)."""
        return self.stem.output_lengths(lengths)

    def call(self, features: Any, lengths: Any, training: bool | None = None) -> Any:
        """Map features (B, T, F) to encoder frames (B, T', D), and their lengths (B,) to those of the output."""
        x, lengths = self.stem(features, lengths=lengths)
        frames = ops.shape(x)[1]
        inside = frame_mask(lengths, frames)
        # a row that only fills a batch up looks at its first frame, so that its softmax stays finite
        attend = frame_mask(ops.maximum(lengths, 1), frames)[:, None, None, :]
        seen = counted(lengths, frames)
        frequencies = 10000.0 ** (-ops.arange(self.half, dtype="float32") / self.half)
        angles = ops.arange(frames, dtype="float32")[:, None] * frequencies  # (T', d/2)
        rotation = ops.cast(ops.stack([ops.cos(angles), ops.sin(angles)])[:, None, :, None, :], x.dtype)  # (2, 1, T', 1, d/2)
        x = self.dropout(x, training=training)
        for layer in self.layers:
            x = layer(x, ops.cast(inside, x.dtype)[:, :, None], attend, seen, rotation, training=training)
        return x, lengths


class ConformerLayer(keras.layers.Layer):  # type: ignore[misc]
    """A conformer layer: half a feed-forward, attention, convolution, half a feed-forward, a norm."""

    def __init__(self, d_model: int, n_heads: int, hidden: int, kernel_size: int, dropout: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ff1 = FeedForward(d_model, hidden, dropout)
        self.attention = Attention(d_model, n_heads, dropout)
        self.conv = ConvModule(d_model, kernel_size, dropout)
        self.ff2 = FeedForward(d_model, hidden, dropout)
        self.norm = layer_norm()

    def call(self, x: Any, inside: Any, attend: Any, seen: Any, rotation: Any, training: bool | None = None) -> Any:
        """Map frames (B, T', D) to frames (B, T', D)."""
        x = x + 0.5 * self.ff1(x, training=training)
        x = x + self.attention(x, attend, rotation, training=training)
        x = x + self.conv(x, inside, seen, training=training)
        x = x + 0.5 * self.ff2(x, training=training)
        return self.norm(x)


class FeedForward(keras.layers.Layer):  # type: ignore[misc]
    """A feed-forward module: pre-norm, two dense layers, SiLU in between."""

    def __init__(self, d_model: int, hidden: int, dropout: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.norm = layer_norm()
        self.expand = linear(d_model, hidden)
        self.dropout1 = keras.layers.Dropout(dropout)
        self.project = linear(hidden, d_model)
        self.dropout2 = keras.layers.Dropout(dropout)

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Map frames (B, T', D) to frames (B, T', D)."""
        x = self.dropout1(ops.silu(self.expand(self.norm(x))), training=training)
        return self.dropout2(self.project(x), training=training)


class Attention(keras.layers.Layer):  # type: ignore[misc]
    """Multi-head self-attention; queries and keys are rotated by their position."""

    def __init__(self, d_model: int, n_heads: int, dropout: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.n_heads = n_heads
        self.norm = layer_norm()
        self.qkv = linear(d_model, 3 * d_model)
        self.out = linear(d_model, d_model)
        self.dropout = keras.layers.Dropout(dropout)

    def call(self, x: Any, attend: Any, rotation: Any, training: bool | None = None) -> Any:
        """Map (B, T', D) to (B, T', D); `attend` (B, 1, 1, T') is true where a key may be looked at."""
        batch, frames, width = ops.shape(x)[0], ops.shape(x)[1], x.shape[2]
        qkv = ops.reshape(self.qkv(self.norm(x)), (batch, frames, 3, self.n_heads, width // self.n_heads))
        q, k = rotate(qkv[:, :, 0], rotation), rotate(qkv[:, :, 1], rotation)
        x = ops.dot_product_attention(q, k, qkv[:, :, 2], mask=attend)  # (B, T', H, d)
        return self.dropout(self.out(ops.reshape(x, (batch, frames, width))), training=training)


def rotate(x: Any, rotation: Any) -> Any:
    """Rotate the pairs (i, i + d/2) of (B, T', H, d) by angles given as cosines and sines (2, 1, T', 1, d/2)."""
    first, second = ops.split(x, 2, axis=-1)
    cos, sin = rotation[0], rotation[1]
    return ops.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class ConvModule(keras.layers.Layer):  # type: ignore[misc]
    """Pointwise with gate, depthwise, batch norm, SiLU, pointwise."""

    def __init__(self, d_model: int, kernel_size: int, dropout: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.norm = layer_norm()
        self.expand = linear(d_model, 2 * d_model)
        self.depthwise = Depthwise(kernel_size)
        self.batch_norm = BatchNorm()
        self.project = linear(d_model, d_model)
        self.dropout = keras.layers.Dropout(dropout)

    def call(self, x: Any, inside: Any, seen: Any, training: bool | None = None) -> Any:
        """Map (B, T', D) to (B, T', D); frames outside `inside` (B, T', 1) reach no others."""
        x = ops.glu(self.expand(self.norm(x)), axis=-1) * inside
        x = ops.silu(self.batch_norm(self.depthwise(x), seen, training=training))
        return self.dropout(self.project(x), training=training)
