"""Trains a trial of a speech sweep: once for each seed, paused or pruned between epochs, pruned between seeds and folds.

`app/job.py` calls `run_trial` when `SPEECHTRAIN_TRIAL` in the environment names a trial, so it works under any launcher, and needs no
sweeper to be alive when it ends. What lies below this file in `sweep/` works for any Hydra program; how a trial is claimed and recorded is
in `handle.py`.
"""

from __future__ import annotations

import contextlib
import logging
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict

from speechtrain.backends.callbacks import Callback, Control
from speechtrain.backends.checkpoint_files import FOLDER as CHECKPOINTS
from speechtrain.config.compose import check
from speechtrain.config.targets import Direction
from speechtrain.console import printing_to
from speechtrain.errors import RunPaused, RunPruned, UserError
from speechtrain.sweep.study.cost import COST
from speechtrain.sweep.study.objectives import Constraint
from speechtrain.sweep.trial.attempts import OUTPUT, RUN_IDS, continue_earlier_attempt, delete_checkpoints, fetching
from speechtrain.sweep.trial.close_runs import delete_last
from speechtrain.sweep.trial.context import TrialContext
from speechtrain.sweep.trial.handle import TrialCancelledError, TrialHandle, own_trial
from speechtrain.sweep.trial.meter import Meter
from speechtrain.sweep.trial.outcome import Outcome
from speechtrain.tracking.run_folder import read_run_file
from speechtrain.training.cross_validation import is_cross_validation
from speechtrain.training.result import Result, finished_result

log = logging.getLogger(__name__)

_RUN, _SEED_VALUES = "run", "seed_values"
"""User attributes of a trial: folder and MLflow run id of its first seed's run, and the objectives of each seed so far."""


class TrialCallback(Callback):
    """Reports epochs to the study and ends a training that the pruner, or a constraint on the model, rules out, or pauses it.

    Args:
        trial: the trial that is trained.
        metric: name of the metric to report.
        reports: whether the epochs of this training are compared with those of other trials; only the first seed's are.
    """

    def __init__(self, trial: TrialHandle, metric: str, *, reports: bool) -> None:
        self.trial = trial
        self.metric = metric
        self.reports = reports and len(trial.context.directions) == 1
        self._epochs: int | None = None

    def on_train_start(self, total_epochs: int, first_epoch: int) -> None:  # noqa: ARG002
        """Note when the training is over, for a trial that has come to its end does not pause."""
        self._epochs = total_epochs

    def on_model_ready(self, facts: Mapping[str, float]) -> None:
        """Check the constraints on what is known of the model before it is trained.

        Raises:
            RunPruned: one of them is broken.
        """
        constraints = [item for item in map(Constraint.parse, self.trial.context.constraints) if item.metric in facts]
        broken = [f"{item} (it is {facts[item.metric]:g})" for item in constraints if item.violation(facts[item.metric]) > 0]
        if broken:
            self.trial.set_constraints({str(item): item.violation(facts[item.metric]) for item in constraints})
            raise RunPruned(f"breaks {' and '.join(broken)}")

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, float], control: Control) -> None:
        """Report the metric and ask whether to go on: the pruner, and whether the trial is cancelled."""
        compares = self.reports and self.metric in metrics
        if compares:
            self.trial.report(metrics[self.metric], epoch)
        what = f"{self.metric} {metrics[self.metric]:.4g} after epoch {epoch + 1}" if compares else ""
        if self.trial.is_cancelled():
            control.prune(f"cancelled after epoch {epoch + 1}")
        elif compares and self.trial.should_prune():
            control.prune(what)
        elif compares and control.stop_reason is None and epoch + 1 != self._epochs and self.trial.should_pause(epoch):
            control.pause(what)


class RunNote(Callback):
    """Stores with the trial which runs it has begun in the trackers, for they may have to be closed from elsewhere.

    Args:
        trial: the trial that is trained.
        folder: folder of its run.
    """

    def __init__(self, trial: TrialHandle, folder: Path) -> None:
        self._trial = trial
        self._folder = folder

    def on_model_ready(self, facts: Mapping[str, float]) -> None:  # noqa: ARG002
        """Store the ids, which are known once the runs are open."""
        if run_ids := read_run_file(self._folder).get("run_ids"):
            self._trial.set_attribute(RUN_IDS, run_ids)


class CostMeter(Callback):
    """Stores with the trial, after every epoch, what it has cost, so that this is known however the trial ends.

    Args:
        trial: the trial that is trained.
        planned: epochs that it trains if nothing ends it.
    """

    def __init__(self, trial: TrialHandle, planned: int) -> None:
        self.trial = trial
        self.planned = planned
        self.epochs = 0
        self.audio = 0.0
        self._meter = Meter()

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, float], control: Control) -> None:  # noqa: ARG002
        """Add an epoch to the cost, in seconds of CPU time, of GPUs and of audio."""
        self.epochs += 1
        self.audio += metrics.get("train/audio_s_per_s", 0.0) * metrics.get("time/step_s", 0.0)
        cost = {**self._meter.read(), "audio_s": self.audio, "epochs": self.epochs, "planned_epochs": self.planned}
        self.trial.set_attribute(COST, {name: round(value, 2) for name, value in cost.items()})


