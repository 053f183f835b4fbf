"""Sweepers replayed on a table of learning curves (`sweep_table.py`), with simulated workers and the table's own durations.

    python benchmarks/sweep_replay.py benchmarks/digit_strings_curves.csv.gz --workers 1 4 --seeds 100 [--only halving,official]

A sweeper proposes a point of the space and gets the config of the table that is nearest to it and was not trained yet. The clock is the
CPU time that each epoch took, and what it costs to begin a trial and to continue a paused one. Said for each sweeper: the time until a
trial has come to its end with a word error rate within 2 % of the best that the table has (median over seeds, in trainings of mean length),
and the regret after the time of 10 and of 30 trainings a worker. The rules of `hydra.sweeper.pruner` are the ones that sweeps use.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import heapq
import io
import itertools
import math
import statistics
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from sweep_space import LOG_SCALE, RANGES, draw, scaled

from speechtrain.sweep.study.curve_model import features_of
from speechtrain.sweep.study.freeze_thaw import DEFAULT_SHARE, FreezeThaw, FreezeThawSampler
from speechtrain.sweep.study.internals import StudyWithout
from speechtrain.sweep.study.promotion import KeepBest, PromotionRule, SuccessiveHalving
from speechtrain.sweep.study.standings import Progress, Standings

BEGIN_SECONDS = 1.0
"""CPU time of a warm trial that is neither training nor validation (`sweep.py trial`)."""
CONTINUE_SECONDS = 1.5
"""The same of a trial that pauses and is continued: its checkpoint is written and read as well."""
TOLERANCE = 1.02


@dataclass(frozen=True)
class Table:
    """Learning curves of random configs.

    Attributes:
        params: the config of each row.
        points: (configs, parameters), each parameter scaled to 0 to 1.
        wer: (configs, epochs) of validation; the last value goes on where a training diverged.
        loss: (configs, epochs) of validation.
        seconds: (configs, epochs) of CPU time that each epoch took.
    """

    params: list[dict[str, float | int]]
    points: NDArray[np.float64]
    wer: NDArray[np.float64]
    loss: NDArray[np.float64]
    seconds: NDArray[np.float64]

    @property
    def target(self) -> float:
        """Return the word error rate that counts as found."""
        return float(self.wer[:, -1].min()) * TOLERANCE

    def nearest(self, params: dict[str, float | int], free: NDArray[np.bool_]) -> int:
        """Return the free row that is nearest to a proposed point."""
        distance = ((self.points - scaled(params)) ** 2).sum(axis=1)
        distance[~free] = np.inf
        return int(distance.argmin())


def read(path: Path, seed: str = "1") -> Table:
    """Read the rows of one seed."""
    curves: dict[int, list[dict[str, str]]] = {}
    for row in csv.DictReader(io.StringIO(gzip.decompress(path.read_bytes()).decode())):
        if row["seed"] == seed:
            curves.setdefault(int(row["config"]), []).append(row)
    epochs = max(map(len, curves.values()))

    def column(name: str) -> NDArray[np.float64]:
        values = [[float(row[name]) for row in rows] for rows in curves.values()]
        return np.array([each + [each[-1]] * (epochs - len(each)) for each in values])

    seconds = np.diff(column("cpu_seconds"), axis=1, prepend=0.0)
    params = [draw(number) for number in curves]
    loss = np.nan_to_num(column("val/loss"), nan=np.inf)
    return Table(params, np.stack([scaled(each) for each in params]), np.nan_to_num(column("val/wer"), nan=1.0), loss, seconds)


DISTRIBUTIONS: dict[str, BaseDistribution] = {
    key: (IntDistribution if isinstance(low, int) else FloatDistribution)(low, high, log=key in LOG_SCALE)
    for key, (low, high) in RANGES.items()
}


class Sweeper:
    """Says what a free worker does next.

    Args:
        table: the curves.
        seed: seed of all that is drawn.
    """

    def __init__(self, table: Table, seed: int) -> None:
        self.table = table
        self.random = np.random.default_rng(seed)
        self.free = np.ones(len(table.params), dtype=bool)

    @abstractmethod
    def next(self) -> tuple[int, int] | None:
        """Return (row, epochs that it has) of the training to begin or to continue; None: the worker waits for others."""

    @abstractmethod
    def goes_on(self, row: int, epochs: int) -> bool:
        """Return whether a training goes on after so many epochs; asked after each but the last one."""

    def ended(self, row: int) -> None:
        """Note that a training has come to its end."""


class RandomOrder(Sweeper):
    """Trainings in a random order, none stopped."""

    def next(self) -> tuple[int, int] | None:
        """Return the next row."""
        rows = np.flatnonzero(self.free)
        if not len(rows):
            return None
        row = int(self.random.choice(rows))
        self.free[row] = False
        return row, 0

    def goes_on(self, row: int, epochs: int) -> bool:  # noqa: ARG002
        """Return True."""
        return True


class Asked(Sweeper):
    """Optuna's sampler and pruner, asked whenever a worker is free."""

    def __init__(self, table: Table, seed: int, sampler: str, pruner: optuna.pruners.BasePruner, batch: int = 0) -> None:
        super().__init__(table, seed)
        samplers: dict[str, Callable[..., optuna.samplers.BaseSampler]] = {
            "tpe": optuna.samplers.TPESampler,
            "random": optuna.samplers.RandomSampler,
            "freeze_thaw": lambda seed: OfTable(self, seed),
        }
        made = optuna.create_study(study_name="replay", pruner=pruner)
        self.study = StudyWithout("replay", made._storage, samplers[sampler](seed=seed), pruner)
        self.study.hidden = self.hidden = set()
        self.hidden: set[int]
        self.trials: dict[int, optuna.Trial] = {}
        self.running = 0
        self.batch = batch
        self.asked: list[int] = []
        self.told: list[tuple[int, float]] = []

    def propose(self) -> int | None:
        """Return the free row nearest to what the sampler proposes, told to it as that row."""
        if not self.free.any():
            return None
        scratch = self.study.ask()
        proposed: dict[str, float | int] = {}
        for key, (low, high) in RANGES.items():
            if isinstance(low, int):
                proposed[key] = scratch.suggest_int(key, low, high, log=key in LOG_SCALE)
            else:
                proposed[key] = scratch.suggest_float(key, low, high, log=key in LOG_SCALE)
        self.study.tell(scratch, state=optuna.trial.TrialState.FAIL)
        row = self.table.nearest(proposed, self.free)
        self.free[row] = False
        self.study.enqueue_trial(self.table.params[row])
        trial = self.study.ask()
        for key, (low, high) in RANGES.items():
            if isinstance(low, int):
                trial.suggest_int(key, low, high, log=key in LOG_SCALE)
            else:
                trial.suggest_float(key, low, high, log=key in LOG_SCALE)
        self.trials[row] = trial
        return row

    def next(self) -> tuple[int, int] | None:
        """Return what the sampler proposes; in batches, the next of the batch, and None until all of it have ended."""
        if self.batch and not self.asked:
            if self.running:
                return None
            for row, value in self.told:
                self.study.tell(self.trials[row], value)
            self.told = []
            self.asked = [row for row in (self.propose() for _ in range(self.batch)) if row is not None]
        row = self.asked.pop(0) if self.asked else None if self.batch else self.propose()
        if row is None:
            return None
        self.running += 1
        return row, 0

    def goes_on(self, row: int, epochs: int) -> bool:
        """Return what the pruner says."""
        trial = self.trials[row]
        trial.report(float(self.table.wer[row, epochs - 1]), epochs - 1)
        if isinstance(self.study.pruner, optuna.pruners.NopPruner) or not trial.should_prune():
            return True
        self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        self.running -= 1
        return False

    def ended(self, row: int) -> None:
        """Tell the result, or keep it until the batch is over."""
        self.running -= 1
        if self.batch:
            self.told.append((row, float(self.table.wer[row, -1])))
        else:
            self.study.tell(self.trials[row], float(self.table.wer[row, -1]))


