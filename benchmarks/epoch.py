"""A whole epoch of training beside its bare steps: `python benchmarks/epoch.py ROUNDS OVERRIDE ...`.

The bare steps are a plain PyTorch loop (forward, CTC, backward, clip, the config's optimizer) over the same batches, made before; the
epoch is `speechtrain.train`'s, with decoding, augmentation, checkpoints and metrics, from its second on. Both in turn, with one thread;
seconds of wall time and of CPU time, which the thread that makes batches adds to; the figure to quote is the median ratio.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from hydra.utils import instantiate

import speechtrain
from speechtrain import compose
from speechtrain.backends.callbacks import Callback, Control
from speechtrain.backends.torch import losses
from speechtrain.config.build import build, component_of
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.data.batches import Batch
from speechtrain.data.prepare import prepare
from speechtrain.tasks.build import task_for


class Clock(Callback):
    """Wall and CPU time at the end of each epoch."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, float], control: Control) -> None:  # noqa: ARG002
        """Look at both clocks."""
        self.times.append((time.perf_counter(), time.process_time()))


def bare(cfg: object, batches: Sequence[Batch], model: torch.nn.Module) -> tuple[float, float]:
    """Seconds of the steps alone."""
    optimizer = instantiate(component_of("optimizer", cfg.optimizer), params=model.parameters(), _convert_="all")  # type: ignore[attr-defined]
    model.train()
    wall, cpu = time.perf_counter(), time.process_time()
    for batch in batches:
        arrays = (batch.features, batch.feature_lengths, batch.targets, batch.target_lengths)
        features, lengths, targets, target_lengths = map(torch.from_numpy, arrays)
        values, value_lengths = model(features, lengths)
        loss = losses.ctc(values, value_lengths, targets, target_lengths).sum() / target_lengths.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    """Measure and print."""
    rounds, overrides = int(sys.argv[1]), sys.argv[2:]
    fixed = ["tracking=[]", "report.enabled=false", "backend.threads=1", "trainer.epochs=3", "data.val=null", "data.test=null"]
    cfg = compose([*overrides, *fixed, "objective.metric=train/loss", "trainer.test_checkpoint=last"])
    config = ExperimentConfig.of(cfg)
    corpus = prepare(config, threads=1)
    task = task_for(config, corpus)
    data = corpus.for_task(task)
    backend = build("backend", cfg.backend)
    loader = data.loader("train", shuffle=True, augment=True)
    assert loader is not None
    batches = list(loader)
    found: list[tuple[float, float]] = []
    for number in range(rounds):
        model = backend.build(component_of("model", cfg.model), task, input_size=data.features.size, seed=1)
        alone = bare(cfg, batches, model)
        clock = Clock()
        with tempfile.TemporaryDirectory() as folder:
            run = cfg.copy()
            run.output_dir = str(Path(folder) / "run")
            speechtrain.train(run, callbacks=[clock], brief=True, reuse_data=True)
        whole = [(later - earlier) / 2 for earlier, later in zip(clock.times[0], clock.times[2], strict=True)]
        found.append((alone[0] / whole[0], alone[1] / whole[1]))
        print(
            f"round {number}: {len(batches)} steps {alone[0]:.2f} s wall {alone[1]:.2f} s CPU; an epoch {whole[0]:.2f} {whole[1]:.2f}",
            flush=True,
        )
    wall, cpu = (statistics.median(each) for each in zip(*found, strict=True))
    print(f"the steps are {100 * wall:.1f} % of an epoch's wall time, {100 * cpu:.1f} % of its CPU time")


if __name__ == "__main__":
    main()
