"""An encoder with its head, and the model around it that also knows the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import keras
from keras import ops

from speechtrain.backends.keras import losses
from speechtrain.backends.keras.layers import PACKAGE, frame_mask, linear
from speechtrain.backends.keras.ops import Ops
from speechtrain.tasks.base import Head, Task

_FORMER_FIELDS = {"begins_even": "zero_init"}
"""Fields of `Head` as `.keras` files of earlier versions name them."""


@keras.saving.register_keras_serializable(PACKAGE)
class SpeechModel(keras.Model):  # type: ignore[misc]
    """An encoder with the head that a task asks for.

    Args:
        encoder: (B, T, F), (B,) -> (B, T', D), (B,).
        head: its fields, as Keras stores them.
        input_size: F.
        blank_last: give the blank behind the other labels, as programs expect that number labels from 0.
    """

    def __init__(self, encoder: Any, head: Mapping[str, Any], input_size: int, blank_last: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.encoder = encoder
        self.spec = Head(**head)
        outputs = self.spec.size * (encoder.subsampling if self.spec.per_input_frame else 1)
        limited_context = getattr(encoder, "receptive_field", None) is not None
        zeros = keras.layers.Dense(outputs, kernel_initializer="zeros", bias_initializer="zeros")  # made always: Keras numbers layers
        self.head = zeros if self.spec.zero_init and limited_context else linear(encoder.output_size, outputs)
        self.input_size = input_size
        self.blank_last = blank_last
        self._around = _Steps()

    def call(self, features: Any, feature_lengths: Any, training: bool | None = None) -> tuple[Any, Any]:
        """Map features (B, T, F) and lengths (B,) to the head's values (B, T', V) and their lengths (B,)."""
        encoded, lengths = self.encoder(features, feature_lengths, training=training)
        if self.spec.pool is not None:
            encoded, lengths = pooled(encoded, lengths, self.spec.pool)
        values = ops.cast(self.head(encoded), "float32")
        if self.spec.per_input_frame:
            values = ops.reshape(values, (ops.shape(values)[0], -1, self.spec.size))[:, : ops.shape(features)[1]]
            lengths = feature_lengths
        if self.spec.log_softmax:
            values = ops.log_softmax(values, axis=-1)
        return ops.roll(values, -1, axis=-1) if self.blank_last else values, lengths

    def make_weights(self) -> None:
        """Make all weights in a first pass over zeros."""
        frames = 4 * self.encoder.subsampling
        features = ops.zeros((1, frames, self.input_size), dtype="float32")
        self(features, ops.convert_to_tensor([frames], dtype="int32"), training=False)

    def random_states(self) -> list[Any]:
        """Return the random states that dropout is drawn from."""
        return [variable for variable in self.non_trainable_variables if variable.path.endswith("seed_generator_state")]

    def step(self, task: Task, *, compiled: bool) -> Step:
        """Return the model with a task's loss around it, always the same one for a task, so that it is compiled once."""
        key = (task, compiled)
        if key not in self._around.made:
            self._around.made[key] = Step(self, task, compiled=compiled)
        return self._around.made[key]

    def inference(self, *, compiled: bool) -> Inference:
        """Return the model as one that takes a dictionary of arrays; the same one each time, so that what it has compiled is used again."""
        if compiled not in self._around.inference:
            self._around.inference[compiled] = Inference(self, compiled=compiled)
        return self._around.inference[compiled]

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that `keras.saving` stores."""
        return {
            "encoder": keras.saving.serialize_keras_object(self.encoder),
            "head": asdict(self.spec),
            "input_size": self.input_size,
            "blank_last": self.blank_last,
        }

    def with_blank_last(self) -> SpeechModel:
        """Return a copy that gives the blank behind the other labels."""
        copy = SpeechModel.from_config({**self.get_config(), "blank_last": True})
        copy.set_weights(self.get_weights())
        return copy

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SpeechModel:
        """Build a model from the arguments that `keras.saving` stored."""
        encoder = keras.saving.deserialize_keras_object(config["encoder"])
        head = {_FORMER_FIELDS.get(name, name): value for name, value in config["head"].items()}
        model = cls(encoder, head, config["input_size"], config["blank_last"])
        model.make_weights()
        return model


def pooled(x: Any, lengths: Any, how: str) -> tuple[Any, Any]:
    """Pool (B, T', D) to (B, 1, D) over the frames of each row (`mean`, `max`), or take its last frame (`last`); lengths become 1."""
    lengths = ops.maximum(ops.cast(lengths, "int32"), 1)
    if how == "last":
        frames = ops.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)
    else:
        inside = frame_mask(lengths, ops.shape(x)[1])[:, :, None]
        if how == "max":
            lowest = ops.cast(-6e4, x.dtype)  # within half precision
            frames = ops.max(ops.where(inside, x, lowest), axis=1, keepdims=True)
        else:
            count = ops.cast(lengths, x.dtype)[:, None, None]
            frames = ops.sum(x * ops.cast(inside, x.dtype), axis=1, keepdims=True) / count
    return frames, ops.ones_like(lengths)