class OfTable(FreezeThawSampler):
    """Proposes free rows of the table alone, as Syne Tune's searchers do there, so that nothing is rounded.

    Args:
        sweeper: knows which rows are free.
        seed: seed of all that is drawn.
    """

    def __init__(self, sweeper: Sweeper, seed: int) -> None:
        super().__init__(seed)
        self.sweeper = sweeper

    def _candidates(self, *_: object) -> list[dict[str, float | int]]:
        return [self.sweeper.table.params[row] for row in np.flatnonzero(self.sweeper.free)]


class FreezeThawOfTable(FreezeThaw):
    """The rule, for which a new trial is a free row of the table, and no paused one is given up.

    Args:
        sweeper: knows which rows are free.
    """

    def __init__(self, sweeper: Continued) -> None:
        epochs = sweeper.table.wer.shape[1]
        super().__init__(min_resource=math.ceil(DEFAULT_SHARE * epochs), least_probability=0.0, epochs=epochs)
        self.sweeper = sweeper

    def _new_configs(self, seen: Sequence[Mapping[str, float]]) -> Sequence[Mapping[str, float]]:
        rows = np.flatnonzero(self.sweeper.free)
        return [self.sweeper.features_of_row(row) for row in rows] or seen


class Continued(Asked):
    """A rule of `hydra.sweeper.pruner` by which trainings pause and are continued.

    Args:
        table: the curves.
        seed: seed of all that is drawn.
        rule: which ones pause, and which are continued; None: freeze-thaw, which has to know the table.
        sampler: proposes what is begun.
        n_trials: trainings that are begun.
        loss: whether trainings are compared by their loss.
    """

    def __init__(self, table: Table, seed: int, rule: PromotionRule | None, sampler: str, n_trials: int, *, loss: bool = False) -> None:
        super().__init__(table, seed, sampler, optuna.pruners.NopPruner())
        self.rule = rule or FreezeThawOfTable(self)
        self.standings = Standings(self.rule, "minimize")
        self.n_trials = n_trials
        self.compared = table.loss if loss else table.wer
        self.order: list[int] = []
        self.at: dict[int, int] = {}
        self.open: set[int] = set()
        self.complete: set[int] = set()

    def next(self) -> tuple[int, int] | None:
        """Return a paused training to continue, or a new one."""
        progress = Progress(len(self.order) >= self.n_trials, self.open, self.complete)
        slot = self.rule.next_slot(self.standings, progress)
        if slot is not None:
            row, epochs = self.order[slot], self.at[slot]
            self.standings.put(slot, self._values(row, epochs), None)
            self._continue(row, epochs)
        elif progress.all_begun or (new := self.propose()) is None:
            return None
        else:
            row, epochs, slot = new, 0, len(self.order)
            self.order.append(row)
            if self.rule.uses_features:
                self.standings.features[slot] = self.features_of_row(row)
        self.open.add(slot)
        return row, epochs

    def features_of_row(self, row: int) -> dict[str, float]:
        """Return the config of a row as a rule sees it."""
        return features_of(self.table.params[row], DISTRIBUTIONS)

    def _continue(self, row: int, epochs: int) -> None:
        """Have a new trial go on from a paused one, which samplers see no more."""
        self.hidden.add(self.trials[row].number)
        paused = self._stored(row)
        running = optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING,
            params=paused.params,
            distributions=paused.distributions,
            intermediate_values=self._values(row, epochs),
        )
        trial_id = self.study._storage.create_new_trial(self.study._study_id, template_trial=running)
        self.trials[row] = optuna.Trial(self.study, trial_id)

    def _stored(self, row: int) -> optuna.trial.FrozenTrial:
        return self.study._storage.get_trial(self.trials[row]._trial_id)

    def _values(self, row: int, epochs: int) -> dict[int, float]:
        return dict(enumerate(self.compared[row, :epochs].tolist()))

    def goes_on(self, row: int, epochs: int) -> bool:
        """Return what the rule says."""
        slot = self.order.index(row)
        self.at[slot] = epochs
        self.trials[row].report(float(self.compared[row, epochs - 1]), epochs - 1)
        if self.rule.rung_at(epochs) is None:
            return True
        self.standings.put(slot, self._values(row, epochs), None)
        if self.rule.rung_at(epochs) == self.rule.rung_at(epochs - 1) or self.standings.goes_on(slot, epochs):
            return True
        self.standings.put(slot, self._values(row, epochs), epochs)
        self.open.discard(slot)
        self.study.tell(self.trials[row], state=optuna.trial.TrialState.PRUNED)
        return False

    def ended(self, row: int) -> None:
        """Tell the result."""
        slot = self.order.index(row)
        self.open.discard(slot)
        self.complete.add(slot)
        self.trials[row].report(float(self.compared[row, -1]), self.compared.shape[1] - 1)
        self.standings.put(slot, self._values(row, self.compared.shape[1]), None)
        self.study.tell(self.trials[row], float(self.table.wer[row, -1]))


