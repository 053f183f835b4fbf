"""A sweeper's view of its study: it claims trials one at a time, and fails those whose process died.

Safe for several sweepers at once. `ledger.py` decides what is to be done, this module does it in the storage; what happens to a trial while
its job runs is in `trial/handle.py`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
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
from speechtrain.errors import ConfigError, Problem, first_line
from speechtrain.processes.identity import Process, Watch
from speechtrain.sweep.space.space import Assignment, Choice, Domain, Scalar, Space
from speechtrain.sweep.study.attributes import (
    BEAT,
    CANCEL,
    FAILURE,
    INTERRUPTED,
    JOB,
    OWNER,
    RETRY_OF,
    SETTINGS,
    SPACE,
    VERSION,
    TrialEntry,
    fail,
    finish,
    record_cancelled,
)
from speechtrain.sweep.study.changes import TrialChanges
from speechtrain.sweep.study.internals import FIXED_PARAMS, StudyWithout, id_of
from speechtrain.sweep.study.ledger import FinalistRuns, Ledger, Slot
from speechtrain.sweep.study.promotion import PromotionRule
from speechtrain.sweep.study.standings import Standings
from speechtrain.sweep.study.storage import study_lock
from speechtrain.sweep.study.warm_start import Prior

log = logging.getLogger(__name__)

_OWNER_SECONDS = 10.0
"""Seconds after which a running trial without an owner counts as lost; a sweeper writes its name into a trial within milliseconds."""


def distribution(domain: Domain) -> BaseDistribution:
    """Return a domain as Optuna's distribution."""
    if isinstance(domain, Choice):
        return CategoricalDistribution(domain.labels)
    if domain.whole:
        step = 1 if domain.log else int(domain.step or 1)
        return IntDistribution(int(domain.low), int(domain.high), log=domain.log, step=step)
    return FloatDistribution(domain.low, domain.high, log=domain.log, step=None if domain.log else domain.step)


@dataclass(frozen=True)
class ClaimedTrial:
    """A trial that this sweeper has set running and has to start a job for.

    Attributes:
        id: id of the trial in its storage.
        number: number of the trial in its study.
        assignment: value of each active parameter.
        retry_of: number of the failed or paused trial that it goes on from.
        promoted_from: epochs after which it may no longer pause, for it did there and was continued; 0: it has not paused.
        finalist: in a race, number of the trial whose configuration it trains once more, key of the seed, and the seed.
    """

    id: int
    number: int
    assignment: Assignment
    retry_of: int | None
    promoted_from: int = 0
    finalist: tuple[int, str, int] | None = None


