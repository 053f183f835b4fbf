"""One run from start to end; also the Python API. Frameworks are imported inside, once the config is known to be valid."""

from __future__ import annotations

import logging
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from speechtrain.archive import weights_of
from speechtrain.config.build import build, plain
from speechtrain.config.names import did_you_mean
from speechtrain.config.show import print_config
from speechtrain.console import console
from speechtrain.errors import ConfigError, EmptyDataError, Problem, RunPruned, UserError
from speechtrain.folds import cross_validate, is_cross_validation
from speechtrain.notebook import Given, Notebook, notebook
from speechtrain.result import Result
from speechtrain.resume import find_run, find_weights, other_checkpoints, read_run_file, write_run_file

if TYPE_CHECKING:
    from speechtrain.backends.base import Backend, Callback, Model, ModelInfo, Plan
    from speechtrain.backends.history import History
    from speechtrain.data.batches import Loader
    from speechtrain.data.features import Features
    from speechtrain.data.prepare import Data
    from speechtrain.tasks.base import Sample, Task

log = logging.getLogger(__name__)


def train(
    cfg: DictConfig,
    *,
    overrides: Sequence[str] = (),
    callbacks: Sequence[Callback] = (),
    tags: Mapping[str, str] | None = None,
    run_name: str | None = None,
    parents: Mapping[str, str] | None = None,
    brief: bool = False,
    measure_latency: bool = False,
    reuse_data: bool = False,
    after_fold: Callable[[Sequence[Result]], None] | None = None,
) -> Result:
    """Train, test and track one run; with `data.folds` one for each fold, under a run whose result is their mean.

    Args:
        cfg: composed and checked, by `speechtrain.compose` or by Hydra.
        overrides: as typed, to be written down.
        callbacks: told of every epoch, after the built-in ones.
        tags: for the trackers, besides the usual ones.
        run_name: for the trackers; None: model and data.
        parents: ids of the runs that this one stands under, by tracker.
        brief: leave out what is for people: reports, and the model for MLflow.
        measure_latency: know `model/latency_ms` before training.
        reuse_data: see `speechtrain.data.prepare.prepare`.
        after_fold: told of the results so far after each fold; may raise `RunPruned`.

    Raises:
        RunPruned: a callback ended it on purpose.
        ConfigError, DataError: the user can mend it.
        RunError: the training failed, for example with a loss of NaN.
        KeyboardInterrupt: stopped by the user; `resume=last` goes on.
    """
    given = Given(overrides, kind_of_test(cfg), tags or {}, run_name, parents or {})
    if cfg.init_from is not None and cfg.resume is None:
        cfg = cfg.copy()
        cfg.init_from = str(find_weights(cfg.init_from, "init_from"))  # `last` means another run as soon as this one has begun
    options = _Options(callbacks, brief=brief, measure_latency=measure_latency, reuse_data=reuse_data)
    if not is_cross_validation(cfg):
        return _train(cfg, given, options)
    start_folder(Path(cfg.output_dir).absolute(), cfg)
    print_config(cfg)
    quietly = replace(options, brief=True, reuse_data=True, quiet=True)
    return cross_validate(cfg, lambda one, under: _train(one, under, quietly), given, after_fold)


@dataclass(frozen=True)
class _Options:
    """See `train`; `quiet`: print neither config nor samples nor where things are."""

    callbacks: Sequence[Callback]
    brief: bool
    measure_latency: bool
    reuse_data: bool
    quiet: bool = False


