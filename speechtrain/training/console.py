"""What a training prints: a progress bar inside each epoch, a line after it, and a table at the end."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.tree import Tree

from speechtrain.backends.callbacks import Callback, Control
from speechtrain.config.checkpoint_values import without_checkpoint_files
from speechtrain.config.differences import changed_run_keys, chosen_options
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.console import console, format_metric, print_table
from speechtrain.training.language_model import LANGUAGE_MODEL, LEXICON

if TYPE_CHECKING:
    from speechtrain.backends.callbacks import TrainResult
    from speechtrain.tasks.base import Sample
    from speechtrain.tracking.recorder import RunRecorder
    from speechtrain.training.history import History


_HEADINGS = {"cer": "CER", "wer": "WER", "mse": "MSE", "rmse": "RMSE", "mae": "MAE", "pearson_r": "r", "r2": "R²"}
_HEADINGS |= {"snr_db": "SNR dB", "snr_gain_db": "gain dB", "f1": "F1", "audio_s_per_s": "audio s/s"}


class ConsoleProgress(Callback):
    """Shows a progress bar on a terminal, and prints one line an epoch anywhere.

    Args:
        history: history of the run; it receives each epoch before this callback.
        metric: the metric whose best epochs are marked.
        names: metrics of the validation data in the line, without the stage.
    """

    def __init__(self, history: History | None = None, metric: str | None = None, names: Sequence[str] = ("loss",)) -> None:
        self._history = history
        self._metric = metric
        self._names = names
        self._progress: Progress | None = None
        self._bar: TaskID | None = None
        self._epochs = 0
        self._started = 0.0

    def on_train_start(self, total_epochs: int, first_epoch: int) -> None:
        """Show the progress bar."""
        self._epochs = total_epochs
        self._started = time.perf_counter()
        if first_epoch:
            console.print(f"going on with epoch {first_epoch + 1} of {total_epochs}")
        if console.is_terminal:
            text = TextColumn("{task.description}", markup=False)
            columns = (text, BarColumn(bar_width=None), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            self._progress = Progress(*columns, console=console, transient=True)
            self._progress.start()
            self._bar = self._progress.add_task(f"epoch {first_epoch + 1}/{total_epochs}", total=None)

    def on_batch_end(self, epoch: int, batch_index: int, batch_count: int, loss: float, lr: float) -> None:  # noqa: ARG002
        """Move the progress bar."""
        if self._progress is not None and self._bar is not None:
            done = f"loss {loss:.3f}" if batch_index + 1 < batch_count else "validating"
            text = f"epoch {epoch + 1}/{self._epochs} {done}"
            self._progress.update(self._bar, description=text, completed=batch_index + 1, total=batch_count)

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, float], control: Control) -> None:  # noqa: ARG002
        """Print the line of the epoch."""
        names = ("train/loss", *(f"val/{name}" for name in self._names), "train/lr")
        parts = [f"{name} {format_metric(name, metrics[name])}" for name in names if name in metrics]
        took = time.perf_counter() - self._started
        self._started = time.perf_counter()
        best = self._history.best(self._metric) if self._history is not None and self._metric is not None else None
        if best is not None and best[0] == epoch:
            parts.append("best so far")
        line = f"epoch {epoch + 1:3d}/{self._epochs}  {'  '.join(parts)}  {took:.1f} s"
        if console.is_terminal and len(line) > console.width:  # the same without the stages: what is not the training's is the validation's
            short = [
                f"{_HEADINGS.get(name, name)} {format_metric(name, metrics[f'val/{name}'])}"
                for name in self._names[1:]
                if f"val/{name}" in metrics
            ]
            losses = "  ".join(
                f"{word} {metrics[name]:.3f}" for word, name in (("loss", "train/loss"), ("val", "val/loss")) if name in metrics
            )
            mark = "  best" if "best so far" in parts else ""
            line = "  ".join([f"epoch {epoch + 1:3d}/{self._epochs}", losses, *short, f"{took:.1f} s{mark}"])
        console.print(line)

    def on_train_end(self, result: TrainResult) -> None:
        """Remove the progress bar, and print why the training ended early if it did."""
        self.close()
        if result.stop_reason:
            console.print(f"stopped early: {result.stop_reason}")

    def close(self) -> None:
        """Remove the progress bar from the terminal, after an interruption too."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def print_results(metrics: Mapping[str, float], columns: Iterable[str]) -> None:
    """Print a table with a row a split and a column a metric.

    Args:
        metrics: the metrics of all splits.
        columns: names of metrics without the stage; those that were not measured are left out.
    """
    names = [name for name in (*columns, "audio_s_per_s") if any(key.endswith(f"/{name}") for key in metrics)]
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), title="results", title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(_HEADINGS.get(name, name), justify="right")
    for split in ("train", "val", "test"):
        values = [metrics.get(f"{split}/{name}") for name in names]
        if any(value is not None for value in values):
            table.add_row(split, *("" if value is None else format_metric(name, value) for name, value in zip(names, values, strict=True)))
    console.print()
    print_table(table)


