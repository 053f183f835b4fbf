"""The state of the random generators that dropout draws from, and how a computation is undone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def restored(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Restore weights, running statistics and random generators to what they were before the block."""
    state = random_state(device)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        with torch.enable_grad():
            yield
    finally:
        model.load_state_dict(before)
        set_random_state(state, device)


def random_state(device: torch.device) -> list[torch.Tensor]:
    """Return the generator states of the CPU and, where it is another, of the device."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def set_random_state(state: Sequence[torch.Tensor], device: torch.device) -> None:
    """Set the generators to what `random_state` returned; a state of the CPU alone leaves that of the device as it is."""
    torch.set_rng_state(state[0].cpu())
    if device.type == "cuda" and len(state) > 1:
        torch.cuda.set_rng_state(state[1].cpu(), device)