class _Steps:
    """Holds objects that Keras must not track, because it would take them for parts of the model."""

    def __init__(self) -> None:
        self.made: dict[Any, Step] = {}
        self.inference: dict[bool, Inference] = {}


class Inference(keras.Model):  # type: ignore[misc]
    """A model whose one argument is a dictionary, as `predict_on_batch` wants it; it computes no loss.

    Args:
        model: with weights.
        compiled: whether XLA compiles it.
    """

    def __init__(self, model: SpeechModel, *, compiled: bool) -> None:
        super().__init__(dtype=model.dtype_policy)
        self.model = model
        self.compile(jit_compile=compiled)
        self.built = True

    def call(self, inputs: dict[str, Any], training: bool | None = None) -> tuple[Any, Any]:
        """Compute outputs (B, T', V) and their lengths (B,) of `features` (B, T, F) and `feature_lengths` (B,)."""
        outputs: tuple[Any, Any] = self.model(inputs["features"], inputs["feature_lengths"], training=training)
        return outputs


class Step(keras.Model):  # type: ignore[misc]
    """Computes values and losses of a batch; `fit` trains it.

    Args:
        model: with weights.
        task: knows the loss.
        compiled: whether XLA compiles it.
    """

    def __init__(self, model: SpeechModel, task: Task, *, compiled: bool) -> None:
        super().__init__(dtype=model.dtype_policy)
        self.model = model
        self._loss = partial(task.loss, Ops(compiled=compiled))
        self._regularised = partial(task.regularised, Ops(compiled=compiled))
        self._consistency = task.consistency
        self.compile(jit_compile=compiled)
        self.built = True

    def call(self, batch: dict[str, Any], training: bool | None = None) -> dict[str, Any]:
        """Compute `values` (B, T', V), `lengths` (B,) and `losses` (B,)."""
        values, lengths = self.model(batch["features"], batch["feature_lengths"], training=training)
        losses = self._loss(values, lengths, batch["targets"], batch["target_lengths"])
        return {"values": values, "lengths": lengths, "losses": losses}

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,  # noqa: ARG002
        y_pred: Any = None,
        sample_weight: Any = None,  # noqa: ARG002
        training: bool = True,  # noqa: ARG002
    ) -> Any:
        """Return the mean loss per target, so that neither the batch size nor padding weighs."""
        total = ops.sum(self._regularised(y_pred["losses"], y_pred["values"], y_pred["lengths"]))
        if self._consistency:
            # summed over both views like the CTC loss, of which it takes the share that the paper gives it
            total = total + 2 * self._consistency * ops.sum(losses.consistency(y_pred["values"], y_pred["lengths"]))
        return total / ops.cast(ops.maximum(ops.sum(x["target_lengths"]), 1), total.dtype)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:  # noqa: ARG002
        """Return the loss of this batch, and the sums from which the mean of an epoch is computed."""
        return {"loss": self.compute_loss(x, y_pred=y_pred), "total": ops.sum(y_pred["losses"])}