def _train(cfg: DictConfig, given: Given, options: _Options) -> Result:
    cfg = with_limits(cfg)
    folder = Path(cfg.output_dir).absolute()
    start_folder(folder, cfg)
    if not options.quiet:
        print_config(cfg)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # docs/decisions/0006-threads.md

    with notebook(cfg, folder, given) as notes:
        from speechtrain.backends.history import HISTORY, History
        from speechtrain.batch_finder import find_batch_seconds
        from speechtrain.data.prepare import prepare, without_infeasible
        from speechtrain.progress import ConsoleProgress, choose_samples, print_results, print_samples
        from speechtrain.tasks.build import task_for

        backend: Backend = build("backend", cfg.backend)  # first: it says how many threads the data room's operations have
        notes.open()
        try:
            data = prepare(cfg, threads=os.cpu_count() or 1, reuse=options.reuse_data)
        except EmptyDataError as error:
            log.warning("%s\nnothing was trained (data.on_empty=warn)", error)
            return Result({}, None, folder, None, [], [], notes.run_ids)
        notes.data(cfg, data)
        task = task_for(cfg, data)
        check_monitors(cfg, task, has_val=len(data.corpus.splits["val"]) > 0)

        model = backend.build(plain("model", cfg.model), task, input_size=data.features.size, seed=cfg.seed)
        if cfg.resume is None:
            backend.load_pretrained(model)
            if cfg.init_from is not None:
                warm_start(backend, model, Path(cfg.init_from))
        info = backend.describe(model)
        report_model(cfg, info)
        if task.on_infeasible is not None:
            without_infeasible(data, lambda lengths: backend.output_lengths(model, lengths), task.infeasible, task.on_infeasible)
        if cfg.trainer.batch_seconds == "auto":
            use_batch_seconds(cfg, folder, data, lambda: find_batch_seconds(backend, model, data, task, cfg.trainer))
        counts = {
            "data/skipped": float(data.skipped),
            "data/infeasible": float(data.infeasible),
            "model/parameters": float(info.parameters),
        }
        if cfg.trainer.batch_seconds == "auto":
            counts["data/batch_seconds"] = float(cfg.data.batch_seconds)
        if options.measure_latency:
            counts["model/latency_ms"] = latency_ms(backend, model, task, data.features)
        notes.metrics(counts, step=0)
        for callback in options.callbacks:
            callback.on_model_ready(counts)

        train_loader, val_loader = loaders(cfg, data, task)
        resume_from = checkpoint_to_resume(cfg, backend)
        plan = make_plan(cfg, task, folder, vocabulary=data.tokenizer.vocabulary, resume_from=resume_from)
        history = History(task.direction, folder / HISTORY)
        progress = ConsoleProgress(history, cfg.objective.metric, task.shown)
        try:
            following = [history, progress, notes.epochs(cfg.trainer.log_every_n_steps), *options.callbacks]
            trained = backend.train(model, train_loader, val_loader, task, plan, following)
        finally:
            progress.close()
        if trained.pruned:
            raise RunPruned(trained.stop_reason)

        kinds = {"best": trained.best_checkpoint, "mean": trained.mean_checkpoint}
        checkpoint = kinds.get(cfg.trainer.test_checkpoint) or trained.last_checkpoint
        if checkpoint is not None:
            backend.load(model, checkpoint)
        metrics = {**counts, **(trained.history[-1] if trained.history else {})}
        samples: list[Sample] = []
        split = "val"
        test_loader = data.loader("test", max_batches=cfg.trainer.limit_test_batches)
        for name, loader in (("val", val_loader), ("test", test_loader)):
            if loader is not None:
                measured, samples = evaluate(backend, model, loader, task, name)
                metrics |= measured
                split = name
        best = history.best(cfg.objective.metric)
        final = {name: value for name, value in metrics.items() if name.startswith("test/")}
        final |= {f"best/{cfg.objective.metric}": best[1], "best/epoch": best[0] + 1.0} if best is not None else {}
        if left_out := sum(len(loader.left_out) for loader in (train_loader, val_loader, test_loader) if loader is not None):
            log.warning("%d utterances could not be read, and were left out", left_out)
            final["data/skipped"] = metrics["data/skipped"] = float(data.skipped + left_out)
        notes.metrics(final, step=cfg.trainer.epochs)

        notes.transcripts(samples)
        exported = backend.export(model, folder, plan.extra, blank_last=getattr(data.tokenizer, "blank_last", False))
        notes.checkpoints([path for path in (checkpoint, exported) if path is not None])
        files = [exported] if exported is not None else []
        if cfg.report.enabled if cfg.report.enabled is not None else not options.brief:
            files += write_reports(folder, cfg, history, samples, split, backend=backend, model=model, task=task, data=data)
            notes.files([path for path in files if path != exported])
        if not options.brief and notes.wants_model and data.features.hears:
            weights = folder / f"recognizer{backend.suffix}"
            backend.save(model, weights, plan.extra)
            notes.model(weights, data, final)

        objective = best[1] if best is not None else None
        if plan.trainer["checkpoint"]["monitor"] == cfg.objective.metric and trained.best_value is not None:
            objective = trained.best_value  # also of epochs before a checkpoint that was moved away from its run
        write_run_file(folder, {"objective": objective, "metrics": metrics})
        print_results(metrics, task.directions)
        if not options.quiet:
            print_samples(choose_samples(samples, cfg.samples, cfg.seed))
            print_whereabouts(folder, checkpoint, files, notes)
        return Result(metrics, objective, folder, checkpoint, history.epochs, samples, notes.run_ids, model)


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
    from speechtrain.report.run import Finished, write_history, write_report

    found: list[Path] = []
    try:
        best = history.best(cfg.objective.metric)
        picture = write_history(folder, history.epochs, (cfg.objective.metric, *best) if best is not None else None)
        found += [picture] if picture is not None else []
        found += write_report(Finished(folder, samples, split, f"{folder.parent.name}/{folder.name}", **parts, options=cfg.report))
    except Exception as error:  # noqa: BLE001 # a report is no reason to lose a trained model
        log.warning("a report could not be written (%s: %s)", type(error).__name__, error)
    return found


