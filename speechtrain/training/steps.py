"""The steps of a training run, in the order in which `speechtrain.train` calls them."""

from __future__ import annotations

import logging
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from speechtrain.backends.checkpoint_files import LAST, best_checkpoint, other_checkpoints, read_extra
from speechtrain.config.build import build, construct
from speechtrain.config.checks import unknown_metrics, unvalidated
from speechtrain.config.experiment import ExperimentConfig, class_name
from speechtrain.config.stored import stored_vocabulary
from speechtrain.errors import ConfigError, Problem, RunPruned, UserError, unwritable
from speechtrain.files import ignore_in_git, is_file, launch_folder, remove_unfinished, user_path, write_text
from speechtrain.inference.archive import weights_of
from speechtrain.processes import interrupts
from speechtrain.tracking.run_folder import (
    BEST_CHECKPOINT,
    NUMBERED_FROM,
    RUN_FOLDERS,
    find_run,
    find_weights,
    read_run_file,
    remember,
    write_run_file,
)

if TYPE_CHECKING:
    from speechtrain.backends.base import Backend, Model, ModelInfo, TrainingPlan
    from speechtrain.backends.callbacks import Callback, TrainResult
    from speechtrain.data.loader import Loader
    from speechtrain.data.task_data import PreparedCorpus, TaskData
    from speechtrain.tasks.base import Sample, Task
    from speechtrain.tracking.recorder import RunRecorder
    from speechtrain.training.history import History

log = logging.getLogger(__name__)

_SHOWN_TOKENS = 20


@dataclass
class Experiment:
    """The parts of one run, built from its config.

    Attributes:
        cfg: all limits are in it, and the size of batches that was found.
        folder: the folder of the run.
    """

    cfg: ExperimentConfig
    folder: Path
    backend: Backend
    data: TaskData
    task: Task
    model: Model

    @property
    def info(self) -> ModelInfo:
        """Return the size and the context of the model."""
        return self.backend.describe(self.model)


Loaders = tuple["Loader", "Loader | None"]
"""Training batches, and those of the validation data if there are any."""


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


def resolve_paths(cfg: ExperimentConfig) -> ExperimentConfig:
    """Return the config with the absolute path of its folder, and the checkpoint in `init_from`: `last` would soon mean this run itself."""
    cfg = cfg.with_values({"output_dir": str(user_path(cfg.output_dir).absolute())})
    if cfg.init_from is None or cfg.resume is not None:
        return cfg
    return cfg.with_values({"init_from": str(find_weights(cfg.init_from, "init_from"))})


def choose_values(cfg: ExperimentConfig) -> ExperimentConfig:
    """Return a config in which the keys of `choose` have values, see `speechtrain.training.choices`."""
    if not cfg.choose:
        return cfg
    from speechtrain.training.choices import choose

    return choose(cfg)


def start_folder(cfg: ExperimentConfig) -> Path:
    """Make the run's folder, with the resolved config in it; returns its absolute path."""
    folder = Path(cfg.output_dir).absolute()
    try:
        cfg.keep_secrets()
        write_text(folder / "config.yaml", cfg.as_yaml())
        remove_unfinished(folder)
        if "started" not in read_run_file(folder):
            write_run_file(folder, {"started": time.time_ns(), NUMBERED_FROM: 1})
    except OSError as error:
        raise unwritable(folder, error, "hydra.run.dir") from error
    for base in (launch_folder() / name for name in RUN_FOLDERS):
        if folder.is_relative_to(base):
            ignore_in_git(base)
    remember(folder)
    return folder


def build_callbacks(cfg: ExperimentConfig) -> list[Callback]:
    """Build the user's own callbacks, before any data are read.

    Raises:
        ConfigError: one cannot be built, or is no callback.
    """
    from speechtrain.backends.callbacks import Callback

    callbacks = [construct(f"callbacks.{number}", each) for number, each in enumerate(cfg.callbacks)]
    for number, each in enumerate(callbacks):
        if not isinstance(each, Callback):
            message = f"must make a callback, received {type(each).__name__}"
            raise ConfigError([Problem(f"callbacks.{number}", message, "derive its class from speechtrain.backends.callbacks.Callback")])
    return callbacks


