"""The trials of a race between the best configurations, on a journal and without any job."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial

import optuna
import pytest
from studies import make_study

from speechtrain.sweep.reports.page import sweep_page
from speechtrain.sweep.reports.status import StatusReader
from speechtrain.sweep.reports.status_page import page_of
from speechtrain.sweep.study import finalists
from speechtrain.sweep.study.attributes import FAILURE, complete, fail
from speechtrain.sweep.study.finalists import FinalRace
from speechtrain.sweep.study.internals import StudyWithout
from speechtrain.sweep.study.race_plan import RacePlan
from speechtrain.sweep.study.study import ClaimedTrial, Study

PLAN = RacePlan(n=2, max_seeds=3, significance=0.05, direction="minimize", seed_key="seed", first_seed=2)
FOUND = {0.5: 0.4, 0.25: 0.1, 0.75: 0.2, 0.125: math.inf}
"""Values of the search, by x; trials 1 and 2 are the best."""


@pytest.fixture
def make(tmp_path) -> Callable[..., Study]:
    """A sweeper's view of one study."""
    return partial(make_study, tmp_path, first=[{"x": x} for x in FOUND], n_trials=len(FOUND), retries=1)


def search(study: Study) -> None:
    """Run all trials of the search."""
    while (claimed := study.claim()) is not None:
        complete(study.storage, claimed.id, [FOUND[claimed.assignment["x"]]])


def claim(study: Study, race: FinalRace) -> ClaimedTrial | None:
    standing = race.standing(study.ledger())
    assert standing is not None
    return race.claim(standing)


def test_the_best_of_the_search_get_the_same_seeds_and_the_search_counts_none_of_these_trials(make):
    study = make()
    search(study)
    race = FinalRace(study, PLAN)

    claimed = [claim(study, race) for _ in range(7)]

    assert [each.finalist for each in claimed if each] == [(trial, "seed", seed) for seed in (2, 3, 4) for trial in (1, 2)]
    assert [each.assignment for each in claimed[:2] if each] == [{"x": 0.25}, {"x": 0.75}]
    assert claimed[-1] is None  # all that is wanted runs
    ledger = study.ledger()
    assert (ledger.is_complete, len(ledger.slots), ledger.running) == (True, 4, [])
    assert len(study.running(ledger)) == 6
    for each in claimed[:6]:
        assert each is not None
        complete(study.storage, each.id, [each.assignment["x"] + 0.01 * each.finalist[2]])
    standing = race.standing(study.ledger())
    assert standing is not None
    assert standing.verdict
    assert standing.winner is not None
    assert standing.winner.trial == 1


def test_nothing_is_raced_while_trials_of_the_search_run(make):
    study = make()
    study.claim()

    assert FinalRace(study, PLAN).standing(study.ledger()) is None


def test_two_sweepers_train_no_finalist_with_the_same_seed(make):
    one, other = make(), make()
    search(one)
    races = FinalRace(one, PLAN), FinalRace(other, PLAN)

    claimed = [claim(one, races[0]), claim(other, races[1]), claim(one, races[0])]

    assert [each.finalist for each in claimed if each] == [(1, "seed", 2), (2, "seed", 2), (1, "seed", 3)]


def test_without_a_lock_the_first_of_two_counts(make, monkeypatch):
    one, other = make(), make()
    search(one)
    races = FinalRace(one, PLAN), FinalRace(other, PLAN)
    stale = races[1].standing(other.ledger())
    assert stale is not None

    @contextmanager
    def as_other_claims_meanwhile(*_arguments):
        monkeypatch.setattr(finalists, "study_lock", no_lock)
        monkeypatch.setattr(races[1], "standing", lambda _ledger: stale)
        monkeypatch.setattr(races[1], "_claimable", lambda _standing: [((1, "seed", 2), None)])
        assert claim(one, races[0]) is not None
        yield

    monkeypatch.setattr(finalists, "study_lock", as_other_claims_meanwhile)

    assert races[1].claim(stale) is None
    assert [trial.system_attrs.get(FAILURE) for trial in one.trials()[4:]] == [None, {"surplus": True}]
    assert len(other.running(other.ledger())) == 1


@contextmanager
def no_lock(*_arguments):
    yield False


def test_a_run_that_failed_is_tried_again_and_one_that_fails_for_good_takes_its_finalist_out(make):
    study = make()
    search(study)
    race = FinalRace(study, PLAN)
    first = claim(study, race)
    assert first is not None
    fail(study.storage, first.id, "full")

    again = claim(study, race)
    assert again is not None
    assert (again.finalist, again.retry_of) == (first.finalist, first.number)
    fail(study.storage, again.id, "full")
    standing = race.standing(study.ledger())

    assert standing is not None
    assert standing.finalists[-1].out == f"failed with seed=2, as trial {again.number}"
    assert standing.winner is None  # the other one has no result of its own yet
    assert study.ledger().failed == []


def test_a_configuration_that_was_tried_twice_is_one_finalist(make):
    study = make(first=[{"x": 0.25}, {"x": 0.25}, {"x": 0.75}, {"x": 0.5}])
    search(study)
    standing = FinalRace(study, PLAN).standing(study.ledger())

    assert standing is not None
    assert [each.trial for each in standing.racing] == [0, 2]


@pytest.mark.parametrize("sampler", [optuna.samplers.TPESampler, optuna.samplers.CmaEsSampler, optuna.samplers.NSGAIISampler])
def test_samplers_and_pruners_do_not_see_the_trials_of_a_race(make, sampler):
    study = make()
    search(study)
    claimed = claim(study, FinalRace(study, PLAN))
    assert claimed is not None
    complete(study.storage, claimed.id, [0.1])

    view = StudyWithout(study_name="study", storage=study.storage, sampler=sampler(), pruner=optuna.pruners.MedianPruner())

    assert [trial.number for trial in view.get_trials()] == [0, 1, 2, 3]
    assert view.best_trial.number == 1


def test_the_page_and_the_status_tell_of_the_race(make):
    study = make()
    search(study)
    race = FinalRace(study, PLAN)
    while (claimed := claim(study, race)) is not None:
        value = claimed.assignment["x"] + 0.01 * (claimed.finalist[2] * claimed.finalist[0] % 3)
        complete(study.storage, claimed.id, [value])
    standing = race.standing(study.ledger())
    assert standing is not None
    race.store(standing)

    page = sweep_page(optuna.load_study(study_name="study", storage=study.storage), ["val/wer"], "finished: all trials are done")
    shown = page_of(StatusReader(study.storage, study.id, "study", study.url).read())

    assert "Trial 1 is significantly better than the others" in page
    assert "finished: all trials are done" in page
    assert "finalist: trial 2 with seed=3" in page
    assert "worse than trial 1 after 3 seeds" in page
    assert "race</th><td>trial 1 is significantly better than the others" in shown
