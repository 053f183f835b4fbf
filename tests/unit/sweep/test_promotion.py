"""Which trials pause at a rung, and which paused one is continued next: pure functions of what the slots have reported."""

from __future__ import annotations

import math

import optuna
import pytest

from speechtrain.sweep.study.promotion import KeepBest, PromotionRule, SuccessiveHalving
from speechtrain.sweep.study.samplers import can_prune, make_pruner, node_of, with_epochs
from speechtrain.sweep.study.standings import Progress, Standings

RUNNING = Progress(all_begun=False, open_slots=[], complete=())


def paused(rule: PromotionRule, at: int, *values: float, direction="minimize") -> Standings:
    """Standings in which slot n has reported the n-th value after every epoch, and has paused."""
    standings = Standings(rule, direction)
    for slot, value in enumerate(values):
        standings.put(slot, dict.fromkeys(range(at), value), at)
    return standings


def test_rungs_are_powers_of_the_reduction_factor():
    rule = SuccessiveHalving(2, 3)

    assert [rule.rung_at(epochs) for epochs in (1, 2, 5, 6, 17, 18)] == [None, 2, 2, 6, 6, 18]


def test_the_best_third_goes_on_and_the_best_of_the_others_once_more_have_come():
    standings = Standings(SuccessiveHalving(1, 3), "minimize")
    for slot, value in enumerate([0.5, 0.4]):
        standings.put(slot, {0: value}, None)
        assert not standings.goes_on(slot, 1)  # of fewer than three, none is the best third
        standings.put(slot, {0: value}, 1)
    assert standings.rule.next_slot(standings, RUNNING) is None

    standings.put(2, {0: 0.3}, None)
    assert standings.goes_on(2, 1)
    standings.put(2, {0: 0.3, 1: 0.2}, None)
    standings.put(3, {0: 0.9}, 1)
    standings.put(4, {0: 0.8}, 1)
    assert standings.rule.next_slot(standings, RUNNING) is None  # the best of five has gone on

    standings.put(5, {0: 0.7}, 1)
    assert standings.rule.next_slot(standings, RUNNING) == 1  # one of the best two of six
    standings.put(1, {0: 0.4}, None)
    assert standings.rule.next_slot(standings, RUNNING) is None


def test_the_highest_rung_comes_first():
    standings = Standings(SuccessiveHalving(1, 2), "minimize")
    for slot in range(4):
        standings.put(slot, {0: slot / 10, 1: slot / 10} if slot > 1 else {0: slot / 10}, 2 if slot > 1 else 1)

    assert standings.rule.next_slot(standings, RUNNING) == 2
    standings.put(2, {0: 0.2, 1: 0.2, 2: 0.2}, None)
    assert standings.rule.next_slot(standings, RUNNING) == 0


@pytest.mark.parametrize(("direction", "best"), [("minimize", 0), ("maximize", 2)])
def test_the_direction_says_which_is_the_best_and_what_is_no_number_is_the_worst(direction, best):
    standings = paused(SuccessiveHalving(1, 3), 1, 0.1, math.nan, 0.2, direction=direction)

    assert standings.rule.next_slot(standings, RUNNING) == best
    assert standings.rungs[1].place_of(1) == 2


def test_a_value_between_two_rungs_is_compared_at_the_one_below_and_counts_once():
    standings = Standings(SuccessiveHalving(2, 3), "minimize")
    standings.put(0, {3: 0.5, 4: 0.1}, None)  # measured for the first time after four epochs

    assert list(standings.rungs) == [2]
    assert standings.rungs[2].reached == [(0.5, 0)]


def test_at_the_end_the_best_of_the_highest_rung_is_continued_until_one_has_a_result():
    standings = paused(SuccessiveHalving(1, 3), 1, 0.3, 0.2)

    assert standings.rule.next_slot(standings, Progress(all_begun=True, open_slots=[1], complete=())) is None
    assert standings.rule.next_slot(standings, Progress(all_begun=True, open_slots=[], complete=())) == 1
    assert standings.rule.next_slot(standings, Progress(all_begun=True, open_slots=[], complete=(0,))) is None


def test_the_best_are_kept_once_all_have_come_to_their_first_epochs():
    standings = paused(KeepBest(1, keep=2), 1, 0.3, 0.1, 0.2)
    all_there = Progress(all_begun=True, open_slots=[], complete=())

    assert not standings.goes_on(1, 1)
    assert standings.rule.next_slot(standings, RUNNING) is None
    assert standings.rule.next_slot(standings, Progress(all_begun=True, open_slots=[3], complete=())) is None  # it may be better
    order = []
    while (slot := standings.rule.next_slot(standings, all_there)) is not None:
        order.append(slot)
        standings.put(slot, {0: 0.0}, None)
        all_there = Progress(all_begun=True, open_slots=order, complete=())
    assert order == [1, 2]


def test_what_has_too_many_better_ones_for_the_whole_study_is_out_and_stays_out():
    halving, keep = paused(SuccessiveHalving(1, 3), 1, 0.1, 0.2, 0.3, 0.4), paused(KeepBest(1, keep=3), 1, 0.1, 0.2, 0.3, 0.4)

    def out(standings: Standings, n_slots: int) -> list[int]:
        return [slot for _, slot in standings.rungs[1].paused if standings.rule.is_out(standings.rungs[1], slot, n_slots)]

    assert out(halving, 4) == [1, 2, 3]
    assert out(halving, 9) == [3]  # of nine, three go on
    assert out(halving, 12) == []
    assert out(keep, 100) == [3]
    halving.put(4, {0: 0.25}, 1)
    assert out(halving, 9) == [2, 3]


@pytest.mark.parametrize("name", ["halving", "one_epoch", "freeze_thaw"])
def test_a_rule_is_chosen_as_a_pruner_and_prunes_where_nobody_continues_trials(name):
    node = node_of(name, "pruner")
    study = optuna.create_study(pruner=make_pruner(node))
    states = []
    for value in (0.3, 0.2, 0.1):
        trial = study.ask()
        for step in range(4):
            trial.report(value, step)
            if trial.should_prune():
                states.append((value, step))
                break

    assert (
        states
        == {
            "halving": [(0.3, 1), (0.2, 1)],
            "one_epoch": [(0.3, 0), (0.2, 0), (0.1, 0)],
            "freeze_thaw": [(0.2, 2), (0.1, 2)],  # the first one shows how long a training is
        }[name]
    )
    assert can_prune(node, range(4), direction="minimize", n_trials=10)


def test_freeze_thaw_pauses_first_after_a_quarter_of_the_epochs_where_these_are_known():
    node = node_of("freeze_thaw", "pruner")

    assert make_pruner(with_epochs(node, 38)).rung_at(19) == 10
    assert make_pruner(with_epochs({**node, "min_resource": 4}, 40)).rung_at(19) == 16
    assert make_pruner(with_epochs(node, 0)).rung_at(5) == 3
    assert make_pruner(with_epochs(node, 1)).rung_at(1) == 1
    assert with_epochs(node_of("halving", "pruner"), 40) == node_of("halving", "pruner")


@pytest.mark.parametrize("changes", [{"min_resource": 0}, {"reduction_factor": 1}, {"min_resource": 1.5}])
def test_what_makes_no_rungs_is_refused(changes):
    with pytest.raises(ValueError, match="must be a whole number of at least"):
        SuccessiveHalving(**changes)