def print_samples(samples: Sequence[Sample]) -> None:
    """Print references above their hypotheses, the words that differ in brackets, and the measures of each sample."""
    for sample in samples:
        console.print(f"\n[dim]{escape(sample.id)}[/]")
        if sample.reference or sample.hypothesis:
            reference, hypothesis = marked(sample.reference, sample.hypothesis)
            console.print(f"  ref  {reference}".rstrip() + f"\n  hyp  {hypothesis}".rstrip(" "))
        if sample.measures:
            console.print("  " + "  ".join(f"{name} {format_metric(name, value)}" for name, value in sample.measures.items()))


def choose_samples(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """Choose a few samples to show, the same for the same seed: up to half of them with errors, those first."""
    order = list(samples)
    random.Random(seed).shuffle(order)  # noqa: S311
    wrong = [sample for sample in order if sample.reference != sample.hypothesis][: (count + 1) // 2]
    right = [sample for sample in order if sample.reference == sample.hypothesis]
    others = [sample for sample in order if sample not in wrong and sample not in right]
    return [*wrong, *right, *others][:count]


def marked(reference: str, hypothesis: str) -> tuple[str, str]:
    """Return both texts in Rich markup, with the words that differ in brackets."""
    import jiwer  # not for inference, which imports this package and counts no errors

    words = jiwer.process_words(reference, hypothesis)
    ref: list[str] = []
    hyp: list[str] = []
    for chunk in words.alignments[0]:
        left = " ".join(words.references[0][chunk.ref_start_idx : chunk.ref_end_idx])
        right = " ".join(words.hypotheses[0][chunk.hyp_start_idx : chunk.hyp_end_idx])
        same = chunk.type == "equal"
        ref += [escape(left) if same else f"[red]{escape(f'[{left}]')}[/]"] if left else []
        hyp += [escape(right) if same else f"[red]{escape(f'[{right}]')}[/]"] if right else []
    return " ".join(ref), " ".join(hyp)


_LABELS = {"error_report.html": "errors", "class_report.html": "classes", "signal_report.html": "signals", "history.png": "history"}
_LABELS |= {LANGUAGE_MODEL: "n-gram", LEXICON: "words"}


def print_whereabouts(folder: Path, checkpoint: Path | None, files: Sequence[Path], recorder: RunRecorder) -> None:
    """Print where the run's folder, checkpoint and reports are, its id in MLflow, and how to open the trackers."""
    console.print(f"\nrun         {_near(folder)}")
    if (run_id := recorder.run_ids.get("mlflow")) is not None:
        console.print(f"run id      {run_id}")
    if checkpoint is not None:
        console.print(f"checkpoint  {_near(checkpoint)}")
    for path in files:
        label = _LABELS.get(path.name, {".html": "report", ".keras": "model"}.get(path.suffix))
        if label is not None:
            console.print(f"{label:<12}{_near(path)}")
    recorder.print_whereabouts()


def print_config(cfg: ExperimentConfig) -> None:
    """Print the option of each group with the keys that differ from its defaults; all keys as a tree where debug messages are shown."""
    values = without_checkpoint_files(cfg.as_dict())
    if logging.getLogger("speechtrain").isEnabledFor(logging.DEBUG):
        tree = Tree("[bold]config[/]", guide_style="dim")
        _grow(tree, values)
        console.print(tree)
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for group, (name, changed) in chosen_options(values).items():
        table.add_row(group, " ".join([f"[bold]{escape(name)}[/]", *_pairs(changed)]))
    if changed := changed_run_keys(values):
        table.add_row("run", " ".join(_pairs(changed)))
    print_table(table)
    console.print(f"\n[dim]all keys are in {escape(str(_near(Path(cfg.output_dir) / 'config.yaml')))}")
    console.print("[dim](hydra.verbose=speechtrain prints them)[/]\n")


def _pairs(values: Mapping[str, Any]) -> list[str]:
    """Return keys and values as they are typed."""
    return [escape(f"{key}={'null' if value is None else str(value).replace(' ', '')}") for key, value in values.items()]


def _near(path: Path) -> Path:
    """Return a path as it is typed in this folder, or whole if it lies elsewhere."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _grow(tree: Tree, values: dict[Any, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict):
            _grow(tree.add(f"[bold cyan]{key}[/]"), value)
        else:
            tree.add(f"[cyan]{key}[/]: {escape('null' if value is None else str(value))}")
