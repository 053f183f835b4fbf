"""How the ranks of a training hand objects to each other: by files on one machine, by messages of their group between several."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist

from speechtrain.backends.callbacks import Control
from speechtrain.tasks.base import Sample
from speechtrain.tasks.regression import SignalTotals


class Exchange(Protocol):
    """Hands objects from rank to rank; each rank has to call the same in the same order."""

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in every rank."""
        ...

    def of_rank0(self, value: Any) -> Any:
        """Return the value that rank 0 has, in every rank."""
        ...


class FileExchange:
    """Hands objects from rank to rank by files, which are pickled and never go through a socket.

    Args:
        folder: a folder that no other user may enter.
        rank: the rank of this process.
        count: number of ranks.
    """

    def __init__(self, folder: Path, rank: int, count: int) -> None:
        self._folder = folder
        self._rank = rank
        self._count = count
        self._number = 0

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in every rank; each has to call it."""
        return self._read(value, range(self._count))

    def of_rank0(self, value: Any) -> Any:
        """Return the value that rank 0 has, in every rank; each has to call it."""
        return self._read(value, (0,))[0]

    def _read(self, value: Any, ranks: Sequence[int]) -> list[Any]:
        self._number += 1
        if self._rank in ranks:
            self._file(self._number, self._rank).write_bytes(pickle.dumps(value))
        dist.barrier()
        self._file(self._number - 1, self._rank).unlink(missing_ok=True)  # all have read it, for they are here
        return [pickle.loads(self._file(self._number, rank).read_bytes()) for rank in ranks]  # noqa: S301 # of our own processes

    def _file(self, number: int, rank: int) -> Path:
        return self._folder / f"{number}-{rank}"


class GroupExchange:
    """Hands plain values, arrays, tensors and a few classes of ours from rank to rank by messages of their group, and reads no others.

    Args:
        device: where the group keeps its tensors.
        rank: the rank of this process.
        count: number of ranks.
    """

    def __init__(self, device: torch.device, rank: int, count: int) -> None:
        self._device = device
        self._rank = rank
        self._count = count

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in every rank; each has to call it."""
        own = packed(value)
        sizes = torch.zeros(self._count, dtype=torch.int64, device=self._device)
        sizes[self._rank] = len(own)
        dist.all_reduce(sizes)
        longest = int(sizes.max())
        padded = torch.zeros(longest, dtype=torch.uint8, device=self._device)
        padded[: len(own)] = _tensor(own, self._device)
        parts = [torch.empty_like(padded) for _ in range(self._count)]
        dist.all_gather(parts, padded)
        return [unpacked(part[:size].cpu().numpy().tobytes()) for part, size in zip(parts, sizes.tolist(), strict=True)]

    def of_rank0(self, value: Any) -> Any:
        """Return the value that rank 0 has, in every rank; each has to call it."""
        return unpacked(self.bytes_of_rank0(packed(value) if self._rank == 0 else b""))

    def bytes_of_rank0(self, content: bytes) -> bytes:
        """Return the bytes that rank 0 has, in every rank; each has to call it."""
        size = torch.tensor([len(content)], dtype=torch.int64, device=self._device)
        dist.broadcast(size, src=0)
        tensor = _tensor(content, self._device) if self._rank == 0 else torch.empty(int(size), dtype=torch.uint8, device=self._device)
        dist.broadcast(tensor, src=0)
        return content if self._rank == 0 else tensor.cpu().numpy().tobytes()


_SAFE: list[Any] = [
    *(Control, Sample, SignalTotals, np.ndarray, np.dtype, np.float64, np.int64),
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")),
    *(np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]),
]
"""What is read besides plain values and tensors; none of it runs code that it was not written with."""


def packed(value: Any) -> bytes:
    """Return a value as bytes that `unpacked` reads."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def unpacked(content: bytes) -> Any:
    """Return a value that another process has packed.

    Raises:
        pickle.UnpicklingError: it holds something else than plain values and what is safe.
    """
    with torch.serialization.safe_globals(_SAFE):
        return torch.load(io.BytesIO(content), weights_only=True)


def _tensor(content: bytes, device: torch.device) -> torch.Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).to(device)
