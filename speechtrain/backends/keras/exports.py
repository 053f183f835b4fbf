"""A trained model for ONNX Runtime and for LiteRT, through TensorFlow."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from speechtrain.backends.base import Conversion
from speechtrain.backends.keras.internals import all_layers
from speechtrain.backends.keras.layers import MaskedLengths
from speechtrain.backends.keras.speech_model import SpeechModel
from speechtrain.errors import UserError

_OPSET = 17
MASK_TOLERANCE = 1e-3
"""Greatest difference between probabilities of a model and of the graph with a mask that is converted."""
_COMPARED = 8  # representative utterances on which these two are compared
_POOLS: dict[str | None, Any] = {
    "mean": lambda frames, inside: tf.reduce_sum(frames * inside, axis=1) / tf.reduce_sum(inside, axis=1),
    "last": lambda frames, inside: tf.reduce_sum(frames * (inside - tf.pad(inside[:, 1:], ((0, 0), (0, 1), (0, 0)))), axis=1),
}
"""How the frames (1, T', D) inside a mask (1, T', 1) become one, (1, D)."""


def to_onnx(model: SpeechModel, path: Path, options: Conversion) -> None:
    """Write a model with free batch and time: features (B, T, F), lengths (B,) -> values (B, T', V), value_lengths (B,)."""
    import tf2onnx

    features = tf.TensorSpec((None, None, options.input_size), tf.float32, name="features")
    lengths = tf.TensorSpec((None,), tf.int64, name="lengths")

    @tf.function(input_signature=(features, lengths))  # type: ignore[untyped-decorator]
    def call(features: Any, lengths: Any) -> dict[str, Any]:
        values, value_lengths = model(features, tf.cast(lengths, tf.int32), training=False)
        return {"values": tf.identity(values), "value_lengths": tf.cast(value_lengths, tf.int64)}

    tf2onnx.convert.from_function(call, input_signature=(features, lengths), opset=_OPSET, output_path=str(path))


def to_tflite(model: SpeechModel, path: Path, options: Conversion, *, int8: bool) -> None:
    """Write a model for one utterance of at most `options.frames` frames: features (1, T, F), lengths (1,) -> values (1, T', V).

    Recurrent layers are unrolled over these frames: TensorFlow's converter cannot quantise loops. With `int8` weights and activations are
    whole numbers, by ranges that the representative utterances have shown.

    Args:
        model: the model; its recurrent layers are left unrolled.
        path: the file.
        options: frames and representative utterances.
        int8: whether to quantise.
    """
    _unroll(model)
    features = tf.TensorSpec((1, options.frames, options.input_size), tf.float32, name="features")
    lengths = tf.TensorSpec((1,), tf.int32, name="lengths")

    @tf.function(input_signature=(features, lengths))  # type: ignore[untyped-decorator]
    def call(features: Any, lengths: Any) -> dict[str, Any]:
        values, value_lengths = model(features, lengths, training=False)
        return {"values": tf.identity(values), "value_lengths": tf.cast(value_lengths, tf.int32)}

    with _converter(model, call) as converter:
        if int8:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: _representative(options)
            floating = [] if options.whole_operators else [tf.lite.OpsSet.TFLITE_BUILTINS]
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8, *floating]
            converter.inference_input_type, converter.inference_output_type = (
                tf.dtypes.as_dtype(name) for name in (options.input_type, options.output_type)
            )
        path.write_bytes(converter.convert())


def to_tflite_micro(model: SpeechModel, path: Path, options: Conversion) -> None:
    """Write a classifier in whole numbers for TensorFlow Lite Micro.

    Features (1, T, F) and a mask (1, T), 1 inside the utterance, become probabilities (1, V), all of them int8. A mask stands in place of
    lengths, as the library divides no whole numbers. Recurrent layers are unrolled, as in `to_tflite`.

    Args:
        model: the model, which pools frames; its recurrent layers are left unrolled.
        path: the file.
        options: frames of a window, and representative utterances of at most as many.

    Raises:
        NotImplementedError: see `masked_call`.
        UserError: see `masked_call`.
    """
    call = masked_call(model, options)
    with _converter(model, call) as converter:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ({"features": x, "mask": m} for x, m in _masked(options))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
        path.write_bytes(converter.convert())


