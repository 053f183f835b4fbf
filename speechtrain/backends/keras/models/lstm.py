"""A unidirectional LSTM (Hochreiter and Schmidhuber 1997; Gers et al. 2000) that can run on a live signal."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from speechtrain.backends.keras.layers import PACKAGE, Encoder, stack_frames, uniform


@keras.saving.register_keras_serializable(PACKAGE)
class Lstm(Encoder):
    """See `conf/model/lstm.yaml` for the arguments; `input_size` is F.

    Chunks bound how far back a gradient reaches (truncated backpropagation through time, Williams and Peng 1990); the state goes on
    from one to the next, so they change no output.
    """

    causal = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        layers: int,
        stack: int,
        chunk_frames: int,
        detach_every: int | None,
        dropout: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        steps = None if detach_every is None else chunk_frames * detach_every
        self.lstms = [keras.layers.RNN(Cell(hidden_size, steps), return_sequences=True, return_state=True) for _ in range(layers)]
        self.dropouts = [keras.layers.Dropout(dropout) for _ in range(layers)]
        self.input_size = input_size
        self.output_size = hidden_size
        self.subsampling = stack
        self.receptive_field = None

    def call(self, features: Any, lengths: Any, training: bool | None = None) -> Any:
        """Map features (B, T, F) to encoder frames (B, T', D), and their lengths (B,) to those of the output."""
        return self.run(stack_frames(features, self.subsampling), None, training=training)[0], self.output_lengths(lengths)

    def run(self, x: Any, states: list[Any] | None, training: bool | None = None) -> tuple[Any, list[Any]]:
        """Map (B, T', stack * F) and the state of each layer to (B, T', D) and the new states; None: a new signal."""
        after = []
        for index, (layer, dropout) in enumerate(zip(self.lstms, self.dropouts, strict=True)):
            x, *state = layer(x, initial_state=None if states is None else states[index], training=training)
            x = dropout(x, training=training)
            after.append(state)
        return x, after

    def stream(self) -> LstmStream:
        """Return a fresh state for one live signal; its outputs are those of `call` outside training."""
        return LstmStream(self)


class Cell(keras.layers.Layer):  # type: ignore[misc]
    """An LSTM step with two biases, as PyTorch has them, that lets no gradient back beyond every `detach_steps`-th step.

    A third state counts the steps.
    """

    def __init__(self, units: int, detach_steps: int | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.detach_steps = detach_steps
        self.state_size = [units, units, 1]
        self.output_size = units

    def build(self, input_shape: Any) -> None:
        """Make the weights of the gates in the order input, forget, cell, output."""
        gates = 4 * self.units
        self.kernel = self.add_weight((input_shape[-1], gates), initializer=uniform(self.units), name="kernel")
        self.recurrent_kernel = self.add_weight((self.units, gates), initializer=uniform(self.units), name="recurrent_kernel")
        self.bias = self.add_weight((gates,), initializer=uniform(self.units), name="bias")
        self.recurrent_bias = self.add_weight((gates,), initializer=uniform(self.units), name="recurrent_bias")

    def call(self, inputs: Any, states: Any, training: bool = False) -> Any:
        """Map (B, D) and [(B, D), (B, D), (B, 1)] to (B, D) and the states after."""
        hidden, cell, step = states
        if self.detach_steps is not None and training:
            cut = ops.equal(step % self.detach_steps, 0)
            hidden = ops.where(cut, ops.stop_gradient(hidden), hidden)
            cell = ops.where(cut, ops.stop_gradient(cell), cell)
        gates = ops.matmul(inputs, self.kernel) + self.bias + ops.matmul(hidden, self.recurrent_kernel) + self.recurrent_bias
        into, keep, new, out = ops.split(gates, 4, axis=-1)
        cell = ops.sigmoid(keep) * cell + ops.sigmoid(into) * ops.tanh(new)
        hidden = ops.sigmoid(out) * ops.tanh(cell)
        return hidden, [hidden, cell, step + 1]

    def get_initial_state(self, batch_size: Any = None) -> list[Any]:
        """Return states of zeros for a batch."""
        return [ops.zeros((batch_size, size), dtype=self.compute_dtype) for size in self.state_size]


class LstmStream:
    """Takes features as they come and gives encoder frames as soon as they are certain."""

    def __init__(self, encoder: Lstm) -> None:
        self._encoder = encoder
        self._states: list[Any] | None = None
        self._waiting: npt.NDArray[np.float32] | None = None

    def push(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the encoder frames (B, t', D) that features (B, t, F) complete; t may be 0."""
        x = features if self._waiting is None else np.concatenate([self._waiting, features], axis=1)
        whole = x.shape[1] - x.shape[1] % self._encoder.subsampling
        self._waiting = x[:, whole:]
        return self._run(x[:, :whole])

    def finish(self) -> npt.NDArray[np.float32]:
        """Return the encoder frame (B, 0 or 1, D) of what is left, filled up with zeros; afterwards a new signal can begin."""
        assert self._waiting is not None, "push comes first"
        out = self._run(self._waiting)
        self._states, self._waiting = None, None
        return out

    def _run(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if x.shape[1] == 0:
            return np.zeros((len(x), 0, self._encoder.output_size), dtype=np.float32)
        out, self._states = self._encoder.run(stack_frames(ops.convert_to_tensor(x), self._encoder.subsampling), self._states)
        return np.asarray(ops.convert_to_numpy(out), dtype=np.float32)
