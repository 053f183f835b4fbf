from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from speechtrain.sweep.study.ledger import Ledger, Slot, State, read_ledger
from speechtrain.sweep.study.promotion import KeepBest, PromotionRule, SuccessiveHalving
from speechtrain.sweep.study.standings import Standings


@dataclass(frozen=True)
class Entry:
    number: int
    state: State = State.WAITING
    retry_of: int | None = None
    charged: bool = True
    final: bool = False
    paused_at: int | None = None
    values: Mapping[int, float] = field(default_factory=dict)
    features: Mapping[str, float] = field(default_factory=dict)


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
@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(0, 2), st.sampled_from(["", "halving", "keep_best"]))
def test_a_ledger_that_takes_in_what_has_changed_is_the_one_read_from_all_trials(seed, n_trials, retries, rule):
    rng = random.Random(seed)
    world = World(n_trials, retries, RULES[rule])
    kept = Ledger(n_trials=n_trials, retries=retries, standings=world.standings())
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
        for name in ("slots", "surplus", "waiting", "running", "to_retry", "done", "failed", "to_continue", "continued", "is_complete"):
            assert getattr(kept, name) == getattr(read, name), name


def test_a_slot_that_failed_for_good_is_open_again_where_another_sweeper_repeats_it():
    ledger = ledger_of(Entry(0, State.FAIL), n_trials=1, retries=0)
    assert (ledger.done, len(ledger.failed)) == (1, 1)

    ledger.put(Entry(1, retry_of=0))

    assert (ledger.done, ledger.failed, [entry.number for _, entry in ledger.waiting]) == (0, [], [1])


def test_a_paused_slot_is_done_until_it_is_continued_and_the_study_complete_once_none_is_to_be():
    rule = SuccessiveHalving(1, 2)

    def ledger(*entries: Entry) -> Ledger:
        return read_ledger(entries, n_trials=2, retries=0, standings=Standings(rule, "minimize"))

    first, second = (Entry(number, State.PRUNED, paused_at=1, values={0: number / 10}) for number in range(2))
    before = ledger(first, second)
    assert (before.done, before.is_complete, before.to_continue.rank, len(before.paused)) == (2, False, 0, 2)

    running = ledger(first, second, Entry(2, State.RUNNING, retry_of=0, values=first.values))
    assert (running.done, running.is_complete, running.to_continue, running.continued) == (1, False, None, {0: 2})
    assert running.slots[0].promoted_from == 1

    done = ledger(first, second, Entry(2, State.COMPLETE, retry_of=0), Entry(3, State.RUNNING, retry_of=0))
    assert done.is_complete
    assert [entry.number for entry in done.paused] == [1]
    assert list(done.surplus) == [3]  # continued by two sweepers at once


RULES: dict[str, PromotionRule | None] = {"": None, "halving": SuccessiveHalving(1, 2), "keep_best": KeepBest(1, keep=2)}
EPOCHS = 5


