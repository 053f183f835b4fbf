"""A backend with a tiny corpus, and callbacks that write down what happens in its training."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conftest import TINY

from speechtrain import compose
from speechtrain.backends.base import Backend, TrainingPlan
from speechtrain.backends.callbacks import Callback, Control, TrainResult
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.data.batches import Batch
from speechtrain.data.prepare import prepare
from speechtrain.data.task_data import TaskData
from speechtrain.tasks.base import Task
from speechtrain.tasks.build import task_for
from speechtrain.training.initial_weights import checkpoint_to_resume
from speechtrain.training.outcome import evaluate
from speechtrain.training.steps import Experiment, make_plan

QUIET = ["tracking=[]", "report.enabled=false", "backend.threads=1"]

SIZES = ["data.train_size=40", "data.val_size=8", "data.test_size=8"]

FEW_LAYERS = {
    "tdnn": ["model.dilations=[1,2]"],
    "conformer": ["model.n_layers=1"],
    "crdnn": ["model.rnn_layers=1"],
    "quartznet": ["model.repeats=1"],
}
"""Options by model: with Keras each layer adds to what a fit takes to trace."""


def flip_a_bit(path: Path) -> None:
    """Change one bit in the middle of the longest file inside a checkpoint."""
    with zipfile.ZipFile(path) as archive:
        entry = max(archive.infolist(), key=lambda each: each.file_size)
    content = bytearray(path.read_bytes())
    name, extra = struct.unpack_from("<HH", content, entry.header_offset + 26)
    content[entry.header_offset + 30 + name + extra + entry.file_size // 2] ^= 16
    path.write_bytes(content)


class Recorder(Callback):
    """Writes down every event, and stops where it is told to."""

    def __init__(self, stop_after: int | None = None, interrupt_in: int | None = None, at_batch: int = 0) -> None:
        self.events: list[str] = []
        self.metrics: list[dict[str, float]] = []
        self.stop_after = stop_after
        self.interrupt_in = interrupt_in
        self.at_batch = at_batch

    def on_train_start(self, total_epochs: int, first_epoch: int) -> None:
        self.events.append(f"start {first_epoch}/{total_epochs}")

    def on_batch_end(self, epoch: int, batch_index: int, batch_count: int, loss: float, lr: float) -> None:
        self.events.append(f"batch {epoch}.{batch_index}/{batch_count}")
        if epoch == self.interrupt_in and batch_index == self.at_batch:
            raise KeyboardInterrupt

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, float], control: Control) -> None:
        self.events.append(f"epoch {epoch}")
        self.metrics.append(
            {name: value for name, value in metrics.items() if not name.endswith("_per_s") and not name.startswith("time/")}
        )
        if epoch == self.stop_after:
            control.stop("told to")

    def on_train_end(self, result: TrainResult) -> None:
        self.events.append("end")


class ThoroughRecorder(Recorder):
    """Writes down also what comes before epochs and batches, and checkpoints."""

    def on_epoch_start(self, epoch: int) -> None:
        self.events.append(f"before epoch {epoch}")

    def on_batch_start(self, epoch: int, batch_index: int, batch_count: int) -> None:
        self.events.append(f"before batch {epoch}.{batch_index}/{batch_count}")

    def on_checkpoint(self, path: Path) -> None:
        best = [each.name for each in path.parent.glob("best-*")]
        self.events.append(f"{path.relative_to(path.parents[1]).with_suffix('')}, {len(best)} best")


class Setup:
    """A backend with a tiny corpus."""

    def __init__(self, backend: Backend, folder: Path, *overrides: str, base: Sequence[str] = TINY) -> None:
        self.backend = backend
        self.cfg = ExperimentConfig.of(compose([*base, f"backend={backend.name}", *overrides], output_dir=folder))
        corpus = prepare(self.cfg, threads=1)
        self.task: Task = task_for(self.cfg, corpus)
        self.data: TaskData = corpus.for_task(self.task)

    def change(self, values: dict[str, Any]) -> None:
        self.cfg = self.cfg.with_values(values)

    def build(self, **changes: Any) -> Any:
        model = {**self.cfg.model, **changes}
        return self.backend.build(model, self.task, input_size=self.data.features.size, seed=self.cfg.seed)

    def plan(self) -> TrainingPlan:
        run = Experiment(self.cfg, Path(self.cfg.output_dir), self.backend, self.data, self.task, None)
        return make_plan(run, checkpoint_to_resume(self.cfg, self.backend))

    def train(self, model: Any, *callbacks: Callback, views: int = 1) -> TrainResult:
        Path(self.cfg.output_dir).mkdir(parents=True, exist_ok=True)
        train = self.data.loader("train", shuffle=True, augment=True, views=views)
        assert train is not None
        return self.backend.train(model, train, self.data.loader("val"), self.task, self.plan(), callbacks)

    def outputs(self, model: Any, batches: list[Batch]) -> Any:
        return [outputs for _, outputs in self.backend.predict(model, batches, self.task)]

    def measure(self, model: Any, split: str) -> dict[str, float]:
        loader = self.data.loader(split)
        assert loader is not None
        return evaluate(self.backend, model, loader, self.task, split)[0]


def alone(batch: Batch, row: int) -> Batch:
    """One utterance of a batch, without padding."""
    frames, labels = int(batch.feature_lengths[row]), int(batch.target_lengths[row])
    return Batch(
        batch.features[row : row + 1, :frames],
        batch.feature_lengths[row : row + 1],
        batch.targets[row : row + 1, :labels],
        batch.target_lengths[row : row + 1],
        batch.ids[row : row + 1],
        batch.texts[row : row + 1],
        batch.seconds,
    )
