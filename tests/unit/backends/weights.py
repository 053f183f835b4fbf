"""The weights of a Torch model in the Keras model of the same config, and gradients on whatever engine Keras runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import torch
from torch import nn

from speechtrain.backends.keras.layer_weights import set_layer_weights
from speechtrain.backends.torch.layer_weights import layer_weights


def copy_weights(source: nn.Module, target: Any) -> None:
    """Both hold the same layers in the same order."""
    set_layer_weights(target, layer_weights(source))


def gradient(function: Callable[[Any], Any], x: Any) -> tuple[Any, Any]:
    """Value (a scalar) and gradient of a function of an array."""
    engine = keras.config.backend()
    if engine == "tensorflow":
        import tensorflow as tf

        given = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(given)
            value = function(given)
        return float(value), tape.gradient(value, given).numpy()
    if engine == "jax":
        import jax

        value, found = jax.value_and_grad(function)(jax.numpy.asarray(x))
        return float(value), np.asarray(found)
    given = torch.tensor(x, requires_grad=True)
    value = function(given)
    value.backward()
    return float(value), given.grad.numpy()
