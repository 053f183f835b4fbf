"""Which trials of a study are done, running, waiting or to be retried: a function of the list of trials alone, without a storage.

Every sweeper that shares a study reads the same ledger from it. A *slot* is one of the n_trials places of a study; the trials in it are
its first *attempt*, its retries, and those that continue one which had paused. Slots are numbered in the order in which their first
attempts were planned. Whatever process dies at whatever moment, the next reading says what is left to do. `study.py` acts on it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from speechtrain.sweep.study.standings import Progress, Standings


class State(Enum):
    """States of a trial, with Optuna's names."""

    WAITING = "WAITING"
    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    FAIL = "FAIL"


class LedgerEntry(Protocol):
    """The facts of a trial that the ledger depends on.

    Attributes:
        number: number of the trial in its study.
        retry_of: number of the failed or paused trial that it goes on from; None: a first attempt.
        charged: whether its failure counts towards `retries`; a trial that was interrupted, or whose machine went away, does not.
        final: whether its failure would be the same again, so that it is not repeated.
        paused_at: epochs after which it was pruned for the time being, so that it may be continued; None: it was not.
        values: what it has reported, by steps, which count epochs from 0.
        features: its parameters as numbers; asked for only where a rule that pauses trials uses them.
    """

    @property
    def number(self) -> int: ...
    @property
    def state(self) -> State: ...
    @property
    def retry_of(self) -> int | None: ...
    @property
    def charged(self) -> bool: ...
    @property
    def final(self) -> bool: ...
    @property
    def paused_at(self) -> int | None: ...
    @property
    def values(self) -> Mapping[int, float]: ...
    @property
    def features(self) -> Mapping[str, float]: ...


@dataclass
class Slot:
    """One place of the study.

    Attributes:
        rank: its position among the slots.
        attempts: its trials, oldest first.
    """

    rank: int
    attempts: list[LedgerEntry]

    @property
    def latest(self) -> LedgerEntry:
        """Return the newest attempt, whose state is the slot's."""
        return self.attempts[-1]

    @property
    def promoted_from(self) -> int:
        """Return the epochs after which its newest pause that was ended took place; 0: there was none."""
        return max((attempt.paused_at or 0 for attempt in self.attempts[:-1]), default=0)

    def wants_retry(self, retries: int) -> bool:
        """Return whether the newest attempt failed and another one is allowed."""
        if self.latest.state is not State.FAIL or self.latest.final:
            return False
        charged = sum(attempt.charged for attempt in self.attempts if attempt.state is State.FAIL)
        return not self.latest.charged or charged <= retries

    def is_done(self, retries: int) -> bool:
        """Return whether the slot has a result, or failed for good."""
        return self.latest.state in (State.COMPLETE, State.PRUNED) or (self.latest.state is State.FAIL and not self.wants_retry(retries))


