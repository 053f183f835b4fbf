"""A trial in the process that runs it: claimed, kept alive, limited in time and recorded, each once, by one owner.

`own_trial` is entered by whoever starts work on a trial: by `runner.py` in the sweeper's own processes, by `job.py` in a job under any
other launcher. Where both are one process the runner is the owner, and the job gets its handle. No framework is imported here, and nothing
knows what a trial trains.
"""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from functools import cached_property
from types import FrameType
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from speechtrain.errors import counted
from speechtrain.processes import interrupts
from speechtrain.processes.identity import Process
from speechtrain.sweep.study.attributes import BEAT, CANCEL, JOB, OWNER, TrialEntry, complete, fail, prune, record_cancelled
from speechtrain.sweep.study.cost import COST
from speechtrain.sweep.study.internals import StudyWithout
from speechtrain.sweep.study.ledger import read_ledger
from speechtrain.sweep.study.promotion import PromotionRule
from speechtrain.sweep.study.samplers import make_pruner
from speechtrain.sweep.study.standings import Standings
from speechtrain.sweep.study.storage import open_storage
from speechtrain.sweep.trial.context import TrialContext
from speechtrain.sweep.trial.meter import Meter
from speechtrain.sweep.trial.outcome import Outcome, outcome_of_error


class TrialCancelledError(Exception):
    """The trial was finished, or given to another process, before this one started it."""


class TrialTimeoutError(Exception):
    """A trial took longer than `hydra.sweeper.timeout`."""