class World:
    """Sweepers that plan, claim and die at any moment on storage whose single steps are atomic, as Optuna's are."""

    def __init__(self, n_trials: int, retries: int, rule: PromotionRule | None = None) -> None:
        self.n_trials = n_trials
        self.retries = retries
        self.rule = rule
        self.now = Ledger(n_trials=n_trials, retries=retries, standings=self.standings())
        self.entries: list[Entry] = []
        self.runs: list[int] = []

    def standings(self) -> Standings | None:
        return Standings(self.rule, "minimize") if self.rule is not None else None

    def read(self) -> Ledger:
        return read_ledger(self.entries, n_trials=self.n_trials, retries=self.retries, standings=self.standings())

    def create(self, retry_of: int | None = None, state: State = State.WAITING) -> None:
        values = self.entries[retry_of].values if retry_of is not None else {}
        self.entries.append(Entry(len(self.entries), state, retry_of=retry_of, values=values))
        self.now.put(self.entries[-1])

    def set(self, number: int, state: State, **changes: bool | int) -> bool:
        before = self.entries[number].state
        allowed = before is State.WAITING if state is State.RUNNING else before is State.RUNNING
        if allowed:
            self.put(replace(self.entries[number], state=state, **changes))
        return allowed

    def put(self, entry: Entry) -> None:
        self.entries[entry.number] = entry
        self.now.put(entry)

    def claim(self, number: int) -> None:
        if self.set(number, State.RUNNING):
            self.runs.append(number)

    def train(self, number: int) -> None:
        """An epoch of a running trial, after which it may pause or come to its end."""
        before = self.entries[number]
        step = len(before.values)
        values = {**before.values, step: (number * 37 + step * 11) % 10 / 10}
        self.put(replace(before, values=values))
        slot = self.now.slot_of(number)
        if step + 1 >= EPOCHS:
            self.set(number, State.COMPLETE)
        elif (
            slot is not None
            and self.rule.rung_at(step + 1) != self.rule.rung_at(step)
            and not self.now.standings.goes_on(slot.rank, step + 1)
        ):
            self.set(number, State.PRUNED, paused_at=step + 1)

    def step(self, rng: random.Random, ledger: Ledger) -> None:
        """One storage step of a sweeper, or the end of a job; nothing where the action does not fit the ledger."""
        action = rng.choice(["plan", "retry", "claim", "end", "die", "continue", "train", "train"])
        running = self.now.running
        if action == "plan" and len(ledger.slots) < self.n_trials:
            self.create()
        elif action == "retry" and ledger.to_retry:
            self.create(retry_of=rng.choice(ledger.to_retry).latest.number)
        elif action == "claim" and ledger.waiting:
            self.claim(rng.choice(ledger.waiting)[1].number)
        elif action == "end" and running and self.rule is None:
            self.set(rng.choice(running).number, rng.choice([State.COMPLETE, State.PRUNED, State.COMPLETE]))
        elif action == "continue" and ledger.to_continue is not None:
            paused = ledger.to_continue.latest.number
            self.create(retry_of=paused, state=State.RUNNING)
            if self.now.slot_of(len(self.entries) - 1) is None:
                self.set(len(self.entries) - 1, State.FAIL)
            else:
                self.runs.append(len(self.entries) - 1)
        elif action == "train" and running and self.rule is not None:
            self.train(rng.choice(running).number)
        elif action == "die" and running:
            self.set(rng.choice(running).number, State.FAIL, charged=rng.random() < 0.7)

    def finish(self) -> None:
        """The last sweeper alone does what is left."""
        for _ in range(100):
            if self.now.to_continue is not None:
                self.create(retry_of=self.now.to_continue.latest.number, state=State.RUNNING)
            for slot in self.now.to_retry:
                self.create(retry_of=slot.latest.number)
            for _ in range(self.n_trials - len(self.now.slots)):
                self.create()
            for _, entry in self.now.waiting:
                self.claim(entry.number)
            for entry in self.now.running:
                if self.rule is None:
                    self.set(entry.number, State.COMPLETE)
                else:
                    self.train(entry.number)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(0, 2), st.integers(1, 4), st.sampled_from(["", "halving", "keep_best"]))
def test_whoever_dies_whenever_each_slot_is_settled_once_and_no_more_than_the_quota_runs(seed, n_trials, retries, sweepers, rule):
    """Each sweeper acts on a ledger that may be out of date, one storage step at a time, in any interleaving."""
    rng = random.Random(seed)
    world = World(n_trials, retries, RULES[rule])
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
    results = [entry for entry in world.entries if entry.state in (State.COMPLETE, State.PRUNED) and entry.number not in final.continued]
    assert len(results) <= n_trials
    failed = [slot for slot in final.slots if slot.latest.state is State.FAIL]
    assert any(slot.latest.state is State.COMPLETE for slot in final.slots) or len(failed) == n_trials or not rule
    for slot in final.slots:
        pauses = [attempt.paused_at for attempt in slot.attempts if attempt.paused_at is not None]
        assert pauses == sorted(set(pauses)), "it paused twice at a rung"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.sampled_from(["halving", "keep_best"]))
def test_what_is_out_of_reach_is_never_continued(seed, n_trials, rule):
    rng = random.Random(seed)
    world = World(n_trials, 1, RULES[rule])
    out: set[int] = set()
    for _ in range(300):
        world.step(rng, world.now)
        out |= {entry.number for entry in world.now.out_of_reach}
    world.finish()

    assert out.isdisjoint(world.now.continued)


def assert_settled_once(slot: Slot, retries: int) -> None:
    *earlier, latest = slot.attempts
    finished = [latest] if latest.state in (State.COMPLETE, State.PRUNED) else []
    assert all(attempt.state is State.FAIL or attempt.paused_at is not None for attempt in earlier), "a slot has two results"
    charged = sum(attempt.charged for attempt in slot.attempts if attempt.state is State.FAIL)
    assert charged <= retries + 1
    assert finished or charged == retries + 1