TEST_RUNS: dict[str, dict[str, int]] = {
    "quick": {"data.limit_utterances": 200, "trainer.limit_epochs": 3},
    "dry_run": {"data.limit_utterances": 64, "trainer.limit_epochs": 1},
    "fast_dev_run": {
        "data.limit_utterances": 16,
        "trainer.limit_epochs": 1,
        "trainer.limit_train_batches": 1,
        "trainer.limit_val_batches": 1,
        "trainer.limit_test_batches": 1,
    },
}
"""What shortens a run that only tries things out; a tighter limit of the config's own stays."""


def kind_of_test(cfg: DictConfig) -> str | None:
    """Of a run that only tries things out; None: a real run."""
    return "fast_dev_run" if cfg.trainer.fast_dev_run else "dry_run" if cfg.dry_run else cfg.test_run


def with_limits(cfg: DictConfig) -> DictConfig:
    """The config with all limits in it, also those of a run that only tries things out."""
    kind = kind_of_test(cfg)
    cfg = cfg.copy()
    limits = TEST_RUNS[kind] if kind is not None else {}
    for key, limit in limits.items():
        given = OmegaConf.select(cfg, key)
        OmegaConf.update(cfg, key, limit if given is None else min(given, limit))
    cfg.trainer.epochs = min(cfg.trainer.epochs, cfg.trainer.limit_epochs or cfg.trainer.epochs)
    if kind is not None:
        shown = ", ".join(f"{key}={limit}" for key, limit in limits.items())
        log.warning("%s: the run is shortened (%s) and marked as a test", kind, shown)
    return cfg


def start_folder(folder: Path, cfg: DictConfig) -> None:
    """Make the run's folder, with the resolved config in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})\n    -> set hydra.run.dir to a folder that can") from error
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
        if Path(str(cfg.resume).strip("'\"")).expanduser().is_file() and found.stem != "last":
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


def latency_ms(backend: Backend, model: Model, task: Task, features: Features) -> float:
    """Milliseconds that the model takes for one second of features alone in a batch: the median of 10 passes."""
    from speechtrain.data.batches import silence

    batch = silence(features, task.placeholder, seconds=1.0)
    took = []
    for _ in range(12):
        start = time.perf_counter()
        list(backend.predict(model, [batch], task))
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


_LABELS = {"error_report.html": "errors", "class_report.html": "classes", "signal_report.html": "signals", "history.png": "history"}


def print_whereabouts(folder: Path, checkpoint: Path | None, files: Sequence[Path], notes: Notebook) -> None:
    """Where things are, and how to look at them."""
    console.print(f"\nrun         {folder}")
    if checkpoint is not None:
        console.print(f"checkpoint  {checkpoint}")
    for path in files:
        label = _LABELS.get(path.name, {".html": "report", ".keras": "model"}.get(path.suffix))
        if label is not None:
            console.print(f"{label:<12}{path}")
    notes.print_whereabouts()