class Study:
    """Claims the trials of one study, which other sweepers may share.

    Args:
        url: URL of the storage.
        storage: the opened storage.
        name: name of the study.
        directions: direction of each objective.
        space: what is searched.
        settings: what all its trials share, as text by key.
        make_sampler: builds the sampler of a trial number; a new one for each trial, so that what it proposes follows from the number and
            the history, whichever process asks.
        pruner: the pruner that the jobs use; samplers may ask for it.
        first: assignments of the first slots in order, complete or in part.
        n_trials: slots of the study in total.
        retries: number of charged failures of a slot that are retried.
        patience: seconds without a heartbeat after which a trial of another machine counts as dead.
        prior: results of earlier studies as (assignment, rank), which the sampler sees besides those of this one.

    Attributes:
        finished: the trials that have ended, in the order in which this process saw them end; `ledger` adds to it.
        finalist_runs: the trials of a race of the best, which the ledger does not count; likewise.

    Raises:
        ConfigError: the study exists and searches another space, in other directions, or with other settings.
    """

    def __init__(
        self,
        url: str,
        storage: BaseStorage,
        name: str,
        *,
        directions: Sequence[Direction],
        space: Space,
        settings: Mapping[str, str],
        make_sampler: Callable[[int], BaseSampler],
        pruner: optuna.pruners.BasePruner,
        first: Sequence[Assignment],
        n_trials: int,
        retries: int,
        patience: float = 300.0,
        extend: Callable[[optuna.Trial], None] | None = None,
        prior: Sequence[tuple[Assignment, float]] = (),
    ) -> None:
        self.url = url
        self.storage = storage
        self.name = name
        self.directions = list(directions)
        self.space = space
        self.settings = dict(settings)
        self.make_sampler = make_sampler
        self.pruner = pruner
        self.first = list(first)
        self.n_trials = n_trials
        self.retries = retries
        self.extend = extend
        self.claimed_ids: set[int] = set()
        self.finished: list[FrozenTrial] = []
        self._finished_numbers: set[int] = set()
        self.finalist_runs = FinalistRuns(retries)
        self._ledger = self._new_ledger()
        self._watch = Watch(patience)
        self._ownerless = Watch(_OWNER_SECONDS)
        self._distributions = {parameter.name: distribution(parameter.domain) for parameter in space.all_parameters()}
        self._prior = Prior(prior, space, self._distributions)
        self.id = self._open()
        self._changes = TrialChanges(storage, self.id)
        self._optuna_study: StudyWithout | None = None

    def _open(self) -> int:
        directions = [StudyDirection[direction.upper()] for direction in self.directions]
        described = describe(self.space)
        try:
            study_id = self.storage.create_new_study(directions, self.name)
            self.storage.set_study_user_attr(study_id, SPACE, described)
            self.storage.set_study_user_attr(study_id, SETTINGS, self.settings)
        except DuplicatedStudyError:
            study_id = self.storage.get_study_id_from_name(self.name)
        self._check_same(study_id, directions, described)
        return study_id

    def _check_same(self, study_id: int, directions: list[StudyDirection], described: dict[str, Any]) -> None:
        """Refuse to continue a study that searches something else.

        Raises:
            ConfigError: names each parameter and direction that differs.
        """
        fix = "give another hydra.sweeper.study_name, or sweep as before"
        problems = []
        stored = self.storage.get_study_directions(study_id)
        if stored != directions:
            names = ", ".join(item.name.lower() for item in stored)
            problems.append(Problem("hydra.sweeper.direction", f"the study '{self.name}' has {names}", fix))
        attributes = self.storage.get_study_user_attrs(study_id)
        before = attributes.get(SPACE, described)
        for key in sorted(set(before) | set(described)):
            if before.get(key) != described.get(key):
                was, now = before.get(key, "not swept"), described.get(key, "not swept")
                problems.append(Problem(key, f"the study '{self.name}' was started with {was}, now it is {now}", fix))
        if not problems and attributes.get(SETTINGS) is None:
            log.warning("the study '%s' of an earlier version has not stored what its trials share: now it is this config", self.name)
            self.storage.set_study_user_attr(study_id, SETTINGS, self.settings)
        elif not problems:
            problems = self._other_settings(attributes[SETTINGS], fix)
        if problems:
            raise ConfigError(problems)

    def _other_settings(self, before: Mapping[str, str], fix: str) -> list[Problem]:
        """Return a problem for each setting that is not what the study was started with."""
        keys = set(before) | set(self.settings)
        if before.get(VERSION) != self.settings.get(VERSION):  # other versions have other keys, with defaults that change nothing
            keys = set(before) & set(self.settings) - {VERSION}
        problems = []
        for key in sorted(keys):
            was, now = before.get(key, "not set"), self.settings.get(key, "not set")
            if was != now:
                problems.append(Problem(key, f"the study '{self.name}' was started with {was}, now it is {now}", fix))
        return problems

    # --- reading ----------------------------------------------------------------------------------------------------------------------

    def trials(self) -> list[FrozenTrial]:
        """Return all trials, which must not be changed."""
        return self.storage.get_all_trials(self.id, deepcopy=False)

    def ledger(self) -> Ledger:
        """Read what has changed since the last time, and return the study's ledger with it."""
        changed, whole = self._changes.read()
        if not whole and any(TrialEntry(trial).is_surplus and self._ledger.slot_of(trial.number) for trial in changed):
            changed, whole = self._changes.read(anew=True)  # the slots behind it move up
        if whole:
            self._ledger, self.finalist_runs = self._new_ledger(), FinalistRuns(self.retries)
        counted = [trial for trial in changed if not TrialEntry(trial).is_surplus]
        for entry in map(TrialEntry, counted):
            if (finalist := entry.finalist) is not None:
                self.finalist_runs.put(finalist, entry)
            else:
                self._ledger.put(entry)
        ended = [trial for trial in counted if trial.state.is_finished() and trial.number not in self._finished_numbers]
        self._finished_numbers.update(trial.number for trial in ended)
        self.finished += sorted(ended, key=_end_of)
        return self._ledger

    def running(self, ledger: Ledger) -> list[FrozenTrial]:
        """Return the trials that a process runs, or ran before it died."""
        return [entry.trial for entry in [*ledger.running, *self.finalist_runs.running] if isinstance(entry, TrialEntry)]

    def _new_ledger(self) -> Ledger:
        standings = None
        if isinstance(self.pruner, PromotionRule) and len(self.directions) == 1:
            standings = Standings(self.pruner, self.directions[0])
        return Ledger(n_trials=self.n_trials, retries=self.retries, standings=standings)

    # --- claiming ---------------------------------------------------------------------------------------------------------------------

    def claim(self, ledger: Ledger | None = None) -> ClaimedTrial | None:
        """Set the next trial running, so that it is this sweeper's alone, and return it; None if there is none.

        A paused trial that is to be continued comes first, then one that failed, one that others have enqueued, and a new one.
        """
        ledger = ledger or self.ledger()
        if ledger.to_continue is not None and (continued := self._claim_continuation()) is not None:
            return continued
        if ledger.waiting and not ledger.to_retry and (waiting := self._claim_waiting(ledger)) is not None:
            return waiting
        return self._claim_by_creating(ledger)

    def _claim_continuation(self) -> ClaimedTrial | None:
        """Create a running trial that goes on from the paused one that is to be continued; None if another sweeper was first."""
        with study_lock(self.url, self.name):
            slot = self.ledger().to_continue
            if slot is None:
                return None
            paused = slot.latest
            assert isinstance(paused, TrialEntry)
            before = paused.trial
            template = optuna.trial.create_trial(
                state=TrialState.RUNNING,
                params=before.params,
                distributions=before.distributions,
                intermediate_values=before.intermediate_values,
                constraints=before.constraints or None,
                system_attrs={OWNER: Process.current().to_dict(), RETRY_OF: before.number},
            )
            trial = self.storage.get_trial(self.storage.create_new_trial(self.id, template_trial=template))
            won = self._won(trial)
        if won is None:
            return None
        self.claimed_ids.add(id_of(trial))
        return ClaimedTrial(id_of(trial), trial.number, dict(trial.params), before.number, won.promoted_from)

    def _won(self, trial: FrozenTrial) -> Slot | None:
        """Return the slot of a running trial that was just created; a surplus one, for another sweeper was first, fails: None."""
        slot = self.ledger().slot_of(trial.number)
        if slot is None:
            self.storage.set_trial_system_attr(id_of(trial), FAILURE, {"surplus": True})
            finish(self.storage, id_of(trial), TrialState.FAIL)
        return slot

    def _claim_waiting(self, ledger: Ledger) -> ClaimedTrial | None:
        """Claim a waiting trial by setting it running; the journal and PostgreSQL let one process do that, SQLite needs a lock."""
        with study_lock(self.url, self.name) if self.url.startswith("sqlite") else nullcontext():
            for rank, entry in ledger.waiting:
                assert isinstance(entry, TrialEntry)
                trial = entry.trial
                try:
                    if not self.storage.set_trial_state_values(id_of(trial), state=TrialState.RUNNING):
                        continue
                except UpdateFinishedTrialError:
                    continue
                self.storage.set_trial_system_attr(id_of(trial), OWNER, Process.current().to_dict())
                if (claimed := self._assign(id_of(trial), trial.number, trial.system_attrs, ledger.slots[rank])) is not None:
                    return claimed
        return None

    def _claim_by_creating(self, ledger: Ledger) -> ClaimedTrial | None:
        """Claim a slot by creating a running trial with the name of its owner, in one piece.

        Where the storage has no lock (a gRPC proxy, whose storage is not known), which slot it got is read afterwards.
        """
        if not ledger.to_retry and len(ledger.slots) >= self.n_trials:
            return None
        with study_lock(self.url, self.name) as alone:
            ledger = self.ledger() if alone else ledger
            slot = next(iter(ledger.to_retry), None)
            if slot is None and len(ledger.slots) >= self.n_trials:
                return None
            attrs = {OWNER: Process.current().to_dict(), **(_retry_attributes(slot) if slot is not None else {})}
            template = optuna.trial.create_trial(state=TrialState.RUNNING, system_attrs=attrs)
            trial_id = self.storage.create_new_trial(self.id, template_trial=template)
            if not alone:
                slot = self._won(self.storage.get_trial(trial_id))
                if slot is None:
                    return None
        return self._assign(trial_id, self._number_of(trial_id), attrs, slot or Slot(len(ledger.slots), []))

    def _number_of(self, trial_id: int) -> int:
        """Return the number of a trial that was just created; where nobody else creates any, without reading it from the storage."""
        number = self._changes.known
        with suppress(KeyError):
            if self.storage.get_trial_id_from_study_id_trial_number(self.id, number) == trial_id:
                return number
        return self.storage.get_trial(trial_id).number

    def _assign(self, trial_id: int, number: int, attrs: Mapping[str, Any], slot: Slot) -> ClaimedTrial | None:
        """Give a claimed trial its values: those of its slot, or of the trial it repeats, and what the sampler proposes for the others.

        A trial fails, and None is returned, if `Study.enqueue_trial` gave it a value that the space does not have.
        """
        rank = slot.rank
        self.claimed_ids.add(trial_id)
        given = attrs.get(FIXED_PARAMS) or (self.first[rank] if rank < len(self.first) else {})
        try:
            fixed = self._propose_with_prior(number, given)
            if fixed and fixed != attrs.get(FIXED_PARAMS):
                self.storage.set_trial_system_attr(trial_id, FIXED_PARAMS, fixed)
            if self._optuna_study is None:
                self._optuna_study = StudyWithout(study_name=self.name, storage=self.storage, pruner=self.pruner)
            self._optuna_study.hidden = self._ledger.continued  # samplers would count what such a trial has tried twice, and as given up
            self._optuna_study.look_anew()
            assignment = self._suggest(self._optuna_study, trial_id, number)
        except (ValueError, TypeError) as error:
            given = self.storage.get_trial(trial_id).system_attrs.get(FIXED_PARAMS)
            if given is None:
                raise
            fail(self.storage, trial_id, f"the enqueued values {given} are not in the space: {first_line(error)}", final=True)
            self.claimed_ids.discard(trial_id)
            return None
        return ClaimedTrial(trial_id, number, assignment, attrs.get(RETRY_OF), slot.promoted_from)

    def _propose_with_prior(self, number: int, given: Assignment) -> Assignment:
        """Return the values that the sampler proposes where it sees earlier studies as well; only those given once it sees none.

        It is asked in a study in memory that has these results before the own trials; whoever asks for the trial gets the same values.
        """
        if not self._prior.size(len(self.finished)):
            return given
        own = [trial for trial in self.trials() if trial.state is not TrialState.WAITING and trial.state is not TrialState.FAIL]
        hidden = {number, *self._ledger.continued}
        own = [trial for trial in own if trial.number not in hidden and TrialEntry(trial).finalist is None]
        storage = optuna.storages.InMemoryStorage()
        minimize = self.directions[0] == "minimize"
        study_id = storage.create_new_study([StudyDirection[self.directions[0].upper()]], self.name)
        asked = optuna.trial.create_trial(state=TrialState.RUNNING, system_attrs={FIXED_PARAMS: given})
        for trial in [*self._prior.observations(own, minimize=minimize), *own]:
            storage.create_new_trial(study_id, template_trial=trial)
        study = optuna.load_study(study_name=self.name, storage=storage, pruner=self.pruner)
        return self._suggest(study, storage.create_new_trial(study_id, template_trial=asked), number)

    def _suggest(self, study: optuna.Study, trial_id: int, number: int) -> Assignment:
        study.sampler = self.make_sampler(number)
        trial = optuna.trial.Trial(study, trial_id)  # Study.ask takes no id of a waiting trial
        assignment: Assignment = {}
        for parameter in self.space.active(assignment):
            distribution_ = self._distributions[parameter.name]
            value: Scalar
            if isinstance(distribution_, CategoricalDistribution):
                value = trial.suggest_categorical(parameter.name, distribution_.choices)
            elif isinstance(distribution_, IntDistribution):
                value = trial.suggest_int(
                    parameter.name, distribution_.low, distribution_.high, step=distribution_.step, log=distribution_.log
                )
            else:
                assert isinstance(distribution_, FloatDistribution)
                value = trial.suggest_float(
                    parameter.name, distribution_.low, distribution_.high, step=distribution_.step, log=distribution_.log
                )
            assignment[parameter.name] = value
        if self.extend is not None:
            self.extend(trial)
            assignment |= {name: value for name, value in trial.params.items() if name not in assignment}
        return assignment

    # --- failures ---------------------------------------------------------------------------------------------------------------------

    def fail_interrupted(self) -> None:
        """Record, uncharged, that the trials of this sweeper which had not finished were interrupted."""
        for trial in self.trials():
            if id_of(trial) in self.claimed_ids and not trial.state.is_finished():
                fail(self.storage, id_of(trial), INTERRUPTED, charged=False)
        self.ledger()

    def fail_dead_trials(self, ledger: Ledger) -> list[tuple[int, str]]:
        """Record the failure of running trials whose process is gone; return (number, reason) of each."""
        failed = []
        surplus = [
            entry.trial for entry in [*ledger.surplus.values(), *self.finalist_runs.surplus.values()] if isinstance(entry, TrialEntry)
        ]
        for trial in [*self.running(ledger), *(trial for trial in surplus if trial.state is TrialState.RUNNING)]:
            if id_of(trial) in self.claimed_ids:
                continue
            dead = self._check_alive(trial)
            if dead is None:
                continue
            if CANCEL in trial.system_attrs:
                record_cancelled(self.storage, id_of(trial))
            elif fail(self.storage, id_of(trial), dead.reason, charged=dead.charged):
                failed.append((trial.number, dead.reason))
        return failed

    def _check_alive(self, trial: FrozenTrial) -> _DeadTrial | None:
        """Return why a running trial counts as dead; None while its process may be alive."""
        attrs = trial.system_attrs
        job, owner = Process.from_dict(attrs.get(JOB)), Process.from_dict(attrs.get(OWNER))
        worker = job or owner
        if worker is None:
            lost = self._ownerless.is_silent(id_of(trial), None)
            return _DeadTrial("its sweeper died before it started", charged=False) if lost else None
        if not worker.is_local():
            beat = attrs.get(BEAT, attrs.get(OWNER))
            silent = self._watch.is_silent(id_of(trial), json.dumps(beat))
            return _DeadTrial(f"no heartbeat from {worker.host} for {self._watch.patience:.0f} s", charged=False) if silent else None
        if worker.is_alive():
            return None
        owner_lives = owner is not None and owner.is_local() and owner.is_alive() and job is not None
        if owner_lives and owner != Process.current():
            return None  # the sweeper that owns it will record it
        return _DeadTrial(f"its process {worker.pid} died", charged=owner_lives)


