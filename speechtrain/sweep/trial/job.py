"""The job's side of a trial: it reports each epoch, asks whether to stop, and records the result itself.

A job learns from `SPEECHTRAIN_TRIAL` in its environment which trial it is, so it works under any launcher, and needs no sweeper to be
alive when it ends.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, open_dict
from optuna.trial import TrialState

from speechtrain.backends.callbacks import Callback, Control
from speechtrain.backends.checkpoint_files import FOLDER
from speechtrain.config.compose import check
from speechtrain.config.targets import Direction
from speechtrain.console import console, errors
from speechtrain.errors import RunPruned, UserError
from speechtrain.sweep.study.attributes import complete, fail, prune
from speechtrain.sweep.study.cost import COST
from speechtrain.sweep.study.objectives import Constraint
from speechtrain.sweep.trial.context import Attached, TrialContext, time_limit
from speechtrain.training.cross_validation import is_cross_validation

if TYPE_CHECKING:
    from speechtrain.training.result import Result

log = logging.getLogger(__name__)


class TrialCallback(Callback):
    """Reports epochs to the study and ends what is hopeless.

    Args:
        reports: whether this run is the one whose epochs are compared with other trials' (the first seed).
    """

    def __init__(self, attached: Attached, metric: str, *, reports: bool) -> None:
        self.attached = attached
        self.metric = metric
        self.reports = reports and len(attached.context.directions) == 1
        self.facts: dict[str, float] = {}

    def on_model_ready(self, facts: Mapping[str, float]) -> None:
        """End before training what breaks a constraint on the model."""
        self.facts.update(facts)
        constraints = [Constraint.parse(text) for text in self.attached.context.constraints]
        known = [item for item in constraints if item.metric in facts]
        broken = [f"{item} (it is {facts[item.metric]:g})" for item in known if item.violation(facts[item.metric]) > 0]
        if broken:
            self.attached.constrain({str(item): item.violation(facts[item.metric]) for item in known})
            raise RunPruned(f"breaks {' and '.join(broken)}")

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, float], control: Control) -> None:
        """Report, and ask."""
        if not self.reports or self.metric not in metrics:
            return
        self.attached.report(metrics[self.metric], epoch)
        if self.attached.context.pruner is not None and self.attached.should_prune():
            control.prune(f"{self.metric} {metrics[self.metric]:.4g} after epoch {epoch + 1}")


class Meter(Callback):
    """Notes what a trial costs, after every epoch, so that it is known however the trial ends.

    Args:
        planned: epochs that it runs if nothing ends it.
    """

    def __init__(self, attached: Attached, planned: int) -> None:
        self.attached = attached
        self.planned = planned
        self.epochs = 0
        self.audio = 0.0
        self._began = time.process_time()

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, float], control: Control) -> None:  # noqa: ARG002
        """Add an epoch."""
        self.epochs += 1
        self.audio += metrics.get("train/audio_s_per_s", 0.0) * metrics.get("time/step_s", 0.0)
        spent = {"cpu_s": time.process_time() - self._began, "audio_s": self.audio, "epochs": self.epochs, "planned_epochs": self.planned}
        self.attached.note(COST, {name: round(value, 2) for name, value in spent.items()})


def run_trial(context: TrialContext, cfg: DictConfig, overrides: Sequence[str]) -> float | list[float] | None:
    """Train as the trial's config says and record how it went.

    Raises:
        Exception: what the training raised, after it was recorded.
    """
    attached = Attached(context)
    if not attached.claim():
        log.warning("trial %d was given up before it began; nothing is done", context.number)
        return None
    folder = Path(cfg.output_dir)
    with _output(folder, show=context.show_output), time_limit(context.timeout), attached.beating():
        try:
            values = _values(attached, cfg, overrides)
        except RunPruned as pruned:
            if not context.keep_pruned:
                for checkpoints in folder.glob(f"**/{FOLDER}"):
                    shutil.rmtree(checkpoints, ignore_errors=True)
            prune(attached.storage, context.id, str(pruned))
            return None
        except KeyboardInterrupt:
            fail(attached.storage, context.id, "interrupted", charged=False)
            raise
        except UserError as error:
            fail(attached.storage, context.id, f"{type(error).__name__}: {error}", final=True)
            raise
        except Exception as error:
            fail(attached.storage, context.id, f"{type(error).__name__}: {error}")
            raise
        complete(attached.storage, context.id, values)
    return values[0] if len(values) == 1 else values


def _values(attached: Attached, cfg: DictConfig, overrides: Sequence[str]) -> list[float]:
    """The objectives of a trial: of its run, or the means over its seeds."""
    from speechtrain.train import train

    context = attached.context
    check(cfg)
    metrics = list(context.objectives) or [str(cfg.objective.metric)]
    wants_latency = "model/latency_ms" in metrics or any("latency_ms" in text for text in context.constraints)
    by_seed: list[list[float]] = []
    folds = int(cfg.data.folds) if is_cross_validation(cfg) else 1
    meter = Meter(attached, planned=cfg.trainer.epochs * context.seeds * folds)
    for index in range(context.seeds):
        one = cfg if context.seeds == 1 else _with_seed(cfg, index)
        callback = TrialCallback(attached, context.report or metrics[0], reports=index == 0)
        name = " ".join(filter(None, [context.name, f"seed={one.seed}" if context.seeds > 1 else ""])) or None
        result = train(
            one,
            overrides=overrides,
            callbacks=[callback, meter],
            after_fold=_Folds(attached, callback, metrics[0], folds) if index == 0 and folds > 1 else None,
            tags=context.tags,
            run_name=name,
            parents=context.parents,
            brief=True,
            measure_latency=wants_latency,
            reuse_data=True,
        )
        by_seed.append([_value(result, metric, direction) for metric, direction in zip(metrics, context.directions, strict=True)])
        if index == 0:
            _note_run(attached, result)
        if context.seeds > 1:
            attached.note("seed_values", [values[0] if len(values) == 1 else values for values in by_seed])
            if index + 1 < context.seeds and (worse := _is_hopeless(attached, "seed", [values[0] for values in by_seed], context.seeds)):
                raise RunPruned(worse)
    if context.seeds > 1:
        deviations = [statistics.stdev(column) for column in zip(*by_seed, strict=True)]
        attached.note("deviation", deviations[0] if len(deviations) == 1 else deviations)
    return [statistics.fmean(column) for column in zip(*by_seed, strict=True)]


def _with_seed(cfg: DictConfig, index: int) -> DictConfig:
    seeded = cfg.copy()
    with open_dict(seeded):
        seeded.seed = cfg.seed + index
        seeded.output_dir = str(Path(cfg.output_dir) / f"seed_{seeded.seed}")
    return seeded


def _value(result: Result, metric: str, direction: Direction) -> float:
    """An objective of a finished run: its best epoch's, or what was measured once."""
    best = (min if direction == "minimize" else max)((epoch[metric] for epoch in result.history if metric in epoch), default=None)
    found = best if best is not None else result.metrics.get(metric)
    if found is None:
        known = sorted({*result.metrics, *(name for epoch in result.history for name in epoch)})
        raise UserError(f"the run measured no '{metric}', only {', '.join(known)}\n    -> set objective.metric or hydra.sweeper.objectives")
    return float(found)


