"""What a job knows about its trial, passed as text in its environment. Imports no framework, writes nothing; `handle.py` does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from speechtrain.config.targets import Direction
from speechtrain.errors import UserError
from speechtrain.sweep.trial.outcome import VARIABLE, SweepJob


@dataclass(frozen=True)
class TrialContext:
    """The facts about a trial that its job needs.

    Attributes:
        storage: URL of the study's storage.
        study: name of the study.
        id: id of the trial in the storage.
        number: number of the trial in the study.
        objectives: names of the metrics to optimise; empty: the job returns the value.
        directions: direction in which each objective is better.
        constraints: bounds such as `model/parameters <= 2e6`.
        report: metric that the pruner compares; None: the first objective.
        pruner: config of the pruner; None: no pruning.
        seeds: trainings of the trial, with consecutive seeds; the objective is their mean.
        seeds_startup_trials: trials that train all their seeds, or folds, before any is stopped early.
        timeout: seconds that the job may take.
        heartbeat: seconds between heartbeats.
        keep_pruned: whether the checkpoints of a pruned trial stay.
        show_output: whether the job prints to the terminal and not to `output.log`.
        name: name of its run in the trackers.
        parents: ids of the sweep's own runs, by tracker.
        retry_of: number of the failed or paused trial that it goes on from.
        promoted_from: epochs after which it may no longer pause, for it did there and is continued; 0: it has not paused.
        finalist: in a race, number of the trial whose configuration it trains once more; None: it is a trial of the search.
        meters: whether its CPU and GPU time is stored however its job is made, for a budget that counts them.
    """

    storage: str
    study: str
    id: int
    number: int
    objectives: Sequence[str] = ()
    directions: Sequence[Direction] = ("minimize",)
    constraints: Sequence[str] = ()
    report: str | None = None
    pruner: Mapping[str, Any] | None = None
    seeds: int = 1
    seeds_startup_trials: int = 4
    timeout: float | None = None
    heartbeat: float = 60.0
    keep_pruned: bool = False
    show_output: bool = False
    name: str = ""
    parents: Mapping[str, str] = field(default_factory=dict)
    retry_of: int | None = None
    promoted_from: int = 0
    finalist: int | None = None
    meters: bool = False

    @property
    def tags(self) -> dict[str, str]:
        """Return the tags of the trial's run in the trackers."""
        retried = {"speechtrain.retry_of": str(self.retry_of)} if self.retry_of is not None else {}
        continued = {"paused": f"after epoch {self.promoted_from}, continued by trial {self.number}"} if self.promoted_from else {}
        finalist = {"speechtrain.finalist": str(self.finalist)} if self.finalist is not None else {}
        return {"speechtrain.study": self.study, "speechtrain.trial": str(self.number), **retried, **continued, **finalist}

    def to_text(self) -> str:
        """Return the context as one line of JSON, for the environment."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str) -> TrialContext:
        """Read the context from the line of JSON that `to_text` wrote.

        Raises:
            UserError: it is none.
        """
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError, RecursionError):
            fix = "unset it: a sweep sets it, for its jobs alone"
            raise UserError(f"{VARIABLE}: names no trial of a sweep, received {text[:50]!r}\n    -> {fix}") from None

    @classmethod
    def of_job(cls, job: SweepJob) -> TrialContext | None:
        """Return the context of the trial that a job belongs to; None outside of a study."""
        text = job.env.get(VARIABLE)
        return cls.from_text(text) if text else None
