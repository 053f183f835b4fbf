"""One run from start to end; also the Python API. Frameworks are imported inside, once the config is known to be valid."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from speechtrain.config.build import build, plain
from speechtrain.errors import EmptyDataError, RunPruned
from speechtrain.tracking.recorder import Given, notebook
from speechtrain.tracking.run_folder import find_weights, write_run_file
from speechtrain.training.console import print_config, print_whereabouts
from speechtrain.training.cross_validation import cross_validate, is_cross_validation
from speechtrain.training.limits import kind_of_test, with_limits
from speechtrain.training.result import Result
from speechtrain.training.steps import (
    check_monitors,
    checkpoint_to_resume,
    evaluate,
    latency_ms,
    loaders,
    make_plan,
    report_model,
    start_folder,
    use_batch_seconds,
    warm_start,
    write_reports,
)

if TYPE_CHECKING:
    from speechtrain.backends.base import Backend
    from speechtrain.backends.callbacks import Callback
    from speechtrain.tasks.base import Sample

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
        from speechtrain.data.prepare import prepare, without_infeasible
        from speechtrain.tasks.build import task_for
        from speechtrain.training.batch_size import find_batch_seconds
        from speechtrain.training.console import ConsoleProgress, choose_samples, print_results, print_samples
        from speechtrain.training.history import HISTORY, History

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
            counts["model/latency_ms"] = latency_ms(backend, model, data.features)
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