class Ledger:
    """The slots of a study and what is to be done about them.

    It is kept up to date trial by trial, and asks nothing of slots that are done, so that what it costs follows from what has changed and
    from what is under way, not from the length of the study.

    Args:
        n_trials: number of slots that are to be filled; what is planned beyond them is never run.
        retries: number of charged failures of a slot that are retried.
        standings: kept up to date with what the slots report, where trials pause; None: they do not.

    Attributes:
        slots: the first n_trials slots.
        surplus: trials that were planned twice at the same moment by two sweepers, and first attempts beyond n_trials, by number; those
            that wait are never run.
        continued: for each paused trial that is continued, the number of the trial which does so.
    """

    def __init__(self, *, n_trials: int, retries: int, standings: Standings | None = None) -> None:
        self.n_trials = n_trials
        self.retries = retries
        self.standings = standings
        self.slots: list[Slot] = []
        self.surplus: dict[int, LedgerEntry] = {}
        self.continued: dict[int, int] = {}
        self._complete: set[int] = set()
        self._slot_of: dict[int, Slot] = {}
        self._open: dict[int, Slot] = {}
        self._failed: dict[int, Slot] = {}
        self._first_attempts = 0

    def put(self, entry: LedgerEntry) -> None:
        """Take in a trial: a new one, of a higher number than all before, or the present state of one that is known."""
        slot = self._slot_of.get(entry.number)
        if slot is not None:
            place = next(index for index, attempt in enumerate(slot.attempts) if attempt.number == entry.number)
            slot.attempts[place] = entry
        elif entry.number in self.surplus:
            self.surplus[entry.number] = entry
            return
        elif entry.retry_of is None:
            slot = self._begin_slot(entry)
        else:
            slot = self._slot_of.get(entry.retry_of)
            if slot is None or slot.latest.number != entry.retry_of:  # planned by two sweepers at once: the first one counts
                self.surplus[entry.number] = entry
                return
            if slot.latest.paused_at is not None:
                self.continued[slot.latest.number] = entry.number
            slot.attempts.append(entry)
        self._slot_of[entry.number] = slot
        self._sort_in(slot)

    def _begin_slot(self, entry: LedgerEntry) -> Slot:
        slot = Slot(self._first_attempts, [entry])
        self._first_attempts += 1
        if slot.rank < self.n_trials:
            self.slots.append(slot)
        else:
            self.surplus[entry.number] = entry
        return slot

    def _sort_in(self, slot: Slot) -> None:
        """Note whether a slot is done, and how; one that was done is open again where a sweeper that retries more often repeats it."""
        if slot.rank >= self.n_trials:
            self.surplus[slot.latest.number] = slot.latest
            return
        if self.standings is not None:
            self.standings.put(slot.rank, slot.latest.values, slot.latest.paused_at)
            if self.standings.rule.uses_features and (features := slot.latest.features):  # none yet of an attempt that has just begun
                self.standings.features[slot.rank] = features
        if slot.latest.state is State.COMPLETE:
            self._complete.add(slot.rank)
        if not slot.is_done(self.retries):
            self._open[slot.rank] = slot
            self._failed.pop(slot.rank, None)
        else:
            self._open.pop(slot.rank, None)
            if slot.latest.state is State.FAIL:
                self._failed[slot.rank] = slot

    @property
    def _open_slots(self) -> list[Slot]:
        return [self._open[rank] for rank in sorted(self._open)]

    @property
    def waiting(self) -> list[tuple[int, LedgerEntry]]:
        """Return (rank of the slot, trial) of what can be claimed now; retries come first, for their slots are older."""
        waiting = [(slot.rank, slot.latest) for slot in self._open_slots if slot.latest.state is State.WAITING]
        return sorted(waiting, key=lambda item: (item[1].retry_of is None, item[1].number))

    @property
    def running(self) -> list[LedgerEntry]:
        """Return the trials that a process runs, or ran before it died."""
        return [slot.latest for slot in self._open_slots if slot.latest.state is State.RUNNING]

    @property
    def to_retry(self) -> list[Slot]:
        """Return the slots whose next attempt is not planned yet."""
        return [slot for slot in self._open_slots if slot.wants_retry(self.retries)]

    @property
    def done(self) -> int:
        """Return the number of slots in which nothing more will happen."""
        return len(self.slots) - len(self._open)

    @property
    def failed(self) -> list[LedgerEntry]:
        """Return the last attempts of the slots that failed for good."""
        return [self._failed[rank].latest for rank in sorted(self._failed)]

    @property
    def is_complete(self) -> bool:
        """Return whether the study has the results that were asked for."""
        return self.done >= self.n_trials and self.to_continue is None

    @property
    def paused(self) -> list[LedgerEntry]:
        """Return the paused trials that are not continued."""
        return [slot.latest for slot in self.slots if slot.latest.paused_at is not None]

    @property
    def out_of_reach(self) -> list[LedgerEntry]:
        """Return the paused trials that no rule will continue; none as long as one may have to be because no trial came to its end."""
        if self.standings is None or not self._complete:
            return []
        rule, rungs = self.standings.rule, self.standings.rungs.values()
        return [self.slots[rank].latest for rung in rungs for _, rank in rung.paused if rule.is_out(rung, rank, self.n_trials)]

    @property
    def to_continue(self) -> Slot | None:
        """Return the slot whose paused trial is to be continued before another trial is begun; None: there is none."""
        if self.standings is None:
            return None
        all_begun = len(self.slots) >= self.n_trials
        rank = self.standings.rule.next_slot(self.standings, Progress(all_begun, self._open, self._complete))
        return None if rank is None else self.slots[rank]

    def slot_of(self, number: int) -> Slot | None:
        """Return the slot of a trial; None for one that is surplus."""
        slot = self._slot_of.get(number)
        return slot if slot is not None and slot.rank < self.n_trials else None


class FinalistRuns:
    """The trials of a race between the best configurations, in a slot for each configuration and seed; kept up to date trial by trial.

    Of two sweepers that train the same one at the same moment the first counts.

    Args:
        retries: number of charged failures of a slot that are retried.

    Attributes:
        surplus: the trials that do not count, by number.
    """

    def __init__(self, retries: int) -> None:
        self.retries = retries
        self.surplus: dict[int, LedgerEntry] = {}
        self._slots: dict[Hashable, Slot] = {}
        self._slot_of: dict[int, Slot] = {}

    def put(self, key: Hashable, entry: LedgerEntry) -> None:
        """Take in a trial: a new one, of a higher number than all before, or the present state of one that is known.

        Args:
            key: the configuration and the seed.
            entry: the trial.
        """
        slot = self._slots.setdefault(key, Slot(len(self._slots), []))
        if entry.number in self._slot_of:
            place = next(index for index, attempt in enumerate(slot.attempts) if attempt.number == entry.number)
            slot.attempts[place] = entry
        elif entry.retry_of == (slot.latest.number if slot.attempts else None):
            slot.attempts.append(entry)
            self._slot_of[entry.number] = slot
        else:
            self.surplus[entry.number] = entry

    def slot(self, key: Hashable) -> Slot | None:
        """Return the slot of a configuration and a seed; None: it was not trained yet."""
        return self._slots.get(key)

    def holds(self, number: int) -> bool:
        """Return whether a trial counts."""
        return number in self._slot_of

    @property
    def running(self) -> list[LedgerEntry]:
        """Return the trials that a process runs, or ran before it died."""
        return [slot.latest for slot in self._slots.values() if slot.attempts and slot.latest.state is State.RUNNING]


def read_ledger(entries: Iterable[LedgerEntry], *, n_trials: int, retries: int, standings: Standings | None = None) -> Ledger:
    """Read the ledger from all trials of a study, given in any order; `standings` are to be new."""
    ledger = Ledger(n_trials=n_trials, retries=retries, standings=standings)
    for entry in sorted(entries, key=lambda entry: entry.number):
        ledger.put(entry)
    return ledger
