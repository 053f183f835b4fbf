"""A trained model for ONNX Runtime and for LiteRT, through TensorFlow."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from speechtrain.backends.base import Conversion
from speechtrain.backends.keras.internals import all_layers
from speechtrain.backends.keras.speech_model import SpeechModel

_OPSET = 17


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
    whole numbers, by ranges that the representative utterances have shown; inputs and outputs stay floating-point.

    Args:
        model: the model; its recurrent layers are left unrolled.
        path: the file.
        options: frames and representative utterances.
        int8: whether to quantise.
    """
    for layer in all_layers(model):
        if isinstance(layer, keras.layers.RNN):
            layer.unroll = True
            layer.zero_output_for_mask = False  # of an unrolled backward layer it zeroes the wrong frames; our models mask what they give
    features = tf.TensorSpec((1, options.frames, options.input_size), tf.float32, name="features")
    lengths = tf.TensorSpec((1,), tf.int32, name="lengths")

    @tf.function(input_signature=(features, lengths))  # type: ignore[untyped-decorator]
    def call(features: Any, lengths: Any) -> dict[str, Any]:
        values, value_lengths = model(features, lengths, training=False)
        return {"values": tf.identity(values), "value_lengths": tf.cast(value_lengths, tf.int32)}

    module = tf.Module()
    module.weights, module.call = [variable.value for variable in model.variables], call
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures={"serving_default": call.get_concrete_function()})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if int8:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: _representative(options)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8, tf.lite.OpsSet.TFLITE_BUILTINS]
        path.write_bytes(converter.convert())


def _representative(options: Conversion) -> Iterator[dict[str, Any]]:
    for features in options.representative:
        length = min(features.shape[1], options.frames)
        padded = np.zeros((1, options.frames, options.input_size), dtype=np.float32)
        padded[:, :length] = features[:, :length]
        yield {"features": padded, "lengths": np.array([length], dtype=np.int32)}
