"""Measures what a model costs on this machine: layers, parameters, multiply-adds, latency and memory."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

from speechtrain.backends.base import Backend, LayerSize, ModelInfo
from speechtrain.console import console, print_table

if TYPE_CHECKING:
    from speechtrain.data.features.features import Features

LENGTHS = (1.0, 3.0, 10.0, 30.0)
"""s of the signals that a model is measured with."""
_LEAST, _MOST = 3, 10  # number of passes per duration
_ENOUGH = 2.0  # s, after which no further pass is measured


@dataclass(frozen=True)
class PassCost:
    """Holds the cost of one signal alone in a batch.

    Attributes:
        seconds: duration of the signal.
        latency_ms: median of several passes, without features.
        multiply_adds: multiplications with additions of the pass; None if they are not known.
    """

    seconds: float
    latency_ms: float
    multiply_adds: int | None

    @property
    def real_time_factor(self) -> float:
        """Return the time of the pass divided by the duration of the signal."""
        return self.latency_ms / 1000 / self.seconds


@dataclass(frozen=True)
class Profile:
    """Holds what a model costs; see also the classes of the fields.

    Attributes:
        megabytes: size of the weights in memory.
        peak_megabytes: the most memory that this process has used, libraries included.
        frame_seconds: time between two encoder frames.
    """

    info: ModelInfo
    layers: Sequence[LayerSize]
    costs: Sequence[PassCost]
    megabytes: float
    peak_megabytes: float
    frame_seconds: float
    threads: int


def profile(backend: Backend, model: Any, features: Features, lengths: Sequence[float] = LENGTHS) -> Profile:
    """Measure a model with silence of several lengths."""
    from speechtrain.data.batches import silence

    costs = []
    for seconds in lengths:
        silent, frames = silence(features, seconds=seconds)
        took: list[float] = []
        backend.infer(model, silent, frames)
        while len(took) < _LEAST or (len(took) < _MOST and sum(took) < _ENOUGH):
            start = time.perf_counter()
            backend.infer(model, silent, frames)
            took.append(time.perf_counter() - start)
        costs.append(PassCost(seconds, 1000 * statistics.median(took), backend.multiply_adds(model, silent, frames)))
    layers = backend.layers(model)
    info = backend.describe(model)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    step = info.subsampling / features.frame_rate
    return Profile(info, layers, costs, sum(layer.megabytes for layer in layers), peak, step, getattr(backend, "threads", 0))


def print_profile(measured: Profile, name: str) -> None:
    """Print a profile as two tables and some lines."""
    info = measured.info
    field = f"{info.receptive_field} frames" if info.receptive_field else "the whole utterance"
    console.print(f"model       {name}: {info.parameters:,} parameters, {measured.megabytes:.2f} MB", markup=False)
    console.print(f"context     {field}{', none of what comes later' if info.causal else ''}", markup=False)
    console.print(f"subsampling {info.subsampling}: a frame each {1000 * measured.frame_seconds:.0f} ms\n", markup=False)
    table = Table(box=None, pad_edge=False)
    for title, justify in (("layer", "left"), ("kind", "left"), ("parameters", "right"), ("share", "right")):
        table.add_column(title, justify=justify)  # type: ignore[arg-type]
    total = max(1, sum(layer.parameters for layer in measured.layers))
    for layer in measured.layers:
        table.add_row(layer.name, layer.kind, f"{layer.parameters:,}", f"{100 * layer.parameters / total:.2f} %")
    print_table(table)
    console.print()
    table = Table(box=None, pad_edge=False)
    for title in ("audio", "latency", "real-time factor", "multiply-adds"):
        table.add_column(title, justify="right")
    for cost in measured.costs:
        sums = f"{cost.multiply_adds / 1e6:,.1f} M" if cost.multiply_adds is not None else "?"
        table.add_row(f"{cost.seconds:g} s", f"{cost.latency_ms:.1f} ms", f"{cost.real_time_factor:.4f}", sums)
    print_table(table)
    console.print(f"\non the CPU with {measured.threads} threads; the process used {measured.peak_megabytes:,.0f} MB at most", markup=False)
