"""Fully sharded training: weights, gradients and optimizer state divided between ranks, a layer's weights gathered while it computes."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from speechtrain.backends.torch.devices import broadcast_from_rank0
from speechtrain.backends.torch.encoder import stacks_of
from speechtrain.backends.torch.rendezvous import current
from speechtrain.backends.torch.speech_model import SpeechModel
from speechtrain.config.schemas.training import Trainer
from speechtrain.errors import ConfigError, Problem


class FullySharded(DDPStrategy):
    """Trains with fully sharded data parallelism (Zhao et al. 2023) by PyTorch's `fully_shard`, on GPUs and CPUs.

    Checkpoints are those of a training on one device: whole weights, whole states of the optimizer. A run can be resumed either way.
    """

    strategy_name = "fsdp"

    def model_to_device(self) -> None:
        """Leave the weights where they are: they get to the device layer by layer, when they are divided."""

    def configure_ddp(self) -> None:
        """Shard the model, with the weights of rank 0."""
        module: Any = self.lightning_module
        module.shard(self.root_device, self.world_size)
        module.to(self.root_device)

    def lightning_module_state_dict(self) -> dict[str, torch.Tensor]:
        """Return the whole weights, in every rank."""
        assert self.lightning_module is not None
        return whole(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return the whole state, in every rank."""
        state: dict[str, Any] = super().optimizer_state(optimizer)
        return {**state, "state": {number: whole(values) for number, values in state["state"].items()}}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load this rank's part of whole states."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            numbers = [number for group in state["param_groups"] for number in group["params"]]
            parts = dict(state["state"])
            for number, parameter in zip(numbers, parameters, strict=True):
                if number in parts:
                    parts[number] = {name: part_of(value, parameter) for name, value in parts[number].items()}
            optimizer.load_state_dict({**state, "state": parts})


def check_shardable(model: SpeechModel, options: Trainer, *, compiled: bool) -> None:
    """Check that the weights of a model can be divided between ranks.

    Raises:
        ConfigError: not with all that the config asks for.
    """
    problems = []
    if options.devices in (1, "1") and current() is None:
        problems.append(Problem("trainer.strategy", "is fsdp, and there is one device", "set trainer.devices, or trainer.strategy=auto"))
    if options.precision == "16-mixed":
        message = f"is {options.precision}; losses of sharded weights are not scaled"
        problems.append(Problem("trainer.precision", message, "set trainer.precision=bf16-mixed, or trainer.strategy=ddp"))
    if options.find_lr:
        message = "is true; sharded weights cannot be tried out"
        problems.append(Problem("trainer.find_lr", message, "find the rate once with trainer.strategy=ddp"))
    for name in (name for name, parameter in model.named_parameters() if parameter.ndim == 0):
        message = f"is fsdp, and {name} is a single number, which has no dimension to divide"
        problems.append(Problem("trainer.strategy", message, "make it a tensor of one element, or set trainer.strategy=ddp"))
    if compiled:
        problems.append(Problem("backend.compile", "is true; sharded weights are not compiled", "set trainer.strategy=ddp"))
    if problems:
        raise ConfigError(problems)


def shard(model: SpeechModel, device: torch.device, processes: int) -> None:
    """Divide the weights of rank 0 between all ranks, in place: those of each layer of a stack by themselves, the rest together."""
    for value in chain(model.parameters(), model.buffers()):
        on_device = value.detach().to(device)
        broadcast_from_rank0([on_device])
        value.detach().copy_(on_device)
    mesh = init_device_mesh(device.type, (processes,))
    for stack in stacks_of(model.encoder):
        for layer in stack:
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(values: Mapping[str, Any]) -> dict[str, Any]:
    """Gather divided tensors from all ranks, in each of them."""
    return {name: value.full_tensor().cpu() if isinstance(value, DTensor) else value for name, value in values.items()}


def part_of(value: Any, parameter: torch.Tensor) -> Any:
    """Return this rank's part of a whole tensor, divided as `parameter` is; a count of steps is not divided."""
    if not isinstance(parameter, DTensor) or not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None)


def own_part(value: torch.Tensor) -> torch.Tensor:
    """Return the part of a tensor that this rank holds."""
    return value.to_local() if isinstance(value, DTensor) else value
