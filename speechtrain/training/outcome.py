"""What a training leaves: the evaluation of the model, the numbers of the run, its files, and what trackers are given of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from speechtrain.processes import interrupts

if TYPE_CHECKING:
    from speechtrain.backends.base import Backend, Model, TrainingPlan
    from speechtrain.backends.callbacks import TrainResult
    from speechtrain.data.loader import Loader
    from speechtrain.tasks.base import Sample, Task
    from speechtrain.tracking.recorder import RunRecorder
    from speechtrain.training.history import History
    from speechtrain.training.steps import Experiment, Loaders

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SplitEvaluation:
    """What a trained model reaches on the validation and the test data.

    Attributes:
        metrics: values of the metrics by `split/name`.
        samples: samples of the test data if there are any, else of the validation data.
        split: the split that the samples belong to.
        unreadable: how many utterances could not be read, those of the training data included.
    """

    metrics: dict[str, float]
    samples: list[Sample]
    split: str
    unreadable: int


@dataclass(frozen=True)
class Summary:
    """The numbers of a run that is over.

    Attributes:
        metrics: the last value of each metric.
        final: those that belong to no epoch, for the trackers.
        objective: the value of `objective.metric` at its best epoch; None: it was not measured.
    """

    metrics: dict[str, float]
    final: dict[str, float]
    objective: float | None


def load_checkpoint(run: Experiment, trained: TrainResult) -> Path | None:
    """Load the weights that `trainer.test_checkpoint` asks for, else the last ones; returns their file, None if none was written."""
    chosen = {"best": trained.best_checkpoint, "mean": trained.mean_checkpoint}.get(run.cfg.trainer.test_checkpoint)
    checkpoint = chosen or trained.last_checkpoint
    if checkpoint is not None:
        run.backend.load(run.model, checkpoint)
    return checkpoint


def evaluate_splits(run: Experiment, loaders: Loaders) -> SplitEvaluation:
    """Evaluate the model on the validation and the test data, as far as there are any."""
    train_loader, val_loader = loaders
    test_loader = run.data.loader("test", max_batches=run.cfg.trainer.limit_test_batches)
    metrics: dict[str, float] = {}
    samples: list[Sample] = []
    split = "val"
    for name, loader in (("val", val_loader), ("test", test_loader)):
        if loader is not None:
            measured, samples = evaluate(run.backend, run.model, loader, run.task, name)
            metrics |= measured
            split = name
    unreadable = sum(len(loader.left_out) for loader in (train_loader, val_loader, test_loader) if loader is not None)
    return SplitEvaluation(metrics, samples, split, unreadable)


def evaluate(backend: Backend, model: Model, loader: Loader, task: Task, split: str) -> tuple[dict[str, float], list[Sample]]:
    """Return the metrics, by `split/name`, and the samples of one pass over the batches of a split."""
    scorer = task.scorer(detailed=True)
    start, audio = time.perf_counter(), 0.0
    for batch, outputs in backend.predict(model, loader, task):
        interrupts.check()
        scorer.update(batch, outputs)
        audio += batch.seconds
    speed = audio / max(1e-9, time.perf_counter() - start)
    return {f"{split}/{name}": float(value) for name, value in {**scorer.compute(), "audio_s_per_s": speed}.items()}, scorer.samples


def summarise(
    run: Experiment, plan: TrainingPlan, trained: TrainResult, history: History, counts: Mapping[str, float], evaluation: SplitEvaluation
) -> Summary:
    """Put together the numbers of a run: what was counted before it, its last and its best epoch, and the evaluation."""
    objective = plan.objective.metric
    metrics = {**counts, **(history.epochs[-1] if history.epochs else {}), **evaluation.metrics}
    final = {name: value for name, value in metrics.items() if name.startswith("test/")}
    best = history.best(objective)
    if best is not None:
        final |= {f"best/{objective}": best[1], "best/epoch": best[0] + 1.0}
    if evaluation.unreadable:
        log.warning("%d utterances could not be read, and were left out", evaluation.unreadable)
        final["data/skipped"] = metrics["data/skipped"] = float(run.data.skipped + evaluation.unreadable)
    value = best[1] if best is not None else None
    if plan.checkpoint_monitor == plan.objective and trained.best_value is not None:
        value = trained.best_value  # also of epochs before a checkpoint that was moved away from its run
    return Summary(metrics, final, value)


def write_outputs(
    run: Experiment,
    plan: TrainingPlan,
    recorder: RunRecorder,
    history: History,
    evaluation: SplitEvaluation,
    checkpoint: Path | None,
    *,
    brief: bool,
) -> list[Path]:
    """Write what the run leaves besides its checkpoints, and track it: the exported model and, unless brief, the reports."""
    exported = run.backend.export(run.model, run.folder, plan.extra, blank_last=run.data.tokenizer.blank_last)
    interrupts.check()
    recorder.transcripts(worst_first(evaluation.samples))
    recorder.checkpoints([path for path in (checkpoint, exported) if path is not None])
    reports_enabled = run.cfg.report.enabled
    reports = _write_reports(run, history, evaluation) if (not brief if reports_enabled is None else reports_enabled) else []
    recorder.files(reports)
    return [*([exported] if exported is not None else []), *reports]


def worst_first(samples: Sequence[Sample]) -> list[Sample]:
    """Return samples with texts by the number of wrong words, the most first, and of equals the shorter ones; others as they are."""
    from rapidfuzz.distance import Levenshtein

    def place(sample: Sample) -> tuple[int, int]:
        words = sample.reference.split()
        return -Levenshtein.distance(words, sample.hypothesis.split()), len(words)

    return sorted(samples, key=place)


def _write_reports(run: Experiment, history: History, evaluation: SplitEvaluation) -> list[Path]:
    """Draw the history, and what the task reports; what cannot be drawn is a warning."""
    from speechtrain.report.reports import FinishedRun, write_history, write_report
    from speechtrain.tracking.run_names import names_of

    folder, objective = run.folder, run.cfg.objective.metric
    written: list[Path] = []
    try:
        best = history.best(objective)
        picture = write_history(folder, history.epochs, (objective, *best) if best is not None else None)
        written += [picture] if picture is not None else []
        title, note = " on ".join(names_of(run.cfg.as_dict())), f"{folder.parent.name}/{folder.name}"
        parts = {"backend": run.backend, "model": run.model, "task": run.task, "data": run.data}
        written += write_report(
            FinishedRun(folder, evaluation.samples, evaluation.split, title, **parts, options=run.cfg.report, note=note)
        )
    except Exception as error:  # noqa: BLE001 # a report is no reason to lose a trained model
        log.warning("a report could not be written (%s: %s)", type(error).__name__, error)
    return written


def track_model(run: Experiment, plan: TrainingPlan, recorder: RunRecorder, summary: Summary) -> None:
    """Give the trackers that keep models the trained one, with all that is needed to use it on audio."""
    if recorder.wants_model and run.data.features.from_audio:
        weights = run.folder / f"recognizer{run.backend.suffix}"
        run.backend.save(run.model, weights, plan.extra)
        recorder.model(weights, run.data, summary.final)
