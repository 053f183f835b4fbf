"""What is used of Keras' inside is still as it was; a failure here means that a new version of Keras has changed it."""

from __future__ import annotations

import importlib.util

import pytest

if importlib.util.find_spec("keras") is None:  # importing it would choose its engine
    pytest.skip("needs the keras extra", allow_module_level=True)

from speechtrain.backends.keras import engine

keras = engine.start("tensorflow", 1)

from speechtrain.backends.keras import internals, optimizers  # noqa: E402


def model() -> keras.Model:
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="first"), keras.layers.Dense(1, name="second")])


def test_keras_lists_the_layers_of_a_model() -> None:
    made = model()
    try:
        assert [layer.name for layer in internals.layers_inside(made)][-2:] == ["first", "second"], (
            "Keras has changed: Layer._flatten_layers"
        )
        assert {layer.name for layer in internals.all_layers(made)} >= {made.name, "first", "second"}
    except (AttributeError, TypeError) as error:
        pytest.fail(f"Keras has changed: {error}")


def test_kerass_optimizers_know_their_variables_count_batches_and_clip_where_we_measure() -> None:
    made = model()
    optimizer = optimizers.measured(keras.optimizers.SGD(0.1), None, by_norm=True, accumulate=2)
    optimizer.build(made.trainable_variables)
    try:
        assert internals.index_of(optimizer, made.trainable_variables[1]) == 1, "Keras has changed: Optimizer._get_variable_index"
        gradients = [keras.ops.ones(variable.shape) for variable in made.trainable_variables]
        optimizer.apply(gradients, made.trainable_variables)
        assert internals.batches_counted(optimizer) == 1, "Keras has changed: Optimizer._iterations"
        optimizer.apply(gradients, made.trainable_variables)
    except AttributeError as error:
        pytest.fail(f"Keras has changed: {error}")
    assert optimizers.take_norm(optimizer) > 0, "Keras has changed: Optimizer._clip_gradients is called no more"
