"""The study: planning trials, taking them one at a time, and finding those whose process died. Safe for several sweepers at once."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from speechtrain.config.targets import Direction
from speechtrain.errors import ConfigError, Problem
from speechtrain.processes.identity import Process, Watch
from speechtrain.sweep.space.space import Assignment, Choice, Domain, Scalar, Space
from speechtrain.sweep.study.attributes import BEAT, FAILURE, FIXED, JOB, OWNER, RETRY_OF, SPACE, TrialEntry, _settle, fail
from speechtrain.sweep.study.ledger import Ledger, Slot, read_ledger
from speechtrain.sweep.study.storage import exclusively

log = logging.getLogger(__name__)

_UNCLAIMED = 10.0
"""Seconds after which a trial that was taken by nobody known counts as lost; to write the name down takes milliseconds."""


def distribution(domain: Domain) -> BaseDistribution:
    """A domain in Optuna's terms."""
    if isinstance(domain, Choice):
        return CategoricalDistribution(domain.labels)
    if domain.whole:
        step = 1 if domain.log else int(domain.step or 1)
        return IntDistribution(int(domain.low), int(domain.high), log=domain.log, step=step)
    return FloatDistribution(domain.low, domain.high, log=domain.log, step=None if domain.log else domain.step)


@dataclass(frozen=True)
class Taken:
    """A trial that this sweeper has to run."""

    id: int
    number: int
    assignment: Assignment
    retry_of: int | None


