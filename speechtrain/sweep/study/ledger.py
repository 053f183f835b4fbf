"""Who has been tried, who runs, who comes next: a pure reading of a study's trials, the same for every sweeper that shares it.

A *slot* is one of the n_trials places of a study; the trials in it are its first *attempt* and its retries. Slots are numbered in the
order in which their first attempts were planned. Whatever process dies at whatever moment, the next reading says what is left to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol


class State(Enum):
    """Of a trial, in Optuna's words."""

    WAITING = "WAITING"
    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    FAIL = "FAIL"


class Entry(Protocol):
    """What the ledger reads of a trial.

    Attributes:
        number: of the trial in its study.
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
    attempts: list[Entry]

    @property
    def latest(self) -> Entry:
        """The trial that stands for the slot."""
        return self.attempts[-1]

    def wants_retry(self, retries: int) -> bool:
        """Whether its last attempt failed and it may try again."""
        if self.latest.state is not State.FAIL or self.latest.final:
            return False
        charged = sum(attempt.charged for attempt in self.attempts if attempt.state is State.FAIL)
        return not self.latest.charged or charged <= retries

    def is_done(self, retries: int) -> bool:
        """Whether nothing more will happen in it."""
        return self.latest.state in (State.COMPLETE, State.PRUNED) or (self.latest.state is State.FAIL and not self.wants_retry(retries))


@dataclass
class Ledger:
    """A study as the sweepers see it.

    Attributes:
        slots: those within n_trials.
        surplus: waiting trials beyond n_trials or planned twice at the same moment by two sweepers; they are never run.
    """

    slots: list[Slot]
    surplus: list[Entry] = field(default_factory=list)
    retries: int = 0

    @property
    def waiting(self) -> list[tuple[int, Entry]]:
        """(slot, trial) that can be taken now, retries first: they are older."""
        found = [(slot.rank, slot.latest) for slot in self.slots if slot.latest.state is State.WAITING]
        return sorted(found, key=lambda item: (item[1].retry_of is None, item[1].number))

    @property
    def running(self) -> list[Entry]:
        """Trials that some process works on, or worked on before it died."""
        return [slot.latest for slot in self.slots if slot.latest.state is State.RUNNING]

    @property
    def to_retry(self) -> list[Slot]:
        """Slots whose next attempt is still to be planned."""
        return [slot for slot in self.slots if slot.wants_retry(self.retries)]

    @property
    def done(self) -> list[Slot]:
        """Slots that are settled."""
        return [slot for slot in self.slots if slot.is_done(self.retries)]

    def is_complete(self, n_trials: int) -> bool:
        """Whether the study has what was asked for."""
        return len(self.done) >= n_trials


def read_ledger(entries: Iterable[Entry], *, n_trials: int, retries: int) -> Ledger:
    """The ledger of all trials of a study, in any order."""
    ordered: Sequence[Entry] = sorted(entries, key=lambda entry: entry.number)
    slots: list[Slot] = []
    surplus: list[Entry] = []
    of: dict[int, Slot] = {}
    for entry in ordered:
        if entry.retry_of is None:
            slot = Slot(len(slots), [entry])
            slots.append(slot)
        else:
            slot = of[entry.retry_of] if entry.retry_of in of else Slot(-1, [])
            if slot.rank < 0 or slot.latest.number != entry.retry_of:  # planned by two sweepers at once: the first one counts
                surplus.append(entry)
                continue
            slot.attempts.append(entry)
        of[entry.number] = slot
    surplus += [slot.latest for slot in slots[n_trials:] if slot.latest.state is State.WAITING]
    return Ledger(slots[:n_trials], surplus, retries)
