"""The steps of a training run, in the order in which `speechtrain.train` calls them."""

from __future__ import annotations

import logging
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from speechtrain.config.build import build, construct
from speechtrain.config.checks import unknown_metrics, unvalidated
from speechtrain.config.experiment import ExperimentConfig, class_name
from speechtrain.errors import ConfigError, Problem, RunPaused, RunPruned, unwritable
from speechtrain.files import ignore_in_git, launch_folder, remove_unfinished, user_path, write_text
from speechtrain.processes.launch_environment import note_run
from speechtrain.tracking.run_folder import (
    BEST_CHECKPOINT,
    NUMBERED_FROM,
    RUN_FOLDERS,
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
    from speechtrain.tasks.base import Task
    from speechtrain.training.history import History

log = logging.getLogger(__name__)


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
    note_run(folder)
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
        RunPaused: a callback ended the training for the time being.
        RunPruned: a callback ended the training because others do better.
    """
    from speechtrain.training.console import ConsoleProgress
    from speechtrain.training.distributed import hand_out

    hand_out(run, plan)
    progress = ConsoleProgress(history, plan.objective.metric, run.task.shown)
    try:
        trained = run.backend.train(run.model, *loaders, run.task, plan, [history, progress, *callbacks])
    finally:
        progress.close()
    if trained.pruned:
        raise (RunPaused if trained.paused else RunPruned)(trained.stop_reason)
    if trained.best_checkpoint is not None:
        write_run_file(run.folder, {BEST_CHECKPOINT: trained.best_checkpoint.name})
    return trained


def rank_experiment(cfg: ExperimentConfig, folder: Path) -> Experiment:
    """Build the parts of a run that another process has begun, for one of its ranks.

    Args:
        cfg: the config as that process has it.
        folder: the folder of the run.
    """
    from speechtrain.data.prepare import prepare

    backend: Backend = build("backend", cfg.backend)
    run = build_experiment(cfg, folder, backend, prepare(cfg, threads=1))
    leave_out_infeasible(run)
    return run


def run_rank(cfg: ExperimentConfig, folder: Path, resume_from: Path | None) -> None:
    """Train as one rank of a run that another process on this machine has begun; nothing is tracked or printed.

    Args:
        cfg: the config as that process wrote it.
        folder: the folder of the run.
        resume_from: the checkpoint that the run is resumed from.
    """
    run = rank_experiment(cfg, folder)
    run.backend.train(run.model, *make_loaders(run), run.task, make_plan(run, resume_from), ())
