"""QuartzNet (Kriman et al. 2020): residual blocks of time-channel separable 1-D convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from speechtrain.backends.keras.layers import PACKAGE, BatchNorm, Depthwise, Encoder, conv, counted, frame_mask


@keras.saving.register_keras_serializable(PACKAGE)
class QuartzNet(Encoder):
    """See `conf/model/quartznet.yaml` for the arguments; `input_size` is F."""

    def __init__(
        self,
        input_size: int,
        stem_channels: int,
        stem_kernel: int,
        subsampling: int,
        channels: Sequence[int],
        kernel_sizes: Sequence[int],
        repeats: int,
        head_channels: int,
        head_kernel: int,
        head_dilation: int,
        dropout: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.stem = SeparableConv(input_size, stem_channels, stem_kernel, stride=subsampling)
        sizes = [stem_channels, *channels]
        self.blocks = [Block(sizes[i], sizes[i + 1], kernel, repeats, dropout) for i, kernel in enumerate(kernel_sizes)]
        self.head = SeparableConv(sizes[-1], head_channels, head_kernel, dilation=head_dilation)
        self.stem_dropout = keras.layers.Dropout(dropout)
        self.head_dropout = keras.layers.Dropout(dropout)
        self.output_size = head_channels
        self.subsampling = subsampling
        context = repeats * sum(kernel - 1 for kernel in kernel_sizes) + head_dilation * (head_kernel - 1)
        self.receptive_field = stem_kernel + subsampling * context

    def call(self, features: Any, lengths: Any, training: bool | None = None) -> Any:
        """Map features (B, T, F) to encoder frames (B, T', D), and their lengths (B,) to those of the output."""
        inside = ops.cast(frame_mask(lengths, ops.shape(features)[1]), features.dtype)[:, :, None]
        lengths = self.output_lengths(lengths)
        frames = self.output_lengths(ops.shape(features)[1])
        seen = counted(lengths, frames)
        x = self.stem_dropout(ops.relu(self.stem(features, inside, seen, training=training)), training=training)
        inside = ops.cast(frame_mask(lengths, frames), x.dtype)[:, :, None]
        for block in self.blocks:
            x = block(x, inside, seen, training=training)
        return self.head_dropout(ops.relu(self.head(x, inside, seen, training=training)), training=training), lengths


class Block(keras.layers.Layer):  # type: ignore[misc]
    """Separable convolutions in a row beside a pointwise short cut."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, repeats: int, dropout: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.convs = [SeparableConv(inputs if i == 0 else outputs, outputs, kernel_size) for i in range(repeats)]
        self.shortcut = conv(inputs, outputs, 1)
        self.shortcut_norm = BatchNorm()
        self.dropouts = [keras.layers.Dropout(dropout) for _ in range(repeats)]

    def call(self, x: Any, inside: Any, seen: Any, training: bool | None = None) -> Any:
        """Map (B, T', D) to (B, T', D')."""
        branch = x
        for index, layer in enumerate(self.convs):
            if index:
                branch = self.dropouts[index - 1](ops.relu(branch), training=training)
            branch = layer(branch, inside, seen, training=training)
        short = self.shortcut_norm(self.shortcut(x), seen, training=training)
        return self.dropouts[-1](ops.relu(branch + short), training=training)


class SeparableConv(keras.layers.Layer):  # type: ignore[misc]
    """Depthwise over time, pointwise over channels, batch norm."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, stride: int = 1, dilation: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.depthwise = Depthwise(kernel_size, stride=stride, dilation=dilation)
        self.pointwise = conv(inputs, outputs, 1)
        self.norm = BatchNorm()

    def call(self, x: Any, inside: Any, seen: Any, training: bool | None = None) -> Any:
        """Map (B, T, D) to (B, T', D'); frames outside `inside` (B, T, 1) reach no others, statistics over `seen` (B, T')."""
        return self.norm(self.pointwise(self.depthwise(x * inside)), seen, training=training)