def replay(sweeper: Sweeper, workers: int) -> list[tuple[float, float]]:
    """Return (seconds, best word error rate of what has ended) whenever it fell, until the target is reached or all is done."""
    table = sweeper.table
    epochs = table.wer.shape[1]
    order = itertools.count()
    events: list[tuple[float, int, int, int, int]] = []  # time, order, worker, row, epochs that it has then
    idle = list(range(workers))
    clock, best = 0.0, np.inf
    curve: list[tuple[float, float]] = []
    while True:
        waiting = []
        for worker in idle:
            task = sweeper.next()
            if task is None:
                waiting.append(worker)
                continue
            row, has = task
            start = clock + (CONTINUE_SECONDS if has else BEGIN_SECONDS)
            heapq.heappush(events, (start + table.seconds[row, has], next(order), worker, row, has + 1))
        idle = waiting
        if not events or best <= table.target:
            return curve
        clock, _, worker, row, has = heapq.heappop(events)
        if has == epochs:
            sweeper.ended(row)
            idle.append(worker)
            if table.wer[row, -1] < best:
                best = float(table.wer[row, -1])
                curve.append((clock, best))
        elif sweeper.goes_on(row, has):
            heapq.heappush(events, (clock + table.seconds[row, has], next(order), worker, row, has + 1))
        else:
            idle.append(worker)


