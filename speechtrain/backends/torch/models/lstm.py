"""A unidirectional LSTM (Hochreiter and Schmidhuber 1997; Gers et al. 2000) that can run on a live signal."""

from __future__ import annotations

import torch
from torch import nn

from speechtrain.backends.torch.encoder import Encoder, stack_frames
from speechtrain.backends.torch.models.recurrent import LstmLayers

State = tuple[torch.Tensor, torch.Tensor]
"""Hidden and cell state, each (layers, B, D)."""


class Lstm(Encoder):
    """See `conf/model/lstm.yaml` for the arguments; `input_size` is F.

    Chunks bound how far back a gradient reaches (truncated backpropagation through time, Williams and Peng 1990); the state goes on
    from one to the next, so they change no output.
    """

    causal = True

    def __init__(
        self, input_size: int, hidden_size: int, layers: int, stack: int, chunk_frames: int, detach_every: int | None, dropout: float
    ) -> None:
        super().__init__()
        self.lstm = LstmLayers(input_size * stack, hidden_size, num_layers=layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.dropout = nn.Dropout(dropout)
        self.chunk_frames = chunk_frames
        self.detach_every = detach_every
        self.output_size = hidden_size
        self.subsampling = stack
        self.receptive_field = None

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Compute the numbers of encoder frames (B,) of input frames (B,)."""
        return (lengths + self.subsampling - 1) // self.subsampling

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode features (B, T, F) as (B, T', D), with their lengths (B,)."""
        x = stack_frames(features, self.subsampling)
        if self.detach_every is None or not self.training:
            out, _ = self.lstm(x)
        else:
            state: State | None = None
            parts = []
            for index, chunk in enumerate(torch.split(x, self.chunk_frames, dim=1)):
                if state is not None and index % self.detach_every == 0:
                    state = (state[0].detach(), state[1].detach())
                part, state = self.lstm(chunk, state)
                parts.append(part)
            out = torch.cat(parts, dim=1)
        return self.dropout(out), self.output_lengths(lengths)

    def stream(self) -> LstmStream:
        """Return a fresh state for one live signal; in evaluation mode its outputs are those of `forward`."""
        return LstmStream(self)


class LstmStream:
    """Takes features as they come and gives encoder frames as soon as they are certain."""

    def __init__(self, encoder: Lstm) -> None:
        self._encoder = encoder
        self._state: State | None = None
        self._waiting: torch.Tensor | None = None

    def push(self, features: torch.Tensor) -> torch.Tensor:
        """Return the encoder frames (B, t', D) that features (B, t, F) complete; t may be 0."""
        x = features if self._waiting is None else torch.cat([self._waiting, features], dim=1)
        whole = x.shape[1] - x.shape[1] % self._encoder.subsampling
        self._waiting = x[:, whole:]
        return self._run(x[:, :whole])

    def finish(self) -> torch.Tensor:
        """Return the encoder frame (B, 0 or 1, D) of what is left, filled up with zeros; afterwards a new signal can begin."""
        assert self._waiting is not None, "push comes first"
        out = self._run(self._waiting)
        self._state, self._waiting = None, None
        return out

    def _run(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] == 0:
            return x.new_zeros(x.shape[0], 0, self._encoder.output_size)
        out, self._state = self._encoder.lstm(stack_frames(x, self._encoder.subsampling), self._state)
        result: torch.Tensor = self._encoder.dropout(out)
        return result