def build_backend(cfg: ExperimentConfig) -> Backend:
    """Build the backend; it comes first, as it sets the threads of all operations, also of those that make features."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # docs/decisions/0006-threads.md
    backend: Backend = build("backend", cfg.backend)
    return backend


def build_experiment(cfg: ExperimentConfig, folder: Path, backend: Backend, corpus: PreparedCorpus) -> Experiment:
    """Build the task for the corpus and the model for the task, its weights drawn from the seed.

    Raises:
        ConfigError: a metric is to be watched that will never be measured.
    """
    from speechtrain.tasks.build import task_for

    task = task_for(cfg, corpus)
    _check_monitors(cfg, task, has_val=len(corpus.corpus.splits["val"]) > 0)
    model = backend.build(cfg.model, task, input_size=corpus.features.size, seed=cfg.seed)
    return Experiment(cfg, folder, backend, corpus.for_task(task), task, model)


def _check_monitors(cfg: ExperimentConfig, task: Task, *, has_val: bool) -> None:
    monitors = {
        "objective.metric": cfg.objective.metric,
        "trainer.early_stopping.monitor": cfg.trainer.early_stopping.monitor,
        "trainer.checkpoint.monitor": cfg.trainer.checkpoint.monitor,
    }
    problems = list(unknown_metrics(monitors, task.directions))
    unknown = [problem.path for problem in problems]
    for path, metric in monitors.items():
        if metric is not None and metric.startswith("val/") and not has_val and path not in unknown:
            problems.append(unvalidated(path, metric))
    if problems:
        raise ConfigError(problems)


def load_initial_weights(run: Experiment) -> None:
    """Load the weights that a run starts from: pretrained ones, and those of `init_from`; a resumed run has its own.

    Raises:
        ConfigError: they do not fit the model, or are of another backend.
    """
    if run.cfg.resume is not None:
        _check_vocabulary(run)
        return
    run.backend.load_pretrained(run.model, run.data.tokenizer.outputs)
    if run.cfg.init_from is None:
        return
    path = Path(run.cfg.init_from)
    with weights_of(path) as weights:
        if weights.suffix != run.backend.suffix:
            fix = f"give a {run.backend.suffix} file, or another backend"
            raise ConfigError([Problem("init_from", f"{path} is not of backend={run.backend.name}", fix)])
        former = stored_vocabulary(read_extra(weights).get("vocabulary", []), str(path))
        labels = _labels_in(former, run)
        not_loaded = run.backend.warm_start(run.model, weights, labels)
    log.info("weights of %s%s", path, f"; not of {', '.join(not_loaded)}, which have another shape there" if not_loaded else "")
    if labels is not None and None in labels:
        new = [token for token, label in zip(run.data.tokenizer.vocabulary, labels, strict=True) if label is None]
        log.info(
            "%d of %d tokens begin anew, which that model has not: %s", len(new), len(labels), " ".join(map(repr, new[:_SHOWN_TOKENS]))
        )


def _labels_in(former: Sequence[str], run: Experiment) -> list[int | None] | None:
    """Return the label that each token of a run had in a former vocabulary, None where it had none; None where heads give no tokens."""
    own = run.data.tokenizer.vocabulary
    if not run.task.head.log_softmax or run.task.head.size != len(own) or not former:
        return None
    known = {token: label for label, token in enumerate(former)}
    return [known.get(token) for token in own]


def _check_vocabulary(run: Experiment) -> None:
    """Check that a run which is resumed has the vocabulary of its checkpoint, whose order gives the outputs of the model their meaning.

    Raises:
        ConfigError: it has another.
    """
    checkpoint = find_run(str(run.cfg.resume))[1]
    if checkpoint is None:
        return
    before: list[str] | None = None
    with suppress(UserError):  # of a damaged file, which is told when it is read as a whole, if there is no other
        before = read_extra(checkpoint).get("vocabulary")
    now = list(run.data.tokenizer.vocabulary)
    if before is not None and list(before) != now:
        message = f"the data gives a vocabulary of {len(now)} tokens, {now!s:.80}; that of the run has {len(before)}, {before!s:.80}"
        fix = "resume with the data that it was trained on, or start a new run from its weights with init_from="
        raise ConfigError([Problem("resume", message, fix)])


def check_trained(run: Experiment) -> None:
    """Refuse a model of which nothing is trained.

    Raises:
        ConfigError: all of its parameters are frozen.
    """
    if run.info.parameters == 0:
        message = f"{class_name(run.cfg.model)} has no parameter that is trained: all of them are frozen"
        raise ConfigError([Problem("model", message, "leave requires_grad (Keras: trainable) of some as they are built")])


def log_model_size(run: Experiment) -> None:
    """Log the size and the context of the model, in a line."""
    info = run.info
    field = f"{info.receptive_field} frames" if info.receptive_field else "the whole utterance"
    size = f"{info.parameters:,}"
    log.info("%s: %s parameters, subsampling %d, receptive field %s", class_name(run.cfg.model), size, info.subsampling, field)


def leave_out_infeasible(run: Experiment) -> None:
    """Leave out the training utterances that are too short for their text at the model's subsampling, as the task wants it."""
    from speechtrain.data.feasibility import without_infeasible

    run.data = without_infeasible(run.data, lambda lengths: run.backend.output_lengths(run.model, lengths), run.task)