def run_trial(context: TrialContext, cfg: DictConfig, overrides: Sequence[str]) -> float | list[float] | None:
    """Train as the trial's config says and return its objectives; None if it was pruned, or cancelled before it started.

    Raises:
        Exception: what the training raised; the trial's record says so.
    """
    folder = Path(cfg.output_dir)
    try:
        with own_trial(context) as trial, _output(folder, show=context.show_output):
            values = _train_or_prune(trial, cfg, overrides)
            trial.end(Outcome(context.number, "done", value=values))
    except TrialCancelledError as error:
        log.warning("trial %d %s; nothing is done", context.number, error)
        return None
    except RunPruned:
        return None
    return values[0] if len(values) == 1 else values


def _train_or_prune(trial: TrialHandle, cfg: DictConfig, overrides: Sequence[str]) -> list[float]:
    try:
        before = continue_earlier_attempt(trial, Path(cfg.output_dir), fetching(cfg, seeds=trial.context.seeds > 1))
        last = trial.last_reported()
        if before and last is not None and last + 1 < cfg.trainer.epochs and trial.should_pause(last):
            raise RunPaused(f"after epoch {last + 1}, when the attempt before this one ended")  # it died on the way
        return _SeedTrainings(trial, cfg, overrides, before).run()
    except RunPaused:
        raise
    except RunPruned:
        if not trial.context.keep_pruned:
            delete_checkpoints(Path(cfg.output_dir))
            delete_last(cfg, Path(cfg.output_dir))
        raise


class _SeedTrainings:
    """Trains a trial's config with one seed after another.

    Args:
        trial: the trial that is trained.
        cfg: its composed config.
        overrides: its command line.
        before: facts that an earlier attempt stored with its trial, from whose checkpoints this one goes on.

    Raises:
        ConfigError: the config has problems.
    """

    def __init__(self, trial: TrialHandle, cfg: DictConfig, overrides: Sequence[str], before: Mapping[str, Any]) -> None:
        check(cfg)
        self._trial = trial
        self._context = trial.context
        self._cfg = cfg
        self._overrides = overrides
        self._metrics = list(self._context.objectives) or [str(cfg.objective.metric)]
        self._folds = int(cfg.data.folds) if is_cross_validation(cfg) else 1
        self._run_before = before.get(_RUN, {})
        seeds = before.get(_SEED_VALUES, [])
        self._seeds_before = [list(values) if isinstance(values, list) else [values] for values in seeds][: self._context.seeds]
        self._meter = CostMeter(trial, planned=cfg.trainer.epochs * self._context.seeds * self._folds)

    def run(self) -> list[float]:
        """Return the objectives: those of the one training, or the means over the seeds.

        Raises:
            RunPruned: the trial is not worth finishing, or breaks a constraint.
        """
        by_seed = list(self._seeds_before)
        if by_seed:
            folder = Path(_with_seed(self._cfg, 0).output_dir)
            self._trial.set_attribute(_RUN, {**self._run_before, "folder": str(folder)})
        for index in range(len(by_seed), self._context.seeds):
            result = self._train(index)
            directions = self._context.directions
            by_seed.append([_value(result, metric, direction) for metric, direction in zip(self._metrics, directions, strict=True)])
            if index == 0:
                self._store_run(result)
            if self._context.seeds > 1:
                self._store_seeds(by_seed)
        return [statistics.fmean(column) for column in zip(*by_seed, strict=True)]

    def _train(self, index: int) -> Result:
        from speechtrain.train import train

        context = self._context
        cfg = _resumed(self._cfg if context.seeds == 1 else _with_seed(self._cfg, index))
        if cfg.resume is not None and (finished := finished_result(Path(cfg.output_dir))) is not None:
            return finished  # of an earlier attempt, which died before its result was recorded
        callback = TrialCallback(self._trial, context.report or self._metrics[0], reports=index == 0)
        prunes_folds = index == 0 and self._folds > 1
        wants_latency = "model/latency_ms" in self._metrics or any("latency_ms" in text for text in context.constraints)
        return train(
            cfg,
            overrides=self._overrides,
            callbacks=[RunNote(self._trial, Path(cfg.output_dir)), callback, self._meter],
            after_fold=FoldPruner(self._trial, callback, self._metrics[0], self._folds) if prunes_folds else None,
            tags=context.tags,
            run_name=" ".join(filter(None, [context.name, f"seed={cfg.seed}" if context.seeds > 1 else ""])) or None,
            parents=context.parents,
            brief=True,
            measure_latency=wants_latency,
            reuse_data=True,
        )

    def _store_run(self, result: Result) -> None:
        """Store with the trial by how much it breaks each constraint, its run's folder and its MLflow run id."""
        if self._context.constraints:
            self._trial.set_constraints(violations(result, [Constraint.parse(text) for text in self._context.constraints]))
        run = {"folder": str(result.folder)}
        if "mlflow" in result.run_ids:
            run["mlflow_run_id"] = result.run_ids["mlflow"]
        self._trial.set_attribute(_RUN, run)

    def _store_seeds(self, by_seed: Sequence[Sequence[float]]) -> None:
        """Store the values of the seeds so far, and after the last one their deviation.

        Raises:
            RunPruned: the mean so far is worse than the median of other trials.
        """
        self._trial.set_attribute(_SEED_VALUES, [values[0] if len(values) == 1 else values for values in by_seed])
        if len(by_seed) < self._context.seeds:
            _prune_if_worse(self._trial, "seed", [values[0] for values in by_seed], self._context.seeds)
            return
        deviations = [statistics.stdev(column) for column in zip(*by_seed, strict=True)]
        self._trial.set_attribute("deviation", deviations[0] if len(deviations) == 1 else deviations)


