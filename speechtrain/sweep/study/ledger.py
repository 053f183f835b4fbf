"""Which trials of a study are done, running, waiting or to be retried: a pure function of the list of trials, without a storage.

Every sweeper that shares a study reads the same ledger from it. A *slot* is one of the n_trials places of a study; the trials in it are
its first *attempt* and its retries. Slots are numbered in the order in which their first attempts were planned. Whatever process dies at
whatever moment, the next reading says what is left to do. `study.py` acts on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol


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
        retry_of: number of the failed trial that it repeats; None: a first attempt.
        charged: whether its failure counts towards `retries`; a trial that was interrupted, or whose machine went away, does not.
        final: whether its failure would be the same again, so that it is not repeated.
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

    def wants_retry(self, retries: int) -> bool:
        """Return whether the newest attempt failed and another one is allowed."""
        if self.latest.state is not State.FAIL or self.latest.final:
            return False
        charged = sum(attempt.charged for attempt in self.attempts if attempt.state is State.FAIL)
        return not self.latest.charged or charged <= retries

    def is_done(self, retries: int) -> bool:
        """Return whether the slot has a result, or failed for good."""
        return self.latest.state in (State.COMPLETE, State.PRUNED) or (self.latest.state is State.FAIL and not self.wants_retry(retries))


@dataclass
class Ledger:
    """The slots of a study and what is to be done about them.

    Attributes:
        slots: the first n_trials slots.
        surplus: waiting trials beyond n_trials, or planned twice at the same moment by two sweepers; they are never run.
        retries: number of charged failures of a slot that are retried.
    """

    slots: list[Slot]
    surplus: list[LedgerEntry] = field(default_factory=list)
    retries: int = 0

    @property
    def waiting(self) -> list[tuple[int, LedgerEntry]]:
        """Return (rank of the slot, trial) of what can be claimed now; retries come first, for their slots are older."""
        waiting = [(slot.rank, slot.latest) for slot in self.slots if slot.latest.state is State.WAITING]
        return sorted(waiting, key=lambda item: (item[1].retry_of is None, item[1].number))

    @property
    def running(self) -> list[LedgerEntry]:
        """Return the trials that a process runs, or ran before it died."""
        return [slot.latest for slot in self.slots if slot.latest.state is State.RUNNING]

    @property
    def to_retry(self) -> list[Slot]:
        """Return the slots whose next attempt is not planned yet."""
        return [slot for slot in self.slots if slot.wants_retry(self.retries)]

    @property
    def done(self) -> list[Slot]:
        """Return the slots in which nothing more will happen."""
        return [slot for slot in self.slots if slot.is_done(self.retries)]

    def is_complete(self, n_trials: int) -> bool:
        """Return whether the study has the results that were asked for."""
        return len(self.done) >= n_trials


def read_ledger(entries: Iterable[LedgerEntry], *, n_trials: int, retries: int) -> Ledger:
    """Read the ledger from all trials of a study, given in any order."""
    ordered: Sequence[LedgerEntry] = sorted(entries, key=lambda entry: entry.number)
    slots: list[Slot] = []
    surplus: list[LedgerEntry] = []
    slot_of: dict[int, Slot] = {}
    for entry in ordered:
        if entry.retry_of is None:
            slot = Slot(len(slots), [entry])
            slots.append(slot)
        else:
            slot = slot_of.get(entry.retry_of, Slot(-1, []))
            if slot.rank < 0 or slot.latest.number != entry.retry_of:  # planned by two sweepers at once: the first one counts
                surplus.append(entry)
                continue
            slot.attempts.append(entry)
        slot_of[entry.number] = slot
    surplus += [slot.latest for slot in slots[n_trials:] if slot.latest.state is State.WAITING]
    return Ledger(slots[:n_trials], surplus, retries)