def set_batch_seconds(run: Experiment) -> None:
    """Set the size of batches that `trainer.batch_seconds=auto` finds, or found when the run began."""
    from speechtrain.training.batch_size import find_batch_seconds

    if run.cfg.trainer.batch_seconds != "auto":
        return
    seconds = read_run_file(run.folder).get("batch_seconds")
    if seconds is None:
        seconds = find_batch_seconds(run.backend, run.model, run.data, run.task, run.cfg.trainer)
        write_run_file(run.folder, {"batch_seconds": seconds})
    run.cfg = run.cfg.with_values({"data.batch_seconds": seconds})
    run.data = run.data.with_limits(replace(run.data.limits, batch_seconds=seconds))
    start_folder(run.cfg)


def count(run: Experiment, *, measure_latency: bool) -> dict[str, float]:
    """Return what is known before training: utterances left out, the size of the model and, if asked for, its speed."""
    counts = {
        "data/skipped": float(run.data.skipped),
        "data/infeasible": float(run.data.infeasible),
        "model/parameters": float(run.info.parameters),
    }
    if run.cfg.trainer.batch_seconds == "auto":
        counts["data/batch_seconds"] = float(run.cfg.data.batch_seconds)
    if measure_latency:
        counts["model/latency_ms"] = _latency_ms(run)
    return counts


def _latency_ms(run: Experiment) -> float:
    """Return the milliseconds that the model takes for one second of features alone in a batch: the median of 10 passes."""
    from speechtrain.data.batches import silence

    features, lengths = silence(run.data.features, seconds=1.0)
    durations = []
    for _ in range(12):
        start = time.perf_counter()
        run.backend.infer(run.model, features, lengths)
        durations.append(1000 * (time.perf_counter() - start))
    return statistics.median(durations[2:])


def make_loaders(run: Experiment) -> Loaders:
    """Return the batches of the training data, and of the validation data if there are any."""
    limits = run.cfg.trainer
    train_loader = run.data.loader("train", shuffle=True, augment=True, views=run.task.views, max_batches=limits.limit_train_batches)
    assert train_loader is not None
    return train_loader, run.data.loader("val", max_batches=limits.limit_val_batches)


def checkpoint_to_resume(cfg: ExperimentConfig, backend: Backend) -> Path | None:
    """Return the checkpoint that `resume` means; of a run whose last one is damaged an earlier one; None: the run starts anew.

    Raises:
        UserError: a checkpoint that is named is damaged, or every one of the run is.
    """
    if cfg.resume is None:
        return None
    _explain_older_names(Path(cfg.output_dir))
    _, checkpoint = find_run(cfg.resume)
    if checkpoint is None:
        log.warning("%s has no finished epoch yet; starting again from the beginning", cfg.resume)
        return None
    try:
        backend.check_file(checkpoint)
    except UserError as error:
        # the command line has put the run's last checkpoint in place of `last`, a folder or a run id
        if is_file(user_path(cfg.resume.strip("'\""))) and checkpoint.stem != LAST:
            raise
        for other in other_checkpoints(checkpoint):
            with suppress(UserError):
                backend.check_file(other)
                log.warning("%s\ngoing on from %s instead", str(error).partition("\n")[0], other)
                return other
        raise
    return checkpoint


