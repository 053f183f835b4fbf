"""An encoder with its head, and the model around it that also knows the loss."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from speechtrain.backends.keras import losses
from speechtrain.backends.keras.layers import PACKAGE, linear


@keras.saving.register_keras_serializable(PACKAGE)
class SpeechModel(keras.Model):  # type: ignore[misc]
    """An encoder and a linear head with log-softmax in float32.

    Behind an encoder of limited context the head begins with zeros, so that all alignments are equally likely: docs/decisions/0010.

    Args:
        encoder: (B, T, F), (B,) -> (B, T', D), (B,).
        output_size: V.
        input_size: F.
        blank_last: give the blank behind the other labels, as programs expect that number labels from 0.
    """

    def __init__(self, encoder: Any, output_size: int, input_size: int, blank_last: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.encoder = encoder
        limited = getattr(encoder, "receptive_field", None) is not None
        zeros = keras.layers.Dense(output_size, kernel_initializer="zeros", bias_initializer="zeros")
        self.head = zeros if limited else linear(encoder.output_size, output_size)
        self.sizes = {"output_size": output_size, "input_size": input_size}
        self.blank_last = blank_last
        self._around = _Steps()

    def call(self, features: Any, feature_lengths: Any, training: bool | None = None) -> tuple[Any, Any]:
        """(B, T, F), (B,) -> log-probabilities (B, T', V), (B,)."""
        encoded, lengths = self.encoder(features, feature_lengths, training=training)
        log_probs = ops.log_softmax(ops.cast(self.head(encoded), "float32"), axis=-1)
        return ops.roll(log_probs, -1, axis=-1) if self.blank_last else log_probs, lengths

    def make_weights(self) -> None:
        """All weights, by a first pass over nothing."""
        frames = 4 * self.encoder.subsampling
        features = ops.zeros((1, frames, self.sizes["input_size"]), dtype="float32")
        self(features, ops.convert_to_tensor([frames], dtype="int32"), training=False)

    def random_states(self) -> list[Any]:
        """What dropout is drawn from."""
        return [variable for variable in self.non_trainable_variables if variable.path.endswith("seed_generator_state")]

    def step(self, loss: str, weight: float, *, compiled: bool) -> Step:
        """The model with a loss around it; one for each loss, so that what it has compiled is used again."""
        key = (loss, weight, compiled)
        if key not in self._around.made:
            self._around.made[key] = Step(self, loss, weight, compiled=compiled)
        return self._around.made[key]

    def get_config(self) -> dict[str, Any]:
        """For `keras.saving`."""
        return {"encoder": keras.saving.serialize_keras_object(self.encoder), **self.sizes, "blank_last": self.blank_last}

    def with_blank_last(self) -> SpeechModel:
        """A copy that gives the blank behind the other labels."""
        copy = SpeechModel.from_config({**self.get_config(), "blank_last": True})
        copy.set_weights(self.get_weights())
        return copy

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SpeechModel:
        """For `keras.saving`."""
        encoder = keras.saving.deserialize_keras_object(config["encoder"])
        model = cls(encoder, config["output_size"], config["input_size"], config["blank_last"])
        model.make_weights()
        return model


class _Steps:
    """Out of Keras' sight, which would take them for parts of the model."""

    def __init__(self) -> None:
        self.made: dict[Any, Step] = {}


class Step(keras.Model):  # type: ignore[misc]
    """A batch in, log-probabilities and losses out; `fit` trains it.

    Args:
        model: with weights.
        loss: its name.
        consistency: weight of the divergence between two views.
        compiled: whether XLA compiles it.
    """

    def __init__(self, model: SpeechModel, loss: str, consistency: float, *, compiled: bool) -> None:
        super().__init__(dtype=model.dtype_policy)
        self.model = model
        self._loss = losses.named(loss, compiled=compiled)
        self._consistency = consistency
        self.compile(jit_compile=compiled)
        self.built = True

    def call(self, batch: dict[str, Any], training: bool | None = None) -> dict[str, Any]:
        """`log_probs` (B, T', V), `lengths` (B,), `losses` (B,)."""
        log_probs, lengths = self.model(batch["features"], batch["feature_lengths"], training=training)
        found = self._loss(log_probs, lengths, batch["targets"], batch["target_lengths"])
        return {"log_probs": log_probs, "lengths": lengths, "losses": found}

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,  # noqa: ARG002
        y_pred: Any = None,
        sample_weight: Any = None,  # noqa: ARG002
        training: bool = True,  # noqa: ARG002
    ) -> Any:
        """Mean loss a label, so that neither the batch's size nor its padding weighs."""
        total = ops.sum(y_pred["losses"])
        if self._consistency:
            # summed over both views like the CTC loss, of which it takes the share that the paper gives it
            total = total + 2 * self._consistency * ops.sum(losses.consistency(y_pred["log_probs"], y_pred["lengths"]))
        return total / ops.cast(ops.maximum(ops.sum(x["target_lengths"]), 1), total.dtype)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:  # noqa: ARG002
        """Of this batch: the loss, and what an epoch's mean is made of."""
        return {"loss": self.compute_loss(x, y_pred=y_pred), "total": ops.sum(y_pred["losses"])}
