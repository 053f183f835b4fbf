"""Averages of weights: an exponential moving average over steps, and the mean of several checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from speechtrain.backends.torch.checkpoint import PREFIX, read
from speechtrain.backends.torch.internals import lerp_all
from speechtrain.backends.torch.sharding import own_part, part_of


class MovingAverage:
    """Keeps an exponential moving average of a model's weights and running statistics (Polyak and Juditsky 1992).

    Args:
        model: the model that is trained.
        decay: share of the average that stays at each step; less in the first ones, so that the random weights fade (min(decay,
            (1 + n) / (10 + n)) after n steps, as in TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model = model
        self._decay = decay
        self.steps = 0
        self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights of one more step into the average."""
        self.steps += 1
        decay = min(self._decay, (1 + self.steps) / (10 + self.steps))
        now = self._model.state_dict()
        means = [name for name, value in now.items() if value.is_floating_point()]
        lerp_all([own_part(self.weights[name]) for name in means], [own_part(now[name]) for name in means], 1 - decay)
        for name in now.keys() - set(means):
            self.weights[name].copy_(now[name])

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights of the model for the average; a second call exchanges them back."""
        for name, value in self._model.state_dict().items():
            before = value.clone()
            value.copy_(self.weights[name])
            self.weights[name].copy_(before)

    def shard(self) -> None:
        """Divide the average between ranks as the model was."""
        divided = self._model.state_dict()
        self.weights = {name: part_of(value, divided[name]) for name, value in self.weights.items()}

    def restore(self, steps: int, weights: Mapping[str, torch.Tensor]) -> None:
        """Load the average that a checkpoint has."""
        self.steps = steps
        for name, value in weights.items():
            self.weights[name].copy_(value)


def mean_of(paths: Sequence[Path], prefix: str = PREFIX) -> dict[str, torch.Tensor]:
    """Return the mean of the weights of several checkpoints, summed in float64; counters are those of the last checkpoint."""
    sums: dict[str, torch.Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    for path in paths:
        weights = read(path)["state_dict"]
        for name, value in weights.items():
            dtypes[name] = value.dtype
            if value.is_floating_point():
                sums[name] = sums[name] + value.double() if name in sums else value.double()
            else:
                sums[name] = value
    means = {name: value / len(paths) if dtypes[name].is_floating_point else value for name, value in sums.items()}
    return {name.removeprefix(prefix): value.to(dtypes[name]) for name, value in means.items()}
