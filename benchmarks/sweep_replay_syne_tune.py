"""Syne Tune's schedulers, replayed as `sweep_replay.py` replays ours: the same table, clock and workers.

    uv venv peers
    uv pip install --python peers/bin/python 'syne-tune[gpsearchers,kde]==0.13.0' 'setuptools<81' optuna packages/speechtrain-sweeper
    peers/bin/python benchmarks/sweep_replay_syne_tune.py table.csv.gz --workers 1 4 --seeds 20

An environment of its own, as Syne Tune needs an older NumPy. 0.13 is the last version that has MOBSTER and DyHPO. Its searchers may propose
configs of the table only, so nothing is rounded for them (but for BOHB, which has no such option); trainings that they pause are continued.
"""

from __future__ import annotations

import datetime as dt
import logging
import warnings
from typing import Any

from sweep_replay import Sweeper, Table, arguments, print_row, read
from sweep_space import LOG_SCALE, RANGES
from syne_tune.backend.trial_status import Trial
from syne_tune.config_space import lograndint, loguniform, randint, uniform
from syne_tune.optimizer import baselines
from syne_tune.optimizer.scheduler import SchedulerDecision

KINDS: dict[str, dict[str, Any]] = {
    "ASHA": {"type": "promotion"},
    "ASHA that stops": {"type": "stopping"},
    "BOHB": {"type": "promotion"},
    "MOBSTER": {"type": "promotion"},
    "DyHPO": {},
}


def space() -> dict[str, Any]:
    """Return the space in Syne Tune's words."""
    domains: dict[str, Any] = {}
    for key, (low, high) in RANGES.items():
        whole, log = isinstance(low, int), key in LOG_SCALE
        kind = (lograndint if log else randint) if whole else (loguniform if log else uniform)
        domains[key] = kind(low, high)
    return domains


class SyneTune(Sweeper):
    """A scheduler of Syne Tune, asked whenever a worker is free.

    Args:
        table: the curves.
        seed: seed of all that it draws.
        name: one of `KINDS`.
    """

    def __init__(self, table: Table, seed: int, name: str) -> None:
        super().__init__(table, seed)
        kind = getattr(baselines, name.split()[0])
        options = {"debug_log": False, "restrict_configurations": [dict(each) for each in table.params], "allow_duplicates": False}
        self.scheduler = kind(
            space(),
            metric="wer",
            mode="min",
            resource_attr="epoch",
            max_t=table.wer.shape[1],
            grace_period=1,
            reduction_factor=3,
            random_seed=seed,
            points_to_evaluate=[],
            search_options=options,
            **KINDS[name],
        )
        self.rows = {tuple(sorted(each.items())): row for row, each in enumerate(table.params)}
        self.trials: list[Trial] = []
        self.row_of: list[int] = []
        self.at: dict[int, int] = {}

    def next(self) -> tuple[int, int] | None:
        """Return a training to begin or to continue, as the scheduler suggests."""
        suggestion = self.scheduler.suggest(len(self.trials)) if self.free.any() else None
        if suggestion is None:
            return None
        if not suggestion.spawn_new_trial_id:
            row = self.row_of[suggestion.checkpoint_trial_id]
            return row, self.at[row]
        config = {key: suggestion.config[key] for key in RANGES}
        row = self.rows.get(tuple(sorted(config.items())), -1)
        if row < 0 or not self.free[row]:
            row = self.table.nearest(config, self.free)
            config = dict(self.table.params[row])
        self.free[row] = False
        trial = Trial(trial_id=len(self.trials), config=config, creation_time=dt.datetime.now(tz=dt.UTC))
        self.trials.append(trial)
        self.row_of.append(row)
        self.scheduler.on_trial_add(trial)
        return row, 0

    def _result(self, row: int, epochs: int) -> tuple[Trial, dict[str, Any]]:
        return self.trials[self.row_of.index(row)], {"wer": float(self.table.wer[row, epochs - 1]), "epoch": epochs}

    def goes_on(self, row: int, epochs: int) -> bool:
        """Return what the scheduler decides."""
        self.at[row] = epochs
        decision = self.scheduler.on_trial_result(*self._result(row, epochs))
        return bool(decision == SchedulerDecision.CONTINUE)

    def ended(self, row: int) -> None:
        """Tell the result."""
        trial, result = self._result(row, self.table.wer.shape[1])
        self.scheduler.on_trial_result(trial, result)
        self.scheduler.on_trial_complete(trial, result)


def main() -> None:
    """Replay each scheduler and print its rows."""
    given = arguments(__doc__, 20)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    table = read(given.table)
    for workers in given.workers:
        for name in KINDS:
            if not name.startswith(given.only):
                continue
            print_row(f"Syne Tune: {name}", table, workers, [SyneTune(table, seed, name) for seed in range(given.seeds)])


if __name__ == "__main__":
    main()