class TrialHandle:
    """Reads and writes one trial in its storage.

    Attributes:
        context: the trial.
        outcome: how its job ended, as reported first; None while it runs.
        recorded: whether the storage has the outcome.
    """

    def __init__(self, context: TrialContext) -> None:
        self.context = context
        self.storage = open_storage(context.storage)
        self.outcome: Outcome | None = None
        self.recorded = False
        self._trial: optuna.Trial | None = None

    @cached_property
    def _pruner(self) -> optuna.pruners.BasePruner:
        return make_pruner(self.context.pruner)

    def end(self, outcome: Outcome) -> None:
        """Keep the outcome for the owner to record, unless one is known already."""
        self.outcome = self.outcome or outcome

    def record(self, outcome: Outcome) -> None:
        """Write an outcome to the storage, which leaves a trial that is finished there as it is."""
        self._write(outcome)
        self.recorded = True

    def set_attribute(self, name: str, value: Any) -> None:
        """Store a fact about the trial, which dashboards show."""
        with contextlib.suppress(UpdateFinishedTrialError):
            self.storage.set_trial_user_attr(self.context.id, name, value)

    def store_cost(self, meter: Meter) -> None:
        """Store what the trial has cost, beside what its job has told of it."""
        told = self.storage.get_trial(self.context.id).user_attrs.get(COST, {})
        self.set_attribute(COST, {**told, **{name: round(seconds, 3) for name, seconds in meter.read().items()}})

    def set_constraints(self, violations: Mapping[str, float]) -> None:
        """Store by how much each constraint is broken (above 0 where it is); what is stored already stays."""
        stored = self.storage.get_trial(self.context.id).constraints
        with contextlib.suppress(UpdateFinishedTrialError):
            for name, value in violations.items():
                if name not in stored:
                    self._optuna_trial().set_constraint(name, value)

    def report(self, value: float, epoch: int) -> None:
        """Store the metric of an epoch, counted from 0, for the pruner; a trial of several objectives cannot report."""
        if epoch in self.storage.get_trial(self.context.id).intermediate_values:  # trained once more, by a retry
            return
        with contextlib.suppress(UpdateFinishedTrialError):
            self._optuna_trial().report(value, epoch)

    def should_prune(self) -> bool:
        """Return whether the trial is cancelled, or the pruner of the config would end it after what it reported last."""
        if self.is_cancelled():
            return True
        return self.context.pruner is not None and not isinstance(self._pruner, PromotionRule) and self._optuna_trial().should_prune()

    def is_cancelled(self) -> bool:
        """Return whether someone has asked for the end of the trial."""
        return CANCEL in self.storage.get_trial(self.context.id).system_attrs

    def should_pause(self, epoch: int) -> bool:
        """Return whether the trial is to pause after an epoch that it has reported, counted from 0, by a rule that pauses trials."""
        rule = self._pruner
        if not isinstance(rule, PromotionRule):
            return False
        rung, promoted_from = rule.rung_at(epoch + 1), rule.rung_at(self.context.promoted_from) or 0
        if rung is None or rung <= promoted_from:
            return False
        reported = self.storage.get_trial(self.context.id).intermediate_values
        if any(rule.rung_at(earlier + 1) == rung for earlier in reported if earlier < epoch):
            return False  # it went on when it came to the rung
        entries = [entry for entry in map(TrialEntry, self._all_trials()) if not entry.is_surplus and entry.finalist is None]
        standings = Standings(rule, self.context.directions[0])
        slot = read_ledger(entries, n_trials=sys.maxsize, retries=0, standings=standings).slot_of(self.context.number)
        return slot is not None and not standings.goes_on(slot.rank, epoch + 1)

    def last_reported(self) -> int | None:
        """Return the last epoch that the trial has reported, counted from 0; None: it has reported none."""
        return self.storage.get_trial(self.context.id).last_step

    def _all_trials(self) -> list[FrozenTrial]:
        return self.storage.get_all_trials(self.storage.get_study_id_from_name(self.context.study), deepcopy=False)

    def completed_trials(self) -> list[FrozenTrial]:
        """Return the completed trials of the study, without those that a race has trained once more."""
        study_id = self.storage.get_study_id_from_name(self.context.study)
        trials = self.storage.get_all_trials(study_id, deepcopy=False, states=(TrialState.COMPLETE,))
        return [trial for trial in trials if TrialEntry(trial).finalist is None]

    def earlier_attempts(self) -> Iterator[FrozenTrial]:
        """Yield the failed and paused trials that this one goes on from, the latest first."""
        study_id = self.storage.get_study_id_from_name(self.context.study)
        number = self.context.retry_of
        while number is not None:
            trial = self.storage.get_trial(self.storage.get_trial_id_from_study_id_trial_number(study_id, number))
            yield trial
            number = TrialEntry(trial).retry_of

    def _optuna_trial(self) -> optuna.Trial:
        """Return the trial as Optuna's own object, with the pruner that the context brings along."""
        if self._trial is None:
            sampler = optuna.samplers.RandomSampler(0)
            study = StudyWithout(study_name=self.context.study, storage=self.storage, sampler=sampler, pruner=self._pruner)
            self._trial = optuna.Trial(study, self.context.id)
        return self._trial

    def _write(self, outcome: Outcome) -> None:
        trial_id = self.context.id
        values = _numbers(outcome.value, len(self.context.directions)) if outcome.ending == "done" else None
        if values is not None:
            complete(self.storage, trial_id, values)
        elif self.is_cancelled():
            record_cancelled(self.storage, trial_id)
        elif outcome.ending in ("pruned", "paused"):
            last = self.last_reported()
            paused_at = last + 1 if outcome.ending == "paused" and last is not None else None
            prune(self.storage, trial_id, outcome.reason, paused_at=paused_at)
        elif outcome.ending != "done":
            fail(self.storage, trial_id, outcome.reason, charged=outcome.ending not in ("interrupted", "lost"), final=outcome.final)
        else:
            count = len(self.context.directions)
            fail(self.storage, trial_id, f"returned {outcome.value!r}, not {counted(count, 'number')}")

    def _claim(self) -> None:
        """Store that this process runs the trial.

        Raises:
            TrialCancelledError: the trial is not running any more, so nobody waits for its result.
        """
        trial = self.storage.get_trial(self.context.id)
        if trial.state is not TrialState.RUNNING or CANCEL in trial.system_attrs:
            raise TrialCancelledError("was cancelled before it started")
        current = Process.current().to_dict()
        if current not in (trial.system_attrs.get(OWNER), trial.system_attrs.get(JOB)):
            with contextlib.suppress(UpdateFinishedTrialError):
                self.storage.set_trial_system_attr(self.context.id, JOB, current)

    @contextlib.contextmanager
    def _heartbeat(self) -> Iterator[None]:
        """Store the time now and then, for sweepers on other machines."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(self.context.heartbeat):
                with contextlib.suppress(Exception):  # the storage may be away for a while; the training goes on
                    self.storage.set_trial_system_attr(self.context.id, BEAT, time.time())

        threading.Thread(target=beat, daemon=True).start()
        try:
            yield
        finally:
            done.set()


_owned: dict[tuple[str, int], TrialHandle] = {}
"""The trials that this process owns, by storage and id."""
_seen: dict[tuple[str, int], TrialHandle] = {}
"""The trial that this process has asked for last, where another owns it."""


def handle_of(context: TrialContext) -> TrialHandle:
    """Return the handle of a trial that this process owns, or one that can report for the process that does."""
    key = (context.storage, context.id)
    if key in _owned:
        return _owned[key]
    if key not in _seen:
        _seen.clear()
        _seen[key] = TrialHandle(context)
    return _seen[key]


@contextlib.contextmanager
def own_trial(context: TrialContext) -> Iterator[TrialHandle]:
    """Own a trial while its job runs; entered again for the same trial, yield the same handle.

    The first to enter claims the trial, limits its time, sends heartbeats and records the outcome when it leaves. The outcome is what `end`
    was given, or the error that left the block, whichever came first.

    Raises:
        TrialCancelledError: the trial is not running any more; nothing is recorded.
    """
    key = (context.storage, context.id)
    owner = _owned.get(key)
    with contextlib.nullcontext(owner) if owner is not None else _owning(key, TrialHandle(context)) as handle:
        try:
            yield handle
        except BaseException as error:  # also SystemExit and Ctrl-C
            handle.end(outcome_of_error(context.number, error))
            raise


@contextlib.contextmanager
def _owning(key: tuple[str, int], handle: TrialHandle) -> Iterator[TrialHandle]:
    handle._claim()
    _owned[key] = handle
    meter = Meter() if handle.context.meters else None
    try:
        with handle._heartbeat(), time_limit(handle.context.timeout), _interrupted_by_scheduler():
            yield handle
    finally:
        del _owned[key]
        if meter is not None:
            handle.store_cost(meter)
        if handle.outcome is not None:
            handle.record(handle.outcome)


@contextlib.contextmanager
def _interrupted_by_scheduler() -> Iterator[None]:
    """Let SIGTERM end the trial as Ctrl-C does, in jobs of any launcher: Slurm and machines that may be taken away send it, then kill."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    interrupts.listen(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _numbers(value: Any, count: int) -> list[float] | None:
    """Return what a job returned as one number an objective; None where it is not that."""
    try:
        numbers = [float(item) for item in (value if isinstance(value, (list, tuple)) else [value])]
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and not any(map(math.isnan, numbers)) else None


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise TrialTimeoutError in the main thread after so many seconds; in other threads only the worker pool can end a job."""
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