def sweepers(workers: int) -> dict[str, Callable[[Table, int], Sweeper]]:
    """Return each sweeper by its name."""
    none = optuna.pruners.NopPruner
    return {
        "random": RandomOrder,
        "official (TPE, batches)": lambda t, s: Asked(t, s, "tpe", none(), batch=workers),
        "TPE": lambda t, s: Asked(t, s, "tpe", none()),
        "TPE, median": lambda t, s: Asked(t, s, "tpe", optuna.pruners.MedianPruner()),
        "TPE, ASHA": lambda t, s: Asked(t, s, "tpe", optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)),
        "TPE, Hyperband": lambda t, s: Asked(t, s, "tpe", optuna.pruners.HyperbandPruner(1, t.wer.shape[1], 3)),
        "one epoch, best 3": lambda t, s: Continued(t, s, KeepBest(1, 3), "random", len(t.params)),
        "halving 1": lambda t, s: Continued(t, s, SuccessiveHalving(1, 3), "tpe", len(t.params)),
        "halving 3": lambda t, s: Continued(t, s, SuccessiveHalving(3, 3), "tpe", len(t.params)),
        "halving 3, random": lambda t, s: Continued(t, s, SuccessiveHalving(3, 3), "random", len(t.params)),
        "freeze-thaw": lambda t, s: Continued(t, s, None, "freeze_thaw", len(t.params), loss=True),
        "freeze-thaw, WER": lambda t, s: Continued(t, s, None, "freeze_thaw", len(t.params)),
        "freeze-thaw, TPE": lambda t, s: Continued(t, s, None, "tpe", len(t.params), loss=True),
        "halving 3, loss": lambda t, s: Continued(t, s, SuccessiveHalving(3, 3), "tpe", len(t.params), loss=True),
    }


def at(curve: Sequence[tuple[float, float]], seconds: float) -> float:
    """Return the best word error rate that was known at a time."""
    return min((value for when, value in curve if when <= seconds), default=1.0)


def print_row(name: str, table: Table, workers: int, seeded: Sequence[Sweeper]) -> None:
    """Replay a sweeper with each of its seeds, and print what it reached and when."""
    length = float(table.seconds.sum(axis=1).mean()) + BEGIN_SECONDS
    best = float(table.wer[:, -1].min())
    curves = [replay(each, workers) for each in seeded]
    times = [curve[-1][0] if curve and curve[-1][1] <= table.target else np.inf for curve in curves]
    regrets = [statistics.median(at(curve, count * length) - best for curve in curves) for count in (10, 30)]
    print(
        f"{workers} workers  {name:26s} {statistics.median(times) / length:7.1f} trainings to the target,"
        f" found {np.mean(np.isfinite(times)):4.0%}, regret {100 * regrets[0]:.2f} and {100 * regrets[1]:.2f} points",
        flush=True,
    )


def arguments(description: str, seeds: int) -> argparse.Namespace:
    """Read the command line: the table, numbers of workers, seeds, and which sweepers."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--only", type=lambda text: tuple(text.split(",")), default=("",), help="names, or their beginnings, with commas")
    return parser.parse_args()


def main() -> None:
    """Replay every sweeper and print the table."""
    given = arguments(__doc__, 100)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    table = read(given.table)
    length = float(table.seconds.sum(axis=1).mean()) + BEGIN_SECONDS
    best = float(table.wer[:, -1].min())
    print(f"{len(table.params)} configs, {table.wer.shape[1]} epochs, {length:.0f} s a training; best WER {100 * best:.2f} %")
    for workers in given.workers:
        for name, make in sweepers(workers).items():
            if not name.startswith(given.only):
                continue
            print_row(name, table, workers, [make(table, seed) for seed in range(given.seeds)])


if __name__ == "__main__":
    main()
