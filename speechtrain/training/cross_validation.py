"""Cross-validation: one run for each fold under a parent run, whose result is the mean of theirs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig
from rich.table import Table

from speechtrain.backends.checkpoint_files import last_checkpoint
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.console import console, format_metric, print_table
from speechtrain.errors import ConfigError, Problem
from speechtrain.tracking.recorder import RunRequest, recorded
from speechtrain.tracking.run_folder import fold_folder, write_run_file
from speechtrain.training.result import Result, finished_result

DEVIATION = "_std"
"""The suffix of a metric's name for its standard deviation between the folds."""


def is_cross_validation(cfg: ExperimentConfig | DictConfig) -> bool:
    """Return whether a config asks for all its folds."""
    return cfg.data.folds is not None and cfg.data.fold is None


def cross_validate(
    cfg: ExperimentConfig,
    train_fold: Callable[[ExperimentConfig, RunRequest], Result],
    request: RunRequest,
    after_fold: Callable[[Sequence[Result]], None] | None = None,
) -> Result:
    """Train every fold, in `fold_0`, `fold_1`, ... of the run's folder; those that a resumed run has finished are not trained again.

    Args:
        cfg: config of the run, with `data.folds`.
        train_fold: trains one fold.
        request: what the parent run was asked for; the folds are runs under it in the trackers.
        after_fold: called with the results so far after each fold.

    Returns:
        The means of the folds' metrics, each with its deviation under `NAME_std`; the objective is the mean of theirs.

    Raises:
        RunPruned: `after_fold` asked for it, or a fold was ended on purpose.
    """
    folder = Path(cfg.output_dir).absolute()
    count = cfg.data.folds
    assert count is not None
    write_run_file(folder, {"folds": count})
    results: list[Result] = []
    with recorded(cfg, folder, request) as recorder:
        recorder.open()
        for fold in range(count):
            fold_cfg = fold_config(cfg, fold)
            result = finished_result(Path(fold_cfg.output_dir)) if cfg.resume is not None else None
            console.print(f"\nfold {fold + 1} of {count}{' (finished before)' if result is not None else ''}", style="bold")
            if result is None:
                tags = {**request.tags, "speechtrain.fold": f"{fold + 1}/{count}"}
                name = f"{request.name or 'fold'} {fold + 1}/{count}"
                result = train_fold(fold_cfg, RunRequest(request.overrides, request.test, tags, name, recorder.run_ids))
                if not result.metrics:  # there was nothing to train on, and data.on_empty=warn
                    return Result({}, None, folder, None, [], [], recorder.run_ids)
                if result.objective is None:
                    fix = "name a metric that is, or lower trainer.val_every_n_epochs"
                    raise ConfigError([Problem("objective.metric", f"{cfg.objective.metric} was never measured", fix)])
            results.append(replace(result, samples=[], model=None))
            assert result.objective is not None
            recorder.metrics({f"fold/{cfg.objective.metric}": result.objective}, step=fold + 1)
            if after_fold is not None:
                after_fold(results)
        metrics = summary(results, cfg.objective.metric)
        recorder.metrics(metrics, step=cfg.trainer.epochs)
        write_run_file(folder, {"objective": metrics[cfg.objective.metric], "metrics": metrics})
        print_folds(results, metrics)
        console.print(f"\nrun         {folder}")
        recorder.print_whereabouts()
        return Result(metrics, metrics[cfg.objective.metric], folder, None, [], [], recorder.run_ids)


def summary(results: Sequence[Result], objective: str) -> dict[str, float]:
    """Return mean and deviation of every metric that all folds have; of the objective those of the best epochs."""
    values: dict[str, list[float]] = {}
    for name in results[0].metrics:
        if all(name in each.metrics for each in results) and not name.startswith(("train/", "time/")):
            values[name] = [each.metrics[name] for each in results]
    values[objective] = [math.nan if each.objective is None else each.objective for each in results]
    means = {name: statistics.fmean(each_fold) for name, each_fold in values.items()}
    return means | {f"{name}{DEVIATION}": statistics.stdev(each_fold) for name, each_fold in values.items()}


def print_folds(results: Sequence[Result], metrics: Mapping[str, float]) -> None:
    """Print a table with a row a metric: its mean, its deviation, and its value in each fold."""
    names = [name for name in metrics if name.startswith(("val/", "test/")) and not name.endswith(("_per_s", DEVIATION))]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title="folds", title_justify="left")
    table.add_column("", no_wrap=True)
    for heading in ("mean", "deviation", *(str(fold + 1) for fold in range(len(results)))):
        table.add_column(heading, justify="right", no_wrap=True)
    for name in names:
        values = [metrics[name], metrics[f"{name}{DEVIATION}"], *(result.metrics[name] for result in results)]
        table.add_row(name, *(format_metric(name, value) for value in values))
    console.print()
    print_table(table)


def fold_config(cfg: ExperimentConfig, fold: int) -> ExperimentConfig:
    """Return the config of a fold, counted from 0, which goes on from its own checkpoint where the cross-validation is resumed."""
    folder = fold_folder(Path(cfg.output_dir).absolute(), fold)
    resume = str(folder) if cfg.resume is not None and last_checkpoint(folder) is not None else None
    return cfg.with_values({"data.fold": fold, "output_dir": str(folder), "resume": resume})