def violations(result: Result, constraints: Sequence[Constraint]) -> dict[str, float]:
    """How far each constraint is broken (above 0) at the epoch that comes closest to keeping it."""
    best = {item: _value(result, item.metric, "minimize" if item.upper else "maximize") for item in constraints}
    return {str(item): item.violation(value) for item, value in best.items()}


def _note_run(attached: Attached, result: Result) -> None:
    context = attached.context
    if context.constraints:
        attached.constrain(violations(result, [Constraint.parse(text) for text in context.constraints]))
    notes = {"folder": str(result.folder), **({"mlflow_run_id": result.run_ids["mlflow"]} if "mlflow" in result.run_ids else {})}
    attached.note("run", notes)


class _Folds:
    """Ends a trial after its first folds if others did better in as many.

    Args:
        attached: the trial.
        callback: that reports epochs; those of the first fold are compared with other trials'.
        metric: the first objective.
        count: folds of a trial.
    """

    def __init__(self, attached: Attached, callback: TrialCallback, metric: str, count: int) -> None:
        self._attached = attached
        self._callback = callback
        self._metric = metric
        self._count = count

    def __call__(self, results: Sequence[Result]) -> None:
        """Note the folds so far.

        Raises:
            RunPruned: they are worse than the median of the others'.
        """
        self._callback.reports = False
        direction = self._attached.context.directions[0]
        values = [_value(result, self._metric, direction) for result in results]
        self._attached.note("fold_values", values)
        if len(values) < self._count and (worse := _is_hopeless(self._attached, "fold", values, self._count)):
            raise RunPruned(worse)


def _is_hopeless(attached: Attached, what: str, values: Sequence[float], total: int) -> str | None:
    """Why a trial is not worth another seed or fold: its mean so far is worse than the median of the others' after as many."""
    context = attached.context
    if len(context.directions) > 1:
        return None
    count = len(values)
    others = []
    for trial in attached.storage.get_all_trials(attached.study()._study_id, deepcopy=False, states=(TrialState.COMPLETE,)):
        theirs = trial.user_attrs.get(f"{what}_values", [])
        if len(theirs) >= count:
            others.append(statistics.fmean(theirs[:count]))
    if len(others) < context.seeds_startup_trials:
        return None
    mean, median = statistics.fmean(values), statistics.median(others)
    worse = mean > median if context.directions[0] == "minimize" else mean < median
    return f"mean {mean:.4g} of {count} of {total} {what}s, the median of others is {median:.4g}" if worse else None


@contextlib.contextmanager
def _output(folder: Path, *, show: bool) -> Iterator[None]:
    """What the job prints goes to `output.log` in its folder, so that the terminal holds one line a trial."""
    if show:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    before = console.file, errors.file
    with (folder / "output.log").open("a", encoding="utf-8") as file:
        console.file = errors.file = file
        try:
            yield
        finally:
            console.file, errors.file = before
