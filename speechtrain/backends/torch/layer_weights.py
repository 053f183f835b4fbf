"""The weights of a Torch model as the same layers of Keras hold them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from speechtrain.backends.base import LayerWeights

_LEAVES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.LayerNorm, nn.BatchNorm1d, nn.RNNBase)


def layer_weights(model: nn.Module) -> LayerWeights:
    """Return the weights of all layers that have some, transposed as Keras stores them; of a recurrent layer one row for each direction.

    Raises:
        NotImplementedError: a parameter belongs to no layer that Keras has; the message names it.
    """
    modules = list(_leaves(model))
    known = {id(parameter) for module in modules for parameter in module.parameters()}
    if unknown := [name for name, parameter in model.named_parameters() if id(parameter) not in known]:
        raise NotImplementedError(f"{unknown[0]} belongs to no layer that Keras has")
    rows: list[list[npt.NDArray[np.float32]]] = []
    for module in modules:
        if isinstance(module, nn.RNNBase):
            sides = ("", "_reverse") if module.bidirectional else ("",)
            rows += [_recurrent(module, f"_l{index}{side}") for index in range(module.num_layers) for side in sides]
        else:
            rows.append(_plain(module))
    return rows


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    if isinstance(module, _LEAVES):
        yield module
    else:
        for child in module.children():
            yield from _leaves(child)


def _plain(module: Any) -> list[npt.NDArray[np.float32]]:
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
    return [_array(value) for value in values]


def _recurrent(module: nn.RNNBase, suffix: str) -> list[npt.NDArray[np.float32]]:
    """Return kernel, recurrent kernel and the two biases of one direction, in the order of Keras' gates."""
    kernel, recurrent, first, second = (
        _array(getattr(module, f"{name}{suffix}")) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    if not isinstance(module, nn.GRU):
        return [kernel.T, recurrent.T, first, second]
    order = np.concatenate([np.arange(len(first)).reshape(3, -1)[gate] for gate in (1, 0, 2)])  # r z n -> z r n
    return [kernel[order].T, recurrent[order].T, np.stack([first[order], second[order]])]


def _array(value: torch.Tensor) -> npt.NDArray[np.float32]:
    return value.detach().cpu().numpy().copy()  # JAX takes arrays as they lie in memory
