"""What each trial of a sweep has cost, and what pruning has saved of a trial's full length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState

from speechtrain.sweep.study.cost import COST


@dataclass(frozen=True)
class TrialCost:
    """The cost of one finished trial.

    Attributes:
        trial: the trial.
        seconds: CPU seconds where the job has measured them, else seconds from start to end.
        steps: epochs, or other steps, that it ran; 0: unknown.
        planned: steps of its full length; 0: unknown.
    """

    trial: FrozenTrial
    seconds: float
    steps: float
    planned: float

    @property
    def unspent(self) -> float:
        """Return the seconds that a pruned trial would have taken for its other steps, at the pace of those it ran."""
        if self.trial.state is not TrialState.PRUNED or not 0 < self.steps < self.planned:
            return 0.0
        return self.seconds * (self.planned - self.steps) / self.steps


def costs_of(trials: Sequence[FrozenTrial]) -> tuple[list[TrialCost], bool]:
    """Return the cost of each finished trial, and whether it is CPU time.

    Where a job says nothing of its length, the steps are those that it reported, and the full length is that of the longest complete trial.
    """
    finished = [trial for trial in trials if trial.state.is_finished()]
    longest = max((len(trial.intermediate_values) for trial in finished if trial.state is TrialState.COMPLETE), default=0)
    measured = any(trial.user_attrs.get(COST, {}).get("cpu_s") for trial in finished)
    costs = []
    for trial in finished:
        cost = trial.user_attrs.get(COST, {})
        wall = trial.duration.total_seconds() if trial.duration is not None else 0.0
        seconds = float(cost.get("cpu_s", 0.0)) if measured else wall
        steps = float(cost.get("epochs", len(trial.intermediate_values)))
        costs.append(TrialCost(trial, seconds, steps, float(cost.get("planned_epochs", longest))))
    return costs, measured