def masked_call(model: SpeechModel, options: Conversion) -> Any:
    """Return the function of features (1, T, F) and a mask (1, T) that `to_tflite_micro` converts, compared with the model itself.

    Args:
        model: the model, which pools frames; its recurrent layers are left unrolled.
        options: frames of a window, and representative utterances, on some of which it is compared.

    Raises:
        NotImplementedError: the model, or its pooling, has no counterpart.
        UserError: its probabilities differ from the model's by more than `MASK_TOLERANCE`.
    """
    pool = _POOLS.get(model.spec.pool)
    if pool is None:
        raise NotImplementedError(f"task.pool={model.spec.pool} has no counterpart in whole numbers; train with task.pool=mean")
    compared = [
        (x, m, np.exp(model(x, m.sum(1).astype(np.int32), training=False)[0])[:, 0]) for x, m in islice(_masked(options), _COMPARED)
    ]
    _unroll(model)
    for layer in all_layers(model):
        if isinstance(layer, keras.layers.RNN) and not layer.return_state:  # others are given no mask
            layer.call = partial(_steps, layer)
    features = tf.TensorSpec((1, options.frames, options.input_size), tf.float32, name="features")
    mask = tf.TensorSpec((1, options.frames), tf.float32, name="mask")

    @tf.function(input_signature=(features, mask))  # type: ignore[untyped-decorator]
    def call(features: Any, mask: Any) -> dict[str, Any]:
        frames, lengths = model.encoder.call(features, MaskedLengths(mask), training=False)
        return {"probabilities": tf.nn.softmax(model.head(pool(frames, lengths.inside(frames.shape[1])[:, :, None])))}

    try:
        call.get_concrete_function()
    except TypeError as error:
        raise NotImplementedError(f"{type(model.encoder).__name__} computes with lengths, which no whole numbers stand for") from error
    worst = max(float(np.abs(call(x, m)["probabilities"] - expected).max()) for x, m, expected in compared)
    if not worst <= MASK_TOLERANCE:
        what = f"with a mask in place of lengths it gives probabilities that differ by {worst:.3g}"
        raise UserError(f"{type(model.encoder).__name__}: {what}, {MASK_TOLERANCE:g} is allowed")
    return call


def _masked(options: Conversion) -> Iterator[tuple[Any, Any]]:
    for arrays in _representative(options):
        yield arrays["features"], (np.arange(options.frames) < arrays["lengths"][:, None]).astype(np.float32)


@contextmanager
def _converter(model: SpeechModel, call: Any) -> Iterator[Any]:
    """Yield the converter of a function of one signature that uses the weights of a model."""
    module = tf.Module()
    module.weights, module.call = [variable.value for variable in model.variables], call
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures={"serving_default": call.get_concrete_function()})
        yield tf.lite.TFLiteConverter.from_saved_model(folder)


def _unroll(model: SpeechModel) -> None:
    for layer in all_layers(model):
        if isinstance(layer, keras.layers.RNN):
            layer.unroll = True
            layer.zero_output_for_mask = False  # of an unrolled backward layer it zeroes the wrong frames; our models mask what they give


def _steps(layer: Any, sequences: Any, initial_state: Any = None, mask: Any = None, training: bool = False) -> Any:
    """Compute the outputs (1, T, D) of a recurrent layer step by step: Keras takes a mask of booleans apart, which the library does not.

    Only a backward layer needs the mask: its state stays what it was at the beginning until the last frame that is inside.
    """
    states = layer.get_initial_state(1) if initial_state is None else initial_state
    outputs = []
    frames = range(sequences.shape[1])
    for frame in reversed(frames) if layer.go_backwards else frames:
        output, following = layer.cell(sequences[:, frame], states, training=training)
        if mask is not None and layer.go_backwards:
            inside = tf.cast(mask[:, frame, None], output.dtype)
            following = [inside * new + (1 - inside) * old for new, old in zip(following, states, strict=True)]
        states = following
        outputs.append(output)
    return tf.stack(outputs, axis=1)


def _representative(options: Conversion) -> Iterator[dict[str, Any]]:
    for features in options.representative:
        length = min(features.shape[1], options.frames)
        padded = np.zeros((1, options.frames, options.input_size), dtype=np.float32)
        padded[:, :length] = features[:, :length]
        yield {"features": padded, "lengths": np.array([length], dtype=np.int32)}
