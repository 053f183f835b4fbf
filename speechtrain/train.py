"""One run from start to end; also the Python API. Frameworks are imported inside, once the config is known to be valid."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from speechtrain.config.experiment import ExperimentConfig, kind_of_test
from speechtrain.console import waiting
from speechtrain.errors import EmptyDataError
from speechtrain.processes import interrupts
from speechtrain.tracking.recorder import RunRequest, recorded
from speechtrain.tracking.run_folder import find_run, write_run_file
from speechtrain.training import initial_weights, outcome, steps
from speechtrain.training.console import print_config, print_whereabouts
from speechtrain.training.cross_validation import cross_validate, fold_config, is_cross_validation
from speechtrain.training.language_model import write_language_model
from speechtrain.training.limits import with_limits
from speechtrain.training.result import Result
from speechtrain.training.resumed import (
    changes_of,
    check_same_division,
    check_unfinished,
    note_changes,
    with_tracking_of,
    with_values_of_the_start,
    without_newer_keys,
)

if TYPE_CHECKING:
    from speechtrain.backends.callbacks import Callback
    from speechtrain.data.task_data import PreparedCorpus

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
        overrides: overrides as typed, recorded with the run.
        callbacks: called in every epoch, after the built-in ones.
        tags: tags for the trackers, besides the usual ones.
        run_name: name of the run in the trackers; None: model, data, what was typed, and the time.
        parents: ids of the runs that this one is nested in, by tracker.
        brief: write no reports, and no model for MLflow.
        measure_latency: measure `model/latency_ms` before training.
        reuse_data: see `speechtrain.data.prepare.prepare`.
        after_fold: called with the results so far after each fold; may raise `RunPruned`.

    Raises:
        RunPruned: a callback ended it on purpose.
        ConfigError, DataError: the user can mend it.
        RunError: the training failed, for example with a loss of NaN.
        KeyboardInterrupt: stopped by the user; `resume=last` goes on.
    """
    config = with_tracking_of(with_values_of_the_start(steps.resolve_paths(ExperimentConfig.of(cfg))))
    check_unfinished(config)
    has_read = bool(config.choose)
    config = steps.choose_values(config)
    request = RunRequest(overrides, kind_of_test(config), tags or {}, run_name, parents or {})
    options = _Options(callbacks, brief=brief, measure_latency=measure_latency, reuse_data=reuse_data or has_read)
    if is_cross_validation(config):
        _check_folds(config)
        steps.start_folder(config)
        print_config(config)
        quietly = replace(options, brief=True, reuse_data=True, quiet=True)
        result = cross_validate(config, lambda fold, under: _train(fold, under, quietly), request, after_fold)
    else:
        result = _train(config, request, options)
    interrupts.check()
    return result


@dataclass(frozen=True)
class _Options:
    """The arguments of `train` that concern one run; `quiet`: do not print config, samples and paths."""

    callbacks: Sequence[Callback]
    brief: bool
    measure_latency: bool
    reuse_data: bool
    quiet: bool = False


def _check_folds(cfg: ExperimentConfig) -> None:
    """Check the config and the data of a cross-validation that is resumed before anything of it is written.

    Raises:
        ConfigError: they are not those that it began with.
    """
    changes_of(cfg)
    for fold in range(cfg.data.folds or 0):
        _data_to_resume(fold_config(cfg, fold), reuse=True)


def _data_to_resume(cfg: ExperimentConfig, *, reuse: bool) -> PreparedCorpus | None:
    """Return the data of a run that is resumed, which are read and checked before anything of it is written; None: it starts anew.

    Raises:
        ConfigError: they are not those that it began with.
    """
    if cfg.resume is None or find_run(cfg.resume)[1] is None:
        return None
    from speechtrain.data.prepare import prepare

    prepared = prepare(cfg, threads=os.cpu_count() or 1, reuse=reuse)
    check_same_division(cfg, prepared)
    return prepared


def _train(cfg: ExperimentConfig, request: RunRequest, options: _Options) -> Result:
    """Train one run; see `train`."""
    cfg = without_newer_keys(with_limits(cfg), request.overrides)
    changes = changes_of(cfg)
    callbacks = [*options.callbacks, *steps.build_callbacks(cfg)]
    if not options.quiet:
        print_config(cfg)
    with waiting("importing the backend"):
        backend = steps.build_backend(cfg)
    data_to_resume = _data_to_resume(cfg, reuse=options.reuse_data)
    folder = steps.start_folder(cfg)
    with recorded(cfg, folder, request) as recorder:
        from speechtrain.data.prepare import prepare
        from speechtrain.training.console import choose_samples, print_results, print_samples
        from speechtrain.training.facts import gather
        from speechtrain.training.history import HISTORY, History
        from speechtrain.training.watch import DiagnosisCallback

        with waiting("opening the trackers"):
            recorder.open()
        recorder.changes(note_changes(folder, changes))
        try:
            with waiting("reading the data"):
                prepared = data_to_resume or prepare(cfg, threads=os.cpu_count() or 1, reuse=options.reuse_data)
        except EmptyDataError as error:
            log.warning("%s\nnothing was trained (data.on_empty=warn)", error)
            return Result({}, None, folder, None, [], [], recorder.run_ids)
        recorder.data(cfg, prepared)
        with waiting("building the model"):
            run = steps.build_experiment(cfg, folder, backend, prepared)
            initial_weights.load_initial_weights(run)
        steps.check_trained(run)
        steps.log_model_size(run)
        steps.leave_out_infeasible(run)
        steps.set_batch_seconds(run)
        counts = steps.count(run, measure_latency=options.measure_latency)
        recorder.metrics(counts, step=0)
        for callback in callbacks:
            callback.on_model_ready(counts)

        loaders = steps.make_loaders(run)
        plan = steps.make_plan(run, initial_weights.checkpoint_to_resume(cfg, backend))
        history = History(run.task.direction, folder / HISTORY)
        watch = DiagnosisCallback(gather(run, loaders[0]), history, recorder)
        with watch.recording_failure():
            trained = steps.fit(run, plan, loaders, history, [recorder.epochs(cfg.trainer.log_every_n_steps), watch, *callbacks])

        checkpoint = outcome.load_checkpoint(run, trained)
        with waiting("evaluating"):
            evaluation = outcome.evaluate_splits(run, loaders)
        summary = outcome.summarise(run, plan, trained, history, counts, evaluation)
        recorder.metrics(summary.final, step=len(history.epochs))
        with waiting("writing the reports and the model"):
            files = outcome.write_outputs(run, plan, recorder, history, evaluation, checkpoint, brief=options.brief)
            if not options.brief:
                outcome.track_model(run, plan, recorder, summary)
        lm = write_language_model(run, recorder)
        write_run_file(folder, {"objective": summary.objective, "metrics": summary.metrics})
        recorder.last()
        print_results(summary.metrics, run.task.directions)
        if not options.quiet:
            print_samples(choose_samples(evaluation.samples, cfg.samples, cfg.seed))
            print_whereabouts(folder, checkpoint, [*files, *lm], recorder)
        return Result(
            summary.metrics, summary.objective, folder, checkpoint, history.epochs, evaluation.samples, recorder.run_ids, run.model
        )
