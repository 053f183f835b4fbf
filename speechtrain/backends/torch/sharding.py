"""Weights, gradients and the optimizer's state divided between processes; a layer's weights are gathered while it computes."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from speechtrain.backends.torch.devices import as_in_first
from speechtrain.backends.torch.encoder import stacks_of
from speechtrain.backends.torch.speech_model import SpeechModel


class FullySharded(DDPStrategy):
    """Fully sharded data parallelism (Zhao et al. 2023) by PyTorch's `fully_shard`, on GPUs and CPUs.

    Checkpoints are those of a training on one device: whole weights, whole states of the optimizer. Each of them can be gone on with in
    the other way.
    """

    strategy_name = "fsdp"

    def model_to_device(self) -> None:
        """Not yet: weights get there layer by layer, when they are divided."""

    def configure_ddp(self) -> None:
        """Shard the model, with the first process's weights."""
        module: Any = self.lightning_module
        module.shard(self.root_device, self.world_size)
        module.to(self.root_device)

    def lightning_module_state_dict(self) -> dict[str, torch.Tensor]:
        """Whole weights, in every process."""
        assert self.lightning_module is not None
        return whole(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Whole states, in every process."""
        state: dict[str, Any] = super().optimizer_state(optimizer)
        return {**state, "state": {number: whole(values) for number, values in state["state"].items()}}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process's part of whole states."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            numbers = [number for group in state["param_groups"] for number in group["params"]]
            parts = dict(state["state"])
            for number, parameter in zip(numbers, parameters, strict=True):
                if number in parts:
                    parts[number] = {name: part_of(value, parameter) for name, value in parts[number].items()}
            optimizer.load_state_dict({**state, "state": parts})


def shard(model: SpeechModel, device: torch.device, processes: int) -> None:
    """Divide the first process's weights in place: those of each layer of a row by themselves, the rest together."""
    for value in chain(model.parameters(), model.buffers()):
        there = value.detach().to(device)
        as_in_first([there])
        value.detach().copy_(there)
    mesh = init_device_mesh(device.type, (processes,))
    for stack in stacks_of(model.encoder):
        for layer in stack:
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(values: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors gathered from all processes, in each of them."""
    return {name: value.full_tensor().cpu() if isinstance(value, DTensor) else value for name, value in values.items()}


def part_of(value: Any, parameter: torch.Tensor) -> Any:
    """This process's part of a whole tensor that belongs to a divided one; a count belongs to all."""
    if not isinstance(parameter, DTensor) or not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None)


def own_part(value: torch.Tensor) -> torch.Tensor:
    """What this process has of a tensor."""
    return value.to_local() if isinstance(value, DTensor) else value