@dataclass(frozen=True)
class _DeadTrial:
    """Why a running trial counts as dead, and whether that failure counts towards its retries."""

    reason: str
    charged: bool


def _retry_attributes(slot: Slot) -> dict[str, Any]:
    """Return the system attributes of the next attempt of a slot."""
    failed = slot.latest
    assert isinstance(failed, TrialEntry)
    given = failed.trial.system_attrs.get(FIXED_PARAMS) or {}  # it may have died before all of them were its parameters
    values = {**given, **failed.trial.params}
    return {RETRY_OF: failed.number, **({FIXED_PARAMS: values} if values else {})}


def _end_of(trial: FrozenTrial) -> float:
    """Return when a trial ended, in seconds; trials of other programs may lack it."""
    return trial.datetime_complete.timestamp() if trial.datetime_complete else 0.0


def describe(space: Space) -> dict[str, Any]:
    """Return each parameter of a space as text, as the study stores it to be compared."""

    def text_of(domain: Domain) -> str:
        if isinstance(domain, Choice):
            return f"choice({', '.join(domain.texts)})"
        text = f"{domain.low:g} to {domain.high:g}"
        text += f" step {domain.step:g}" if domain.step else ""
        return text + (", log" if domain.log else "") + (", whole" if domain.whole else "")

    return {parameter.name: text_of(parameter.domain) for parameter in space.all_parameters()}
