"""The steps of a training run, in the order in which `speechtrain.train` calls them."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from speechtrain.backends.checkpoint_files import LAST, other_checkpoints
from speechtrain.config.build import build, plain
from speechtrain.errors import ConfigError, Problem, UserError, did_you_mean, unwritable
from speechtrain.inference.archive import weights_of
from speechtrain.tracking.run_folder import find_run, read_run_file, write_run_file

if TYPE_CHECKING:
    from speechtrain.backends.base import Backend, Model, ModelInfo, Plan
    from speechtrain.data.features.features import Features
    from speechtrain.data.loader import Loader
    from speechtrain.data.prepare import Data
    from speechtrain.tasks.base import Sample, Task
    from speechtrain.training.history import History

log = logging.getLogger(__name__)


def follow(cfg: DictConfig, folder: Path, resume_from: Path | None) -> None:
    """Take a part in a run that another process on this machine has begun: train as it does, track and print nothing.

    Args:
        cfg: as that process has written it.
        folder: of the run.
        resume_from: the checkpoint that it goes on from.
    """
    from speechtrain.data.prepare import prepare, without_infeasible
    from speechtrain.tasks.build import task_for

    backend: Backend = build("backend", cfg.backend)
    data = prepare(cfg, threads=1)
    task = task_for(cfg, data)
    model = backend.build(plain("model", cfg.model), task, input_size=data.features.size, seed=cfg.seed)
    if task.on_infeasible is not None:
        without_infeasible(data, lambda lengths: backend.output_lengths(model, lengths), task.infeasible, task.on_infeasible)
    train_loader, val_loader = loaders(cfg, data, task)
    plan = make_plan(cfg, task, folder, vocabulary=data.tokenizer.vocabulary, resume_from=resume_from)
    backend.train(model, train_loader, val_loader, task, plan, ())


def loaders(cfg: DictConfig, data: Data, task: Task) -> tuple[Loader, Loader | None]:
    """Of training and validation."""
    views = 2 if task.consistency else 1
    train_loader = data.loader("train", shuffle=True, augment=True, views=views, max_batches=cfg.trainer.limit_train_batches)
    assert train_loader is not None
    return train_loader, data.loader("val", max_batches=cfg.trainer.limit_val_batches)


def write_reports(folder: Path, cfg: DictConfig, history: History, samples: Sequence[Sample], split: str, **parts: Any) -> list[Path]:
    """The picture of the history, and what the task wants drawn; what cannot be drawn is a warning."""
    from speechtrain.report.reports import Finished, write_history, write_report

    found: list[Path] = []
    try:
        best = history.best(cfg.objective.metric)
        picture = write_history(folder, history.epochs, (cfg.objective.metric, *best) if best is not None else None)
        found += [picture] if picture is not None else []
        found += write_report(Finished(folder, samples, split, f"{folder.parent.name}/{folder.name}", **parts, options=cfg.report))
    except Exception as error:  # noqa: BLE001 # a report is no reason to lose a trained model
        log.warning("a report could not be written (%s: %s)", type(error).__name__, error)
    return found


def start_folder(folder: Path, cfg: DictConfig) -> None:
    """Make the run's folder, with the resolved config in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True), encoding="utf-8")
    except OSError as error:
        raise unwritable(folder, error, "hydra.run.dir") from error
    if "started" not in read_run_file(folder):
        write_run_file(folder, {"started": time.time_ns()})


def use_batch_seconds(cfg: DictConfig, folder: Path, data: Data, find: Callable[[], float]) -> None:
    """Take the size of batches that is found, or that was found when the run began."""
    found = read_run_file(folder).get("batch_seconds")
    if found is None:
        found = find()
        write_run_file(folder, {"batch_seconds": found})
    cfg.data.batch_seconds = found
    data.limits = replace(data.limits, batch_seconds=found)
    start_folder(folder, cfg)


def warm_start(backend: Backend, model: Model, path: Path) -> None:
    """Begin with the weights of a checkpoint, as far as they fit, and say which do not."""
    with weights_of(path) as weights:
        if weights.suffix != backend.suffix:
            fix = f"give a {backend.suffix} file, or another backend"
            raise ConfigError([Problem("init_from", f"{path} is not of backend={backend.name}", fix)])
        left = backend.warm_start(model, weights)
    log.info("weights of %s%s", path, f"; not of {', '.join(left)}, which have another shape there" if left else "")