def _explain_older_names(folder: Path) -> None:
    """Log that checkpoints which an earlier version wrote in a run's folder have other numbers in their names than those to come."""
    older = best_checkpoint(folder)
    if older is not None and NUMBERED_FROM not in read_run_file(folder):
        log.info("names such as %s are of an earlier version and count epochs from 0; new ones count from 1", older.name)


def make_plan(run: Experiment, resume_from: Path | None = None) -> TrainingPlan:
    """Return how the backend is to train."""
    from speechtrain.backends.base import Monitor, TrainingPlan

    cfg = run.cfg

    def monitor(metric: str) -> Monitor:
        return Monitor(metric, run.task.direction(metric))

    return TrainingPlan(
        optimizer=cfg.optimizer,
        schedule=build("scheduler", cfg.scheduler),
        trainer=cfg.trainer,
        objective=monitor(cfg.objective.metric),
        checkpoint_monitor=monitor(cfg.trainer.checkpoint.monitor or cfg.objective.metric),
        stopping_monitor=monitor(cfg.trainer.early_stopping.monitor or cfg.objective.metric),
        folder=run.folder,
        seed=cfg.seed,
        resume_from=resume_from,
        extra={"config": cfg.as_dict(), "vocabulary": list(run.data.tokenizer.vocabulary)},
    )


def fit(run: Experiment, plan: TrainingPlan, loaders: Loaders, history: History, callbacks: Sequence[Callback]) -> TrainResult:
    """Train, with the history and a progress bar in front of the other callbacks.

    Raises:
        RunPruned: a callback ended the training because others do better.
    """
    from speechtrain.training.console import ConsoleProgress

    progress = ConsoleProgress(history, plan.objective.metric, run.task.shown)
    try:
        trained = run.backend.train(run.model, *loaders, run.task, plan, [history, progress, *callbacks])
    finally:
        progress.close()
    if trained.pruned:
        raise RunPruned(trained.stop_reason)
    if trained.best_checkpoint is not None:
        write_run_file(run.folder, {BEST_CHECKPOINT: trained.best_checkpoint.name})
    return trained


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
    recorder.transcripts(evaluation.samples)
    recorder.checkpoints([path for path in (checkpoint, exported) if path is not None])
    reports_enabled = run.cfg.report.enabled
    reports = _write_reports(run, history, evaluation) if (not brief if reports_enabled is None else reports_enabled) else []
    recorder.files(reports)
    return [*([exported] if exported is not None else []), *reports]


def _write_reports(run: Experiment, history: History, evaluation: SplitEvaluation) -> list[Path]:
    """Draw the history, and what the task reports; what cannot be drawn is a warning."""
    from speechtrain.report.reports import FinishedRun, write_history, write_report

    folder, objective = run.folder, run.cfg.objective.metric
    written: list[Path] = []
    try:
        best = history.best(objective)
        picture = write_history(folder, history.epochs, (objective, *best) if best is not None else None)
        written += [picture] if picture is not None else []
        title = f"{folder.parent.name}/{folder.name}"
        parts = {"backend": run.backend, "model": run.model, "task": run.task, "data": run.data}
        written += write_report(FinishedRun(folder, evaluation.samples, evaluation.split, title, **parts, options=run.cfg.report))
    except Exception as error:  # noqa: BLE001 # a report is no reason to lose a trained model
        log.warning("a report could not be written (%s: %s)", type(error).__name__, error)
    return written


def track_model(run: Experiment, plan: TrainingPlan, recorder: RunRecorder, summary: Summary) -> None:
    """Give the trackers that keep models the trained one, with all that is needed to use it on audio."""
    if recorder.wants_model and run.data.features.from_audio:
        weights = run.folder / f"recognizer{run.backend.suffix}"
        run.backend.save(run.model, weights, plan.extra)
        recorder.model(weights, run.data, summary.final)


def run_rank(cfg: ExperimentConfig, folder: Path, resume_from: Path | None) -> None:
    """Train as one rank of a run that another process on this machine has begun; nothing is tracked or printed.

    Args:
        cfg: the config as that process wrote it.
        folder: the folder of the run.
        resume_from: the checkpoint that the run is resumed from.
    """
    from speechtrain.data.prepare import prepare

    backend: Backend = build("backend", cfg.backend)
    run = build_experiment(cfg, folder, backend, prepare(cfg, threads=1))
    leave_out_infeasible(run)
    backend.train(run.model, *make_loaders(run), run.task, make_plan(run, resume_from), ())
