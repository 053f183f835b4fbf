"""The base class of encoders, and the parts that several of them share. Channels come last: (B, T, D)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

PACKAGE = "speechtrain"
"""Under which our layers are known to `keras.saving`."""


class MaskedLengths:
    """Stands for the lengths of utterances in a graph that is given a mask of frames instead: some runtimes divide no whole numbers.

    Models divide lengths by the strides of their layers, rounding up; of the mask that is every stride-th frame.

    Args:
        mask: mask (B, T) of floating-point numbers, 1 inside each utterance.
        stride: input frames a frame.
    """

    def __init__(self, mask: Any, stride: int = 1) -> None:
        self._mask = mask
        self._stride = stride

    def __add__(self, other: int) -> MaskedLengths:
        """Return the same: what is added rounds a quotient up."""
        return self

    def __sub__(self, other: int) -> MaskedLengths:
        """Return the same: what is subtracted rounds a quotient up."""
        return self

    def __floordiv__(self, stride: int) -> MaskedLengths:
        """Return the lengths behind a layer with a stride."""
        return MaskedLengths(self._mask, self._stride * stride)

    def inside(self, frames: int) -> Any:
        """Return the mask (B, frames)."""
        return self._mask[:, :: self._stride][:, :frames]


def frame_mask(lengths: Any, frames: Any) -> Any:
    """Make a mask (B, T) of booleans, true inside each utterance."""
    if isinstance(lengths, MaskedLengths):
        return lengths.inside(frames)
    return ops.arange(frames, dtype="int32")[None, :] < ops.cast(lengths, "int32")[:, None]


def counted(lengths: Any, frames: Any) -> Any:
    """Return booleans (B, T) that mark the frames of a batch without the padding added to reach a shape that is compiled already.

    Statistics of a batch go by these, so that such padding changes nothing.
    """
    if isinstance(lengths, MaskedLengths):
        return lengths.inside(frames)
    lengths = ops.cast(lengths, "int32")
    return (ops.arange(frames, dtype="int32")[None, :] < ops.max(lengths)) & (lengths > 0)[:, None]


def uniform(fan_in: int) -> Any:
    """Return numbers from +-1/sqrt(fan_in), as PyTorch draws weights and biases of linear, convolution and recurrent layers.

    One for each weight: an initializer of Keras draws the same numbers each time.
    """
    bound = fan_in**-0.5
    return keras.initializers.RandomUniform(-bound, bound)


def linear(inputs: int, outputs: int) -> Any:
    """Make an affine map of the last axis."""
    return keras.layers.Dense(outputs, kernel_initializer=uniform(inputs), bias_initializer=uniform(inputs))


def conv(inputs: int, outputs: int, kernel_size: int, *, dilation: int = 1) -> Any:
    """Make a 1-D convolution over time without bias that keeps the number of frames; the kernel size is odd."""
    return keras.layers.Conv1D(
        outputs, kernel_size, dilation_rate=dilation, padding="same", use_bias=False, kernel_initializer=uniform(inputs * kernel_size)
    )


class Depthwise(keras.layers.Layer):  # type: ignore[misc]
    """Each channel filtered over time by itself, centred; the kernel is odd and there is no bias."""

    def __init__(self, kernel_size: int, stride: int = 1, dilation: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.padding = dilation * (kernel_size // 2)
        self.conv = keras.layers.DepthwiseConv1D(
            kernel_size,
            strides=stride,
            dilation_rate=dilation,
            padding="valid",
            use_bias=False,
            depthwise_initializer=uniform(kernel_size),
        )

    def call(self, x: Any) -> Any:
        """Map (B, T, D) to (B, T', D)."""
        return self.conv(ops.pad(x, ((0, 0), (self.padding, self.padding), (0, 0))))


class BatchNorm(keras.layers.Layer):  # type: ignore[misc]
    """Batch norm (Ioffe and Szegedy 2015) of the last axis over chosen frames, with PyTorch's constants.

    Keras' own keeps the running mean of the biased variance, PyTorch that of the unbiased one.
    """

    def build(self, input_shape: Any) -> None:
        """Make a scale, a shift and two running statistics per channel."""
        shape = (input_shape[-1],)
        self.gamma = self.add_weight(shape, initializer="ones", name="gamma")
        self.beta = self.add_weight(shape, initializer="zeros", name="beta")
        self.mean = self.add_weight(shape, initializer="zeros", trainable=False, name="mean", autocast=False)
        self.variance = self.add_weight(shape, initializer="ones", trainable=False, name="variance", autocast=False)

    def call(self, x: Any, seen: Any, training: bool | None = None) -> Any:
        """Map (B, T, D) to (B, T, D); statistics over the frames of `seen` (B, T)."""
        mean, variance = ops.convert_to_tensor(self.mean), ops.convert_to_tensor(self.variance)
        if training:
            wide = ops.cast(x, mean.dtype)
            weights = ops.cast(seen, mean.dtype)
            count = ops.maximum(ops.sum(weights), 1)
            mean = ops.tensordot(weights, wide, 2) / count
            variance = ops.tensordot(weights, ops.square(wide - mean), 2) / count
            self.mean.assign(0.9 * self.mean + 0.1 * mean)
            self.variance.assign(0.9 * self.variance + 0.1 * variance * count / ops.maximum(count - 1, 1))
        scale = ops.cast(self.gamma, mean.dtype) * ops.rsqrt(variance + 1e-5)
        shift = ops.cast(self.beta, mean.dtype) - mean * scale
        return x * ops.cast(scale, x.dtype) + ops.cast(shift, x.dtype)


def layer_norm() -> Any:
    """Make a layer norm with PyTorch's epsilon."""
    return keras.layers.LayerNormalization(epsilon=1e-5)


class Encoder(keras.layers.Layer):  # type: ignore[misc]
    """Encodes features (B, T, F) of lengths (B,) as (B, T', D), and gives their lengths (B,).

    Attributes:
        output_size: D.
        subsampling: input frames an encoder frame.
        receptive_field: input frames that an encoder frame depends on; None: all of them.
        causal: whether no encoder frame depends on later input.
    """

    output_size: int
    subsampling: int
    receptive_field: int | None
    causal: bool = False

    def get_build_config(self) -> None:
        """Return nothing: a loaded model makes its weights in a first pass, as a new one does."""

    def output_lengths(self, lengths: Any) -> Any:
        """Return the numbers of encoder frames (B,) for numbers of input frames (B,), as arrays or tensors of integers."""
        return (lengths + self.subsampling - 1) // self.subsampling

    def call(self, features: Any, lengths: Any, training: bool | None = None) -> Any:
        """Encode; what lies behind an utterance's end changes nothing."""
        raise NotImplementedError


class ConvStem(keras.layers.Layer):  # type: ignore[misc]
    """3x3 convolutions over time and mels, each halving the mels and dividing time by its stride.

    Args:
        input_size: F.
        channels: channels of each layer.
        time_strides: time strides of each layer.
        output_size: D of a linear layer on what is left of the mels.
    """

    def __init__(self, input_size: int, channels: Sequence[int], time_strides: Sequence[int], output_size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        sizes = [1, *channels]
        self.convs = [
            keras.layers.Conv2D(
                sizes[i + 1],
                3,
                strides=(time_strides[i], 2),
                padding="valid",
                kernel_initializer=uniform(9 * sizes[i]),
                bias_initializer=uniform(9 * sizes[i]),
            )
            for i in range(len(channels))
        ]
        bands = input_size
        for _ in channels:
            bands = (bands + 1) // 2
        self.width = channels[-1] * bands
        self.linear = linear(self.width, output_size)
        self.time_strides = list(time_strides)

    @property
    def receptive_field(self) -> int:
        """Return how many input frames an output frame depends on."""
        field, stride = 1, 1
        for step in self.time_strides:
            field += 2 * stride
            stride *= step
        return field

    def output_lengths(self, lengths: Any) -> Any:
        """Compute the numbers of output frames (B,) of input frames (B,)."""
        for stride in self.time_strides:
            lengths = (lengths + stride - 1) // stride
        return lengths

    def call(self, features: Any, lengths: Any) -> Any:
        """Map features (B, T, F) to encoder frames (B, T', D), and their lengths (B,) to those of the output."""
        x = features[:, :, :, None]  # (B, T, F, 1)
        for layer, stride in zip(self.convs, self.time_strides, strict=True):
            lengths = (lengths + stride - 1) // stride
            # padded by hand: "same" would put all of a strided layer's padding behind
            x = layer(ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))))
            x = ops.relu(x * ops.cast(frame_mask(lengths, ops.shape(x)[1]), x.dtype)[:, :, None, None])
        shape = ops.shape(x)
        return self.linear(ops.reshape(x, (shape[0], shape[1], self.width))), lengths


def stack_frames(x: Any, stack: int) -> Any:
    """Join neighbouring frames (B, T, F) to (B, ceil(T / stack), stack * F), filled up with zeros."""
    if stack == 1:
        return x
    batch, frames = ops.shape(x)[0], ops.shape(x)[1]
    missing = (stack - frames % stack) % stack  # without a negative number, whose remainder ONNX has otherwise
    x = ops.pad(x, ((0, 0), (0, missing), (0, 0)))
    return ops.reshape(x, (batch, (frames + stack - 1) // stack, stack * x.shape[2]))