def _with_seed(cfg: DictConfig, index: int) -> DictConfig:
    seeded = cfg.copy()
    with open_dict(seeded):
        seeded.seed = cfg.seed + index
        seeded.output_dir = str(Path(cfg.output_dir) / f"seed_{seeded.seed}")
    return seeded


def _resumed(cfg: DictConfig) -> DictConfig:
    """Return the config of a run that goes on from the checkpoints in its folder; unchanged if there are none."""
    folder = Path(cfg.output_dir)
    if cfg.resume is not None or not any(folder.glob(f"**/{CHECKPOINTS}/*")):
        return cfg
    resumed = cfg.copy()
    with open_dict(resumed):
        resumed.resume = str(folder)
    return resumed


def _value(result: Result, metric: str, direction: Direction) -> float:
    """Return an objective of a finished run: its best epoch's value, or what was measured once."""
    best = (min if direction == "minimize" else max)((epoch[metric] for epoch in result.history if metric in epoch), default=None)
    value = best if best is not None else result.metrics.get(metric)
    if value is None:
        names = sorted({*result.metrics, *(name for epoch in result.history for name in epoch)})
        raise UserError(f"the run measured no '{metric}', only {', '.join(names)}\n    -> set objective.metric or hydra.sweeper.objectives")
    return float(value)


def violations(result: Result, constraints: Sequence[Constraint]) -> dict[str, float]:
    """Return by how much each constraint is broken (above 0 where it is) at the epoch that comes closest to meeting it."""
    best = {item: _value(result, item.metric, "minimize" if item.upper else "maximize") for item in constraints}
    return {str(item): item.violation(value) for item, value in best.items()}


class FoldPruner:
    """Ends a cross-validation after its first folds if other trials did better in as many.

    Args:
        trial: the trial that is trained.
        callback: reports epochs; those of the first fold are compared with other trials'.
        metric: name of the first objective.
        count: folds of a trial.
    """

    def __init__(self, trial: TrialHandle, callback: TrialCallback, metric: str, count: int) -> None:
        self._trial = trial
        self._callback = callback
        self._metric = metric
        self._count = count

    def __call__(self, results: Sequence[Result]) -> None:
        """Store the values of the folds so far.

        Raises:
            RunPruned: their mean is worse than the median of other trials.
        """
        self._callback.reports = False
        direction = self._trial.context.directions[0]
        values = [_value(result, self._metric, direction) for result in results]
        self._trial.set_attribute("fold_values", values)
        if len(values) < self._count:
            _prune_if_worse(self._trial, "fold", values, self._count)


def _prune_if_worse(trial: TrialHandle, kind: str, values: Sequence[float], total: int) -> None:
    """Compare the mean of a trial's seeds, or folds, so far with those of the completed trials after as many.

    Raises:
        RunPruned: it is worse than their median.
    """
    context = trial.context
    if len(context.directions) > 1:
        return
    count = len(values)
    stored = (other.user_attrs.get(f"{kind}_values", []) for other in trial.completed_trials())
    others = [statistics.fmean(theirs[:count]) for theirs in stored if len(theirs) >= count]
    if len(others) < context.seeds_startup_trials:
        return
    mean, median = statistics.fmean(values), statistics.median(others)
    if mean > median if context.directions[0] == "minimize" else mean < median:
        raise RunPruned(f"mean {mean:.4g} of {count} of {total} {kind}s, the median of others is {median:.4g}")


@contextlib.contextmanager
def _output(folder: Path, *, show: bool) -> Iterator[None]:
    """Send what the job prints to `output.log` in its folder, so that the terminal has one line for each trial."""
    if show:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / OUTPUT).open("a", encoding="utf-8") as file, printing_to(file):
        yield
