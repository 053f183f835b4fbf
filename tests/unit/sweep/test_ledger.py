from __future__ import annotations

import random
from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from speechtrain.sweep.study.ledger import Ledger, Slot, State, read_ledger


@dataclass(frozen=True)
class Entry:
    number: int
    state: State = State.WAITING
    retry_of: int | None = None
    charged: bool = True
    final: bool = False


def ledger_of(*entries: Entry, n_trials: int = 3, retries: int = 1):
    return read_ledger(entries, n_trials=n_trials, retries=retries)


def test_retries_belong_to_the_slot_of_what_they_repeat():
    ledger = ledger_of(Entry(0, State.FAIL), Entry(1, State.COMPLETE), Entry(2), Entry(3, State.COMPLETE, retry_of=0))

    assert [slot.latest.number for slot in ledger.slots] == [3, 1, 2]
    assert ledger.done == 2
    assert ledger.waiting[0][0] == 2
    assert not ledger.to_retry


def test_a_failure_is_retried_as_often_as_retries_says_and_then_settled():
    once = ledger_of(Entry(0, State.FAIL), n_trials=1, retries=1)
    twice = ledger_of(Entry(0, State.FAIL), Entry(1, State.FAIL, retry_of=0), n_trials=1, retries=1)

    assert [slot.rank for slot in once.to_retry] == [0]
    assert not once.is_complete
    assert not twice.to_retry
    assert twice.is_complete


def test_an_interruption_is_always_retried_and_a_users_mistake_never():
    interrupted = ledger_of(Entry(0, State.FAIL, charged=False), n_trials=1, retries=0)
    mistaken = ledger_of(Entry(0, State.FAIL, final=True), n_trials=1, retries=5)

    assert interrupted.to_retry
    assert not mistaken.to_retry
    assert mistaken.is_complete


def test_retries_are_taken_before_new_trials():
    ledger = ledger_of(Entry(0, State.FAIL), Entry(1), Entry(2), Entry(3, retry_of=0))

    assert [entry.number for _, entry in ledger.waiting] == [3, 1, 2]


def test_what_was_planned_twice_or_beyond_the_quota_is_never_taken():
    ledger = ledger_of(Entry(0, State.FAIL), Entry(1), Entry(2, retry_of=0), Entry(3, retry_of=0), Entry(4), n_trials=2)

    assert [entry.number for _, entry in ledger.waiting] == [2, 1]
    assert sorted(ledger.surplus) == [3, 4]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(0, 2))
def test_a_ledger_that_takes_in_what_has_changed_is_the_one_read_from_all_trials(seed, n_trials, retries):
    rng = random.Random(seed)
    world = World(n_trials, retries)
    kept = Ledger(n_trials=n_trials, retries=retries)
    before: list[Entry] = []
    for _ in range(60):
        stale = world.read()
        for _ in range(rng.randrange(4)):
            world.step(rng, stale)
        for place, entry in enumerate(world.entries):
            if entry not in before[place : place + 1]:
                kept.put(entry)
        before = list(world.entries)
        read = world.read()
        for name in ("slots", "surplus", "waiting", "running", "to_retry", "done", "failed", "is_complete"):
            assert getattr(kept, name) == getattr(read, name), name


def test_a_slot_that_failed_for_good_is_open_again_where_another_sweeper_repeats_it():
    ledger = ledger_of(Entry(0, State.FAIL), n_trials=1, retries=0)
    assert (ledger.done, len(ledger.failed)) == (1, 1)

    ledger.put(Entry(1, retry_of=0))

    assert (ledger.done, ledger.failed, [entry.number for _, entry in ledger.waiting]) == (0, [], [1])


class World:
    """Sweepers that plan, claim and die at any moment on storage whose single steps are atomic, as Optuna's are."""

    def __init__(self, n_trials: int, retries: int) -> None:
        self.n_trials = n_trials
        self.retries = retries
        self.entries: list[Entry] = []
        self.runs: list[int] = []

    def read(self) -> Ledger:
        return read_ledger(self.entries, n_trials=self.n_trials, retries=self.retries)

    def create(self, retry_of: int | None = None) -> None:
        self.entries.append(Entry(len(self.entries), retry_of=retry_of))

    def set(self, number: int, state: State, **changes: bool) -> bool:
        before = self.entries[number].state
        allowed = before is State.WAITING if state is State.RUNNING else before is State.RUNNING
        if allowed:
            self.entries[number] = replace(self.entries[number], state=state, **changes)
        return allowed

    def claim(self, number: int) -> None:
        if self.set(number, State.RUNNING):
            self.runs.append(number)

    def step(self, rng: random.Random, ledger: Ledger) -> None:
        """One storage step of a sweeper, or the end of a job; nothing where the action does not fit the ledger."""
        action = rng.choice(["plan", "retry", "claim", "end", "die"])
        running = self.read().running
        if action == "plan" and len(ledger.slots) < self.n_trials:
            self.create()
        elif action == "retry" and ledger.to_retry:
            self.create(retry_of=rng.choice(ledger.to_retry).latest.number)
        elif action == "claim" and ledger.waiting:
            self.claim(rng.choice(ledger.waiting)[1].number)
        elif action == "end" and running:
            self.set(rng.choice(running).number, rng.choice([State.COMPLETE, State.PRUNED, State.COMPLETE]))
        elif action == "die" and running:
            self.set(rng.choice(running).number, State.FAIL, charged=rng.random() < 0.7)

    def finish(self) -> None:
        """The last sweeper alone does what is left."""
        for _ in range(200):
            ledger = self.read()
            for slot in ledger.to_retry:
                self.create(retry_of=slot.latest.number)
            for _ in range(self.n_trials - len(ledger.slots)):
                self.create()
            for _, entry in self.read().waiting:
                self.claim(entry.number)
            for entry in self.read().running:
                self.set(entry.number, State.COMPLETE)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(0, 2), st.integers(1, 4))
def test_whoever_dies_whenever_each_slot_is_settled_once_and_no_more_than_the_quota_runs(seed, n_trials, retries, sweepers):
    """Each sweeper acts on a ledger that may be out of date, one storage step at a time, in any interleaving."""
    rng = random.Random(seed)
    world = World(n_trials, retries)
    seen = [world.read() for _ in range(sweepers)]
    for _ in range(3000):
        who = rng.randrange(sweepers)
        if rng.random() < 1 / 6:
            seen[who] = world.read()
        else:
            world.step(rng, seen[who])
    world.finish()

    final = world.read()
    assert final.is_complete
    assert len(final.slots) == n_trials
    assert len(world.runs) == len(set(world.runs))
    for slot in final.slots:
        assert_settled_once(slot, retries)
    results = [entry for entry in world.entries if entry.state in (State.COMPLETE, State.PRUNED)]
    assert len(results) <= n_trials


def assert_settled_once(slot: Slot, retries: int) -> None:
    finished = [attempt for attempt in slot.attempts if attempt.state in (State.COMPLETE, State.PRUNED)]
    assert len(finished) <= 1, "a slot has two results"
    charged = sum(attempt.charged for attempt in slot.attempts if attempt.state is State.FAIL)
    assert charged <= retries + 1
    assert finished or charged == retries + 1