class Study:
    """One study, shared with whoever else opens it.

    Args:
        url, storage: where it lives.
        name: of the study.
        directions: one an objective.
        space: what is searched.
        make_sampler: sampler for a trial number; a new one a trial, so that what it proposes follows from the number and the history,
            whichever process asks.
        pruner: that the jobs use as well.
        first: assignments, whole or in part, of the first slots, in order.
        n_trials: slots of the study in total.
        retries: failures of a slot that are tried again.
        ahead: trials that are planned before they are taken.
        patience: seconds without heartbeat after which a trial of another machine counts as dead.
    """

    def __init__(
        self,
        url: str,
        storage: BaseStorage,
        name: str,
        *,
        directions: Sequence[Direction],
        space: Space,
        make_sampler: Callable[[int], BaseSampler],
        pruner: optuna.pruners.BasePruner,
        first: Sequence[Assignment],
        n_trials: int,
        retries: int,
        ahead: int = 8,
        patience: float = 300.0,
    ) -> None:
        self.url = url
        self.storage = storage
        self.name = name
        self.directions = list(directions)
        self.space = space
        self.make_sampler = make_sampler
        self.pruner = pruner
        self.first = list(first)
        self.n_trials = n_trials
        self.retries = retries
        self.ahead = ahead
        self._by_creation = url.startswith("grpc:")
        self.mine: set[int] = set()
        self._trials: list[FrozenTrial] = []
        self._watch = Watch(patience)
        self._unclaimed = Watch(_UNCLAIMED)
        self._distributions = {parameter.name: distribution(parameter.domain) for parameter in space.all_parameters()}
        self.id = self._open()
        self._study = optuna.load_study(study_name=name, storage=storage, sampler=make_sampler(0), pruner=pruner)

    def _open(self) -> int:
        directions = [StudyDirection[direction.upper()] for direction in self.directions]
        described = describe(self.space)
        try:
            study_id = self.storage.create_new_study(directions, self.name)
            self.storage.set_study_user_attr(study_id, SPACE, described)
        except DuplicatedStudyError:
            study_id = self.storage.get_study_id_from_name(self.name)
        self._check_same(study_id, directions, described)
        return study_id

    def _check_same(self, study_id: int, directions: list[StudyDirection], described: dict[str, Any]) -> None:
        """Refuse to go on with a study of something else.

        Raises:
            ConfigError: what differs.
        """
        fix = "give another hydra.sweeper.study_name, or sweep as before"
        problems = []
        known = self.storage.get_study_directions(study_id)
        if known != directions:
            shown = ", ".join(item.name.lower() for item in known)
            problems.append(Problem("hydra.sweeper.direction", f"the study '{self.name}' has {shown}", fix))
        before = self.storage.get_study_user_attrs(study_id).get(SPACE, described)
        for key in sorted(set(before) | set(described)):
            if before.get(key) != described.get(key):
                was, now = before.get(key, "not swept"), described.get(key, "not swept")
                problems.append(Problem(key, f"the study '{self.name}' was begun with {was}, now it is {now}", fix))
        if problems:
            raise ConfigError(problems)

    # --- reading ----------------------------------------------------------------------------------------------------------------------

    def trials(self, *, fresh: bool = True) -> list[FrozenTrial]:
        """All of them, not to be changed; as last read unless `fresh`."""
        if fresh:
            self._trials = self.storage.get_all_trials(self.id, deepcopy=False)
        return self._trials

    def ledger(self) -> Ledger:
        """What is done, runs, waits."""
        entries = [TrialEntry(trial) for trial in self.trials() if not trial.system_attrs.get(FAILURE, {}).get("surplus")]
        return read_ledger(entries, n_trials=self.n_trials, retries=self.retries)

    # --- planning and taking ----------------------------------------------------------------------------------------------------------

    def plan(self) -> Ledger:
        """Plan retries of what failed and some trials ahead, up to n_trials in all; returns the ledger after that.

        A database is asked anew for every trial that is not finished, so no more wait than are soon taken.
        """
        ledger = self.ledger()
        if self._by_creation:
            return ledger
        if not ledger.to_retry and (len(ledger.slots) >= self.n_trials or len(ledger.waiting) > self.ahead // 2):
            return ledger
        with exclusively(self.url, self.storage, self.name) as alone:
            ledger = self.ledger()
            for slot in ledger.to_retry:
                self.storage.create_new_trial(self.id, template_trial=_waiting(_repeating(slot)))
            while (missing := min(self.n_trials - len(ledger.slots), self.ahead - len(ledger.waiting))) > 0:
                for _ in range(missing if alone else 1):
                    self.storage.create_new_trial(self.id, template_trial=_waiting({}))
                ledger = self.ledger()
        return ledger if not ledger.to_retry else self.ledger()

    def take(self, ledger: Ledger | None = None) -> Taken | None:
        """The next trial to run, now this sweeper's alone; None if none waits."""
        if self._by_creation:
            return self._create(ledger or self.ledger())
        with exclusively(self.url, self.storage, self.name) if self.url.startswith("sqlite") else nullcontext():
            return self._pop(ledger or self.ledger())

    def _pop(self, ledger: Ledger) -> Taken | None:
        """Take a waiting trial by setting it running; the journal and PostgreSQL let one process do that, SQLite needs a lock around it."""
        for rank, entry in ledger.waiting:
            assert isinstance(entry, TrialEntry)
            trial = entry.trial
            try:
                if not self.storage.set_trial_state_values(trial._trial_id, state=TrialState.RUNNING):
                    continue
            except UpdateFinishedTrialError:
                continue
            self.storage.set_trial_system_attr(trial._trial_id, OWNER, Process.current().to_dict())
            return self._begin(trial, rank)
        return None

    def _create(self, ledger: Ledger) -> Taken | None:
        """Take a place by creating a trial and looking which place it got.

        What a gRPC proxy stands for is not known, and with SQLite behind it two processes can set the same trial running. The numbers of
        new trials are unique on every storage.
        """
        slot = next(iter(ledger.to_retry), None)
        if slot is None and len(ledger.slots) >= self.n_trials:
            return None
        attrs = {OWNER: Process.current().to_dict(), **(_repeating(slot) if slot is not None else {})}
        template = optuna.trial.create_trial(state=TrialState.RUNNING, system_attrs=attrs)
        trial = self.storage.get_trial(self.storage.create_new_trial(self.id, template_trial=template))
        got = next((item for item in self.ledger().slots if any(entry.number == trial.number for entry in item.attempts)), None)
        if got is None:  # another sweeper was first
            self.storage.set_trial_system_attr(trial._trial_id, FAILURE, {"surplus": True})
            _settle(self.storage, trial._trial_id, TrialState.FAIL, None)
            return None
        return self._begin(trial, got.rank)

    def _begin(self, trial: FrozenTrial, rank: int) -> Taken:
        """Give values to a trial that is this sweeper's now: those of its slot, or of what it repeats, before any that are proposed."""
        self.mine.add(trial._trial_id)
        if FIXED not in trial.system_attrs and rank < len(self.first) and self.first[rank]:
            self.storage.set_trial_system_attr(trial._trial_id, FIXED, self.first[rank])
        return Taken(trial._trial_id, trial.number, self._suggest(trial), trial.system_attrs.get(RETRY_OF))

    def _suggest(self, trial: FrozenTrial) -> Assignment:
        self._study.sampler = self.make_sampler(trial.number)
        self._study._thread_local.cached_all_trials = None  # as Study.ask does, which cannot be told which trial to take
        asked = optuna.trial.Trial(self._study, trial._trial_id)
        assignment: Assignment = {}
        for parameter in self.space.active(assignment):
            wanted = self._distributions[parameter.name]
            value: Scalar
            if isinstance(wanted, CategoricalDistribution):
                value = asked.suggest_categorical(parameter.name, wanted.choices)
            elif isinstance(wanted, IntDistribution):
                value = asked.suggest_int(parameter.name, wanted.low, wanted.high, step=wanted.step, log=wanted.log)
            else:
                assert isinstance(wanted, FloatDistribution)
                value = asked.suggest_float(parameter.name, wanted.low, wanted.high, step=wanted.step, log=wanted.log)
            assignment[parameter.name] = value
        return assignment

    # --- ends -------------------------------------------------------------------------------------------------------------------------

    def fail(self, trial_id: int, reason: str, *, charged: bool = True, final: bool = False) -> bool:
        """Record a failure; False if the trial was settled before."""
        return fail(self.storage, trial_id, reason, charged=charged, final=final)

    def bury_dead(self, ledger: Ledger) -> list[tuple[int, str]]:
        """Record the failure of running trials whose process is gone; returns (number, reason) of each."""
        buried = []
        for entry in ledger.running:
            assert isinstance(entry, TrialEntry)
            trial = entry.trial
            if trial._trial_id in self.mine:
                continue
            verdict = self._verdict(trial)
            if verdict is not None and self.fail(trial._trial_id, verdict[0], charged=verdict[1]):
                buried.append((trial.number, verdict[0]))
        return buried

    def _verdict(self, trial: FrozenTrial) -> tuple[str, bool] | None:
        """Why a running trial counts as dead, and whether that is charged to it; None while it may live."""
        attrs = trial.system_attrs
        job, owner = Process.from_dict(attrs.get(JOB)), Process.from_dict(attrs.get(OWNER))
        worker = job or owner
        if worker is None:
            return ("its sweeper died before it began", False) if self._unclaimed.is_silent(trial._trial_id, None) else None
        if not worker.is_local():
            beat = attrs.get(BEAT, attrs.get(OWNER))
            gone = self._watch.is_silent(trial._trial_id, json.dumps(beat))
            return (f"no sign of life from {worker.host} for {self._watch.patience:.0f} s", False) if gone else None
        if worker.is_alive():
            return None
        owner_lives = owner is not None and owner.is_local() and owner.is_alive() and job is not None
        if owner_lives and owner != Process.current():
            return None  # its own sweeper will see to it
        return (f"its process {worker.pid} died", owner_lives)


def _repeating(slot: Slot) -> dict[str, Any]:
    """System attributes of the next attempt of a slot."""
    failed = slot.latest
    assert isinstance(failed, TrialEntry)
    return {RETRY_OF: failed.number, **({FIXED: dict(failed.trial.params)} if failed.trial.params else {})}


def _waiting(system_attrs: Mapping[str, Any]) -> FrozenTrial:
    return optuna.trial.create_trial(state=TrialState.WAITING, system_attrs=dict(system_attrs))


def describe(space: Space) -> dict[str, Any]:
    """Each parameter of a space as text, to be compared."""

    def shown(domain: Domain) -> str:
        if isinstance(domain, Choice):
            return f"choice({', '.join(domain.texts)})"
        text = f"{domain.low:g} to {domain.high:g}"
        text += f" step {domain.step:g}" if domain.step else ""
        return text + (", log" if domain.log else "") + (", whole" if domain.whole else "")

    return {parameter.name: shown(parameter.domain) for parameter in space.all_parameters()}
