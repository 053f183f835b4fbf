"""The private names of Keras that are used, each in one function.

`tests/unit/backends/test_keras_internals.py` says that Keras has changed when one of them is gone.
"""

from __future__ import annotations

from typing import Any


def layers_inside(layer: Any) -> list[Any]:
    """Return the layers directly inside a layer or model, in the order in which they were made."""
    return list(layer._flatten_layers(include_self=False, recursive=False))


def all_layers(layer: Any) -> list[Any]:
    """Return a layer or model and all layers inside it, at any depth."""
    return list(layer._flatten_layers())


def index_of(optimizer: Any, variable: Any) -> int:
    """Return the position of a weight among those that an optimizer was built for."""
    return int(optimizer._get_variable_index(variable))


def batches_counted(optimizer: Any) -> int:
    """Return how many batches an optimizer was given; `iterations` counts its steps where gradients are accumulated."""
    return int(optimizer._iterations.numpy())


def predict_any_size(model: Any, inputs: dict[str, Any]) -> None:
    """Make the graph by which TensorFlow predicts batches of any size, so that it does not make another for the size of the first.

    Args:
        model: compiled, and not by XLA, which needs the sizes.
        inputs: arrays of a batch; how many axes they have and what lies behind the second stays the same for all batches.
    """
    import tensorflow as tf

    is_made = model.predict_function is not None
    if not is_made:
        model.make_predict_function()
        specs = {name: tf.TensorSpec([None, None, *array.shape[2:]][: array.ndim], array.dtype) for name, array in inputs.items()}
        model.predict_function.get_concrete_function([(specs,)])
