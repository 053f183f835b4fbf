"""The weights of a Torch model in the Keras model of the same config, and gradients on whatever engine Keras runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import torch
from torch import nn

from speechtrain.backends.keras.layers import BatchNorm

KERAS_LEAVES = (
    keras.layers.Dense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.DepthwiseConv1D,
    keras.layers.LayerNormalization,
    BatchNorm,
    keras.layers.RNN,
    keras.layers.Bidirectional,
)
TORCH_LEAVES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.LayerNorm, nn.BatchNorm1d, nn.RNNBase)


def copy_weights(source: nn.Module, target: Any) -> None:
    """Both hold the same layers in the same order."""
    given, taken = list(_torch_leaves(source)), list(_keras_leaves(target))
    while given:
        module = given.pop(0)
        if isinstance(module, nn.RNNBase):
            for index in range(module.num_layers):
                _recurrent(module, index, taken.pop(0))
        else:
            _plain(module, taken.pop(0))
    assert not taken


def _torch_leaves(module: nn.Module) -> Iterator[nn.Module]:
    if isinstance(module, TORCH_LEAVES):
        yield module
    else:
        for child in module.children():
            yield from _torch_leaves(child)


def _keras_leaves(layer: Any) -> Iterator[Any]:
    if isinstance(layer, KERAS_LEAVES):
        yield layer
    else:
        for child in layer._layers:
            yield from _keras_leaves(child)


def _plain(module: Any, layer: Any) -> None:
    values = [module.weight]
    if isinstance(module, nn.Linear):
        values = [module.weight.T]
    elif isinstance(module, nn.Conv2d):
        values = [module.weight.permute(2, 3, 1, 0)]
    elif isinstance(module, nn.Conv1d):
        # (out, in / groups, k), of a depthwise one to (k, channels, 1)
        values = [module.weight.permute(2, 0, 1) if module.groups > 1 else module.weight.permute(2, 1, 0)]
    if module.bias is not None:
        values.append(module.bias)
    if isinstance(module, nn.BatchNorm1d):
        values += [module.running_mean, module.running_var]
    layer.set_weights([value.detach().numpy().copy() for value in values])  # JAX takes arrays as they lie in memory


def _recurrent(module: nn.RNNBase, index: int, layer: Any) -> None:
    sides = (
        [(layer.forward_layer, ""), (layer.backward_layer, "_reverse")] if isinstance(layer, keras.layers.Bidirectional) else [(layer, "")]
    )
    for side, suffix in sides:
        kernel, recurrent, first, second = (
            getattr(module, f"{name}_l{index}{suffix}").detach().numpy().copy() for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        if isinstance(module, nn.GRU):  # r z n -> z r n, two biases
            order = np.concatenate([np.arange(len(first)).reshape(3, -1)[i] for i in (1, 0, 2)])
            side.set_weights([kernel[order].T, recurrent[order].T, np.stack([first[order], second[order]])])
        else:
            whole = len(side.get_weights()) == 3  # Keras' own LSTM has one bias
            side.set_weights([kernel.T, recurrent.T, *([first + second] if whole else [first, second])])


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
