"""Weights of another backend's model, put into the Keras model of the same config."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras

from speechtrain.backends.base import LayerWeights
from speechtrain.backends.keras.internals import layers_inside
from speechtrain.backends.keras.layers import BatchNorm

_LEAVES = (
    keras.layers.Dense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.DepthwiseConv1D,
    keras.layers.LayerNormalization,
    BatchNorm,
    keras.layers.RNN,
    keras.layers.Bidirectional,
)


def set_layer_weights(model: Any, rows: LayerWeights) -> None:
    """Put weights into the layers of a model or an encoder that is built.

    Args:
        model: both hold the same layers in the same order.
        rows: the weights, a layer in each row.

    Raises:
        NotImplementedError: the layers are others.
    """
    layers = [side for layer in _leaves(model) for side in _sides(layer)]
    if len(layers) != len(rows):
        raise NotImplementedError(f"the model of Keras has {len(layers)} layers with weights, and the other one {len(rows)}")
    for layer, row in zip(layers, rows, strict=True):
        values = [*row[:2], row[2] + row[3]] if len(row) == 4 and len(layer.weights) == 3 else row  # Keras' own LSTM has one bias
        shapes, wanted = [value.shape for value in values], [tuple(weight.shape) for weight in layer.weights]
        if shapes != wanted:
            raise NotImplementedError(f"the layer {layer.name} of Keras holds weights of shapes {wanted}, and the other one {shapes}")
        layer.set_weights(list(values))


def _leaves(layer: Any) -> Iterator[Any]:
    if isinstance(layer, _LEAVES):
        yield layer
    else:
        for child in layers_inside(layer):
            yield from _leaves(child)


def _sides(layer: Any) -> list[Any]:
    return [layer.forward_layer, layer.backward_layer] if isinstance(layer, keras.layers.Bidirectional) else [layer]
