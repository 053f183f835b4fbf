"""Weights that are means of others: of all steps with weights that fade, or of the last epochs alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from speechtrain.backends.torch.sharding import own_part, part_of


class MovingAverage:
    """An exponential moving average of a model's weights and running statistics (Polyak and Juditsky 1992).

    Args:
        model: that is trained.
        decay: of the average at each step; less in the first ones, so that it leaves the random weights behind (min(decay,
            (1 + n) / (10 + n)) after n steps, as in TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model = model
        self._decay = decay
        self.steps = 0
        self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """A step was done."""
        self.steps += 1
        decay = min(self._decay, (1 + self.steps) / (10 + self.steps))
        now = self._model.state_dict()
        means = [name for name, value in now.items() if value.is_floating_point()]
        torch._foreach_lerp_([own_part(self.weights[name]) for name in means], [own_part(now[name]) for name in means], 1 - decay)
        for name in now.keys() - set(means):
            self.weights[name].copy_(now[name])

    @torch.no_grad()
    def swap(self) -> None:
        """The model has the average, and this the model's weights, or the other way round."""
        for name, value in self._model.state_dict().items():
            kept = value.clone()
            value.copy_(self.weights[name])
            self.weights[name].copy_(kept)

    def shard(self) -> None:
        """The model was divided between processes; divide the average in the same way."""
        models = self._model.state_dict()
        self.weights = {name: part_of(value, models[name]) for name, value in self.weights.items()}

    def restore(self, steps: int, weights: Mapping[str, torch.Tensor]) -> None:
        """What a checkpoint has."""
        self.steps = steps
        for name, value in weights.items():
            self.weights[name].copy_(value)


def mean_of(paths: Sequence[Path], prefix: str = "model.") -> dict[str, torch.Tensor]:
    """The mean of the weights of several checkpoints of one model, in float64 until the end; what is counted is that of the last."""
    sums: dict[str, torch.Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    for path in paths:
        weights = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        for name, value in weights.items():
            dtypes[name] = value.dtype
            if value.is_floating_point():
                sums[name] = sums[name] + value.double() if name in sums else value.double()
            else:
                sums[name] = value
    means = {name: value / len(paths) if dtypes[name].is_floating_point else value for name, value in sums.items()}
    return {name.removeprefix(prefix): value.to(dtypes[name]) for name, value in means.items()}
