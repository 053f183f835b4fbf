"""A trial as its own job sees it: which one it is, and how to write to it. Light: no framework is imported."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from speechtrain.config.targets import Direction
from speechtrain.processes.identity import Process
from speechtrain.sweep.study.attributes import BEAT, JOB, OWNER, complete, fail
from speechtrain.sweep.study.samplers import make_pruner
from speechtrain.sweep.study.storage import open_storage
from speechtrain.sweep.trial.outcome import VARIABLE, Job, Outcome

_beating: set[int] = set()


@dataclass(frozen=True)
class TrialContext:
    """What travels with a job.

    Attributes:
        storage, study: where the trial is, and its study's name.
        id, number: of the trial.
        objectives: metrics; empty: what the job returns.
        directions: which way each is better.
        constraints: as text.
        report: metric that the pruner goes by.
        pruner: its config; None: no pruning.
        seeds: runs of a trial with seeds one after the other; the objective is their mean.
        seeds_startup_trials: trials that finish all seeds before one is stopped after its first.
        timeout: seconds the job may take.
        heartbeat: seconds between signs of life.
        keep_pruned: whether checkpoints of pruned trials stay.
        show_output: whether the job writes to the terminal and not to `output.log`.
        name: of its run, for people.
        parents: ids of the sweep's runs, by tracker.
        retry_of: number of the failed trial that it repeats.
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

    @property
    def tags(self) -> dict[str, str]:
        """For the trackers of its run."""
        retried = {"speechtrain.retry_of": str(self.retry_of)} if self.retry_of is not None else {}
        return {"speechtrain.study": self.study, "speechtrain.trial": str(self.number), **retried}

    def to_text(self) -> str:
        """For the environment."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str) -> TrialContext:
        """From the environment."""
        return cls(**json.loads(text))


class Attached:
    """A trial as its own job sees it."""

    def __init__(self, context: TrialContext) -> None:
        self.context = context
        self.storage = open_storage(context.storage)
        self._study: optuna.Study | None = None

    def claim(self) -> bool:
        """Say which process works on the trial; False if it was given up meanwhile, so that nobody waits for its result."""
        trial = self.storage.get_trial(self.context.id)
        if trial.state is not TrialState.RUNNING:
            return False
        current = Process.current().to_dict()
        if current not in (trial.system_attrs.get(OWNER), trial.system_attrs.get(JOB)):
            with contextlib.suppress(UpdateFinishedTrialError):
                self.storage.set_trial_system_attr(self.context.id, JOB, current)
        return True

    def settle(self, outcome: Outcome) -> None:
        """Record how the job ended, if it has not done so itself."""
        if self.storage.get_trial(self.context.id).state.is_finished():
            return
        if outcome.ending != "done":
            charged = outcome.ending != "interrupted"
            fail(self.storage, self.context.id, outcome.reason, charged=charged, final=outcome.final)
            return
        count = len(self.context.directions)
        try:
            values = [float(value) for value in (outcome.value if isinstance(outcome.value, (list, tuple)) else [outcome.value])]
        except (TypeError, ValueError):
            values = []
        if len(values) != count or any(math.isnan(value) for value in values):
            fail(self.storage, self.context.id, f"returned {outcome.value!r}, not {count} number{'s' if count > 1 else ''}")
        else:
            complete(self.storage, self.context.id, values)

    def note(self, name: str, value: Any) -> None:
        """A word about the trial, shown in dashboards."""
        with contextlib.suppress(UpdateFinishedTrialError):
            self.storage.set_trial_user_attr(self.context.id, name, value)

    def constrain(self, violations: Mapping[str, float]) -> None:
        """Record constraints by name, above 0 where broken; as Optuna's `Trial.set_constraint` does."""
        with contextlib.suppress(UpdateFinishedTrialError):
            for name, value in violations.items():
                self.storage.set_trial_system_attr(self.context.id, f"constraints:{name}", value)

    def report(self, value: float, epoch: int) -> None:
        """Record the metric of an epoch, counted from 0."""
        with contextlib.suppress(UpdateFinishedTrialError):
            self.storage.set_trial_intermediate_value(self.context.id, epoch, value)

    def should_prune(self) -> bool:
        """What the pruner says."""
        study = self.study()
        study._thread_local.cached_all_trials = None
        trial = self.storage.get_trial(self.context.id)
        filtered = optuna.pruners._filter_study(study, trial)
        return study.pruner.prune(filtered, trial)

    def study(self) -> optuna.Study:
        """The study with the pruner that travels with the job."""
        if self._study is None:
            pruner = make_pruner(self.context.pruner)
            self._study = optuna.load_study(
                study_name=self.context.study, storage=self.storage, sampler=optuna.samplers.RandomSampler(0), pruner=pruner
            )
        return self._study

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Write a sign of life now and then, for sweepers on other machines; one writer is enough."""
        if self.context.id in _beating:
            yield
            return
        _beating.add(self.context.id)
        done = threading.Event()

        def beat() -> None:
            while not done.wait(self.context.heartbeat):
                with contextlib.suppress(Exception):  # the storage may be away for a while; the training goes on
                    self.storage.set_trial_system_attr(self.context.id, BEAT, time.time())

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            _beating.discard(self.context.id)


def attach(job: Job) -> Attached | None:
    """The trial that a job belongs to; None outside a study."""
    text = job.env.get(VARIABLE)
    return Attached(TrialContext.from_text(text)) if text else None


class TrialTimeoutError(Exception):
    """A trial took longer than it may."""


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise TrialTimeoutError in the main thread after so long; elsewhere only the worker pool can end a job."""
    if seconds is None or threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def end(_number: int, _frame: FrameType | None) -> None:
        raise TrialTimeoutError(f"took longer than hydra.sweeper.timeout={seconds:g} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