def report_model(cfg: DictConfig, info: ModelInfo) -> None:
    """Size and context of the model, in a line."""
    name = cfg.model._target_.rpartition(".")[2]
    field = f"{info.receptive_field} frames" if info.receptive_field else "the whole utterance"
    log.info("%s: %s parameters, subsampling %d, receptive field %s", name, f"{info.parameters:,}", info.subsampling, field)


def check_monitors(cfg: DictConfig, task: Task, *, has_val: bool) -> None:
    """Refuse metrics to go by that will never be measured.

    Raises:
        ConfigError: the task has no such metric, or there is no validation data.
    """
    known = [f"val/{each}" for each in task.directions] + ["train/loss"]
    asked = {
        "objective.metric": cfg.objective.metric,
        "trainer.early_stopping.monitor": cfg.trainer.early_stopping.monitor,
        "trainer.checkpoint.monitor": cfg.trainer.checkpoint.monitor,
    }
    problems = []
    for path, metric in asked.items():
        if metric is not None and metric not in known:
            problems.append(Problem(path, f"there is no metric '{metric}'", did_you_mean(metric, known)))
        elif metric is not None and metric.startswith("val/") and not has_val:
            fix = f"give data.val or data.split.val, or set {path}=train/loss"
            problems.append(Problem(path, f"is {metric}, but there are no validation utterances", fix))
    if problems:
        raise ConfigError(problems)


def checkpoint_to_resume(cfg: DictConfig, backend: Backend) -> Path | None:
    """The checkpoint that `resume` means; of a run whose last one is damaged an earlier one. None: the run starts from the beginning.

    Raises:
        UserError: a checkpoint that is named is damaged, or every one of the run is.
    """
    if cfg.resume is None:
        return None
    _, found = find_run(cfg.resume)
    if found is None:
        log.warning("%s has no finished epoch yet; starting again from the beginning", cfg.resume)
        return None
    try:
        backend.check_file(found)
    except UserError as error:
        # the command line has put the run's last checkpoint in place of `last`, a folder or a run id
        if Path(str(cfg.resume).strip("'\"")).expanduser().is_file() and found.stem != LAST:
            raise
        for other in other_checkpoints(found):
            with suppress(UserError):
                backend.check_file(other)
                log.warning("%s\ngoing on from %s instead", str(error).partition("\n")[0], other)
                return other
        raise
    return found


def make_plan(cfg: DictConfig, task: Task, folder: Path, *, vocabulary: Sequence[str], resume_from: Path | None = None) -> Plan:
    """How the backend is to train."""
    from speechtrain.backends.base import Plan

    trainer = OmegaConf.to_container(cfg.trainer, resolve=True)
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(trainer, dict)
    for part in ("early_stopping", "checkpoint"):
        trainer[part]["monitor"] = trainer[part]["monitor"] or cfg.objective.metric
        trainer[part]["mode"] = task.direction(trainer[part]["monitor"])[:3]
    return Plan(
        optimizer=plain("optimizer", cfg.optimizer),
        schedule=build("scheduler", cfg.scheduler),
        trainer={str(key): value for key, value in trainer.items()},
        monitor=cfg.objective.metric,
        direction=task.direction(cfg.objective.metric),
        folder=folder,
        seed=cfg.seed,
        resume_from=resume_from,
        extra={"config": config, "vocabulary": list(vocabulary)},
    )


def latency_ms(backend: Backend, model: Model, features: Features) -> float:
    """Milliseconds that the model takes for one second of features alone in a batch: the median of 10 passes."""
    from speechtrain.data.batches import silence

    silent, frames = silence(features, seconds=1.0)
    took = []
    for _ in range(12):
        start = time.perf_counter()
        backend.infer(model, silent, frames)
        took.append(1000 * (time.perf_counter() - start))
    return statistics.median(took[2:])


def evaluate(backend: Backend, model: Model, loader: Loader, task: Task, split: str) -> tuple[dict[str, float], list[Sample]]:
    """Metrics and samples of one pass."""
    scorer = task.scorer(detailed=True)
    start, audio = time.perf_counter(), 0.0
    for batch, outputs in backend.predict(model, loader, task):
        scorer.update(batch, outputs)
        audio += batch.seconds
    speed = audio / max(1e-9, time.perf_counter() - start)
    return {f"{split}/{name}": float(value) for name, value in {**scorer.compute(), "audio_s_per_s": speed}.items()}, scorer.samples
