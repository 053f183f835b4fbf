from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import replace

import optuna
import pytest
from optuna.trial import TrialState

from speechtrain.errors import ConfigError
from speechtrain.processes.identity import Process
from speechtrain.sweep.space.space import parse_space
from speechtrain.sweep.study.attributes import BEAT, JOB, OWNER, RETRY_OF, SETTINGS, VERSION, complete, fail, prune
from speechtrain.sweep.study.internals import FIXED_PARAMS
from speechtrain.sweep.study.promotion import SuccessiveHalving
from speechtrain.sweep.study.race_plan import FINALIST
from speechtrain.sweep.study.samplers import sampler_factory
from speechtrain.sweep.study.storage import open_storage
from speechtrain.sweep.study.study import Study


@pytest.fixture
def make(tmp_path):
    """A sweeper's view of one study on a journal."""
    url = f"journal:///{tmp_path}/study.journal"

    def study(**changes) -> Study:
        settings = {
            "directions": ["minimize"],
            "space": parse_space(["x=interval(0,1)", "n=a,b"], {}),
            "settings": {"epochs": "3"},
            "make_sampler": sampler_factory(None, conditional=False),
            "pruner": optuna.pruners.NopPruner(),
            "first": [{"x": 0.5, "n": "b"}, {"n": "a"}],
            "n_trials": 4,
            "retries": 1,
            "patience": 0.1,
            **changes,
        }
        return Study(url, open_storage(url), "study", **settings)

    return study


def test_the_first_slots_get_the_values_that_are_given_in_whole_or_in_part(make):
    study = make()

    first, second, third = (study.claim() for _ in range(3))

    assert first.assignment == {"x": 0.5, "n": "b"}
    assert second.assignment["n"] == "a"
    assert 0 <= third.assignment["x"] <= 1
    assert [claimed.number for claimed in (first, second, third)] == [0, 1, 2]


def test_a_trial_is_claimed_by_one_sweeper_only(make):
    one, other = make(), make()
    stale = other.ledger()

    mine = [one.claim() for _ in range(4)]

    assert [claimed.number for claimed in mine] == [0, 1, 2, 3]
    assert other.claim(stale) is None
    assert one.claim() is None


@pytest.mark.parametrize("values", [{"n": "c"}, {"x": "far"}])
def test_a_trial_that_was_enqueued_with_a_value_outside_of_the_space_fails_alone(make, values):
    study = make(first=[])
    optuna.load_study(study_name="study", storage=study.storage).enqueue_trial(values)

    claimed = study.claim()

    assert claimed.number == 1
    failed = study.trials()[0]
    assert failed.state is TrialState.FAIL
    assert f"the enqueued values {values} are not in the space" in failed.user_attrs["reason"]
    assert len(study.ledger().to_retry) == 0


def test_a_retry_repeats_the_values_and_is_claimed_first(make):
    study = make()
    *_, claimed = (study.claim() for _ in range(3))  # the first two would get the same values for their slots anyway
    fail(study.storage, claimed.id, "went wrong")

    again = study.claim()

    assert again.retry_of == claimed.number
    assert again.number == 3
    assert again.assignment == claimed.assignment


def test_a_trial_of_a_machine_that_falls_silent_is_given_back_uncharged(make):
    study = make(retries=0)
    claimed = study.claim()
    far = replace(Process.current(), host="elsewhere").to_dict()
    study.storage.set_trial_system_attr(claimed.id, OWNER, far)
    study.storage.set_trial_system_attr(claimed.id, JOB, far)
    watcher = make(retries=0)

    assert watcher.fail_dead_trials(watcher.ledger()) == []
    time.sleep(0.12)
    study.storage.set_trial_system_attr(claimed.id, BEAT, 1.0)
    assert watcher.fail_dead_trials(watcher.ledger()) == []  # it beats
    time.sleep(0.12)
    ((number, reason),) = watcher.fail_dead_trials(watcher.ledger())

    assert number == claimed.number
    assert "no heartbeat from elsewhere" in reason
    assert watcher.claim().retry_of == claimed.number


def test_a_living_trial_of_this_machine_is_left_alone_and_a_dead_one_is_not(make):
    study = make()
    living, dead = study.claim(), study.claim()
    gone = replace(Process.current(), pid=2**22 - 1).to_dict()
    study.storage.set_trial_system_attr(dead.id, OWNER, gone)
    watcher = make()

    assert [number for number, _ in watcher.fail_dead_trials(watcher.ledger())] == [dead.number]
    assert watcher.storage.get_trial(living.id).state is TrialState.RUNNING
    assert watcher.storage.get_trial(dead.id).system_attrs["speechtrain:failure"]["charged"] is False


def test_a_result_is_recorded_once_whoever_is_first(make):
    study, other = make(), make()
    claimed = study.claim()

    assert complete(study.storage, claimed.id, [1.0])
    assert not fail(other.storage, claimed.id, "thought to be dead")
    assert other.storage.get_trial(claimed.id).state is TrialState.COMPLETE
    assert not complete(study.storage, claimed.id, [2.0])
    assert other.storage.get_trial(claimed.id).values == [1.0]


def test_a_trial_that_is_claimed_stands_in_the_study_at_once_with_its_owner(make):
    study = make(n_trials=100)
    states = []
    create = study.storage.create_new_trial

    def watched(study_id, template_trial=None):
        trial_id = create(study_id, template_trial)
        stored = study.storage.get_trial(trial_id)
        states.append((stored.state, stored.system_attrs[OWNER]))
        return trial_id

    study.storage.create_new_trial = watched
    for _ in range(4):
        study.claim()

    assert states == [(TrialState.RUNNING, Process.current().to_dict())] * 4
    assert len(make(n_trials=100).trials()) == 4  # none waits
    assert [trial.number for trial in study.trials()] == [0, 1, 2, 3]


def test_fewer_trials_than_before_take_nothing_and_lose_nothing(make):
    study = make()
    complete(study.storage, study.claim().id, [1.0])

    smaller = make(n_trials=1)

    assert smaller.ledger().is_complete
    assert smaller.claim() is None
    assert len(make().ledger().slots) == 1


def test_a_study_goes_on_only_with_the_settings_it_was_started_with(make):
    make(settings={"epochs": "3", "lr": "0.1"})

    make(settings={"lr": "0.1", "epochs": "3"})
    with pytest.raises(ConfigError) as caught:
        make(settings={"epochs": "5", "dropout": "0.2"})

    assert [(problem.path, problem.message) for problem in caught.value.problems] == [
        ("dropout", "the study 'study' was started with not set, now it is 0.2"),
        ("epochs", "the study 'study' was started with 3, now it is 5"),
        ("lr", "the study 'study' was started with 0.1, now it is not set"),
    ]


def test_keys_that_another_version_has_besides_end_no_study(make):
    make(settings={VERSION: "1", "epochs": "3", "old": "1"})

    make(settings={VERSION: "2", "epochs": "3", "new": "1"})
    with pytest.raises(ConfigError, match="epochs: the study 'study' was started with 3, now it is 5"):
        make(settings={VERSION: "2", "epochs": "5", "new": "1"})


def test_a_study_of_a_version_that_stored_no_settings_goes_on_and_has_those_of_that_command(make, caplog):
    study = make()
    study.storage.set_study_user_attr(study.id, SETTINGS, None)

    make(settings={"epochs": "5"})
    assert "of an earlier version has not stored what its trials share" in caplog.text
    with pytest.raises(ConfigError, match="epochs: the study 'study' was started with 5, now it is 6"):
        make(settings={"epochs": "6"})


def test_a_retry_that_died_before_it_was_given_its_values_passes_them_on(make):
    study = make(retries=2, first=[])
    first = study.claim()
    fail(study.storage, first.id, "killed", charged=False)
    attrs = {RETRY_OF: first.number, FIXED_PARAMS: first.assignment}
    retry = optuna.trial.create_trial(state=TrialState.RUNNING, system_attrs=attrs)
    fail(study.storage, study.storage.create_new_trial(study.id, retry), "killed before it had values", charged=False)

    assert study.claim().assignment == first.assignment


def test_a_retry_of_a_trial_that_was_killed_while_it_was_given_its_values_has_all_of_them(make):
    study = make(retries=2, first=[])
    given = {"x": 0.25, "n": "b"}
    half = optuna.trial.create_trial(
        state=TrialState.RUNNING,
        params={"x": 0.25},
        distributions={"x": optuna.distributions.FloatDistribution(0, 1)},
        system_attrs={FIXED_PARAMS: given},
    )
    fail(study.storage, study.storage.create_new_trial(study.id, half), "killed before it had all its values", charged=False)

    retry = study.claim()

    assert retry.assignment == given
    assert study.trials()[retry.number].system_attrs[FIXED_PARAMS] == given


HALVING = {"pruner": SuccessiveHalving(1, 2), "n_trials": 2, "first": []}


def pause(study: Study, value: float) -> int:
    """Run the next trial until it pauses after its first epoch; returns its number."""
    claimed = study.claim()
    study.storage.set_trial_intermediate_value(claimed.id, 0, value)
    prune(study.storage, claimed.id, "others do better", paused_at=1)
    return claimed.number


def test_a_paused_trial_that_is_among_the_best_is_continued_with_its_values_and_its_curve_before_others_begin(make):
    study = make(**{**HALVING, "n_trials": 9})
    pause(study, 0.2)
    best = pause(study, 0.1)

    again = study.claim()

    assert (again.retry_of, again.promoted_from) == (best, 1)
    before, running = (study.trials()[number] for number in (best, again.number))
    assert running.state is TrialState.RUNNING
    assert (running.params, running.distributions) == (before.params, before.distributions)
    assert again.assignment == before.params
    assert running.intermediate_values == {0: 0.1}
    fail(study.storage, again.id, "killed", charged=False)
    retried = study.claim()
    assert (retried.retry_of, retried.promoted_from, retried.assignment) == (again.number, 1, before.params)


@pytest.mark.parametrize("locks", [True, False])
def test_a_paused_trial_is_continued_by_one_of_two_sweepers_and_the_study_is_complete_when_one_has_a_result(make, monkeypatch, locks):
    one, other = make(**HALVING), make(**HALVING)
    if not locks:
        monkeypatch.setattr("speechtrain.sweep.study.study.study_lock", lambda *_: nullcontext(False))
    pause(one, 0.2)
    pause(one, 0.1)
    assert not other.ledger().is_complete

    again = one.claim()
    assert other.claim() is None
    complete(one.storage, again.id, [0.05])

    assert other.ledger().is_complete
    assert other.claim() is None
    assert [trial.state.name for trial in one.trials()] == ["PRUNED", "PRUNED", "COMPLETE"]


def test_what_two_sweepers_without_a_lock_create_at_once_counts_once(make):
    one = make(**HALVING)
    pause(one, 0.2)
    pause(one, 0.1)
    again = one.claim()
    template = optuna.trial.create_trial(state=TrialState.RUNNING, system_attrs={"speechtrain:retry_of": again.retry_of})
    late = one.storage.get_trial(one.storage.create_new_trial(one.id, template_trial=template))

    assert one._won(late) is None
    assert one.ledger().slot_of(again.number) is not None
    assert one.trials()[late.number].state is TrialState.FAIL
    assert make(**HALVING).ledger().slots[1].latest.number == again.number


@pytest.mark.parametrize("finalist", [False, True])
def test_a_trial_that_counts_nowhere_ends_when_the_sweeper_that_created_it_is_dead(make, finalist):
    one = make(n_trials=1, first=[])
    complete(one.storage, one.claim().id, [0.1])
    attrs = {FINALIST: {"of": 0, "key": "seed", "seed": 2}} if finalist else {}
    owners = [Process.current(), replace(Process.current(), pid=2**22 + 1), replace(Process.current(), pid=2**22 + 2)]
    for owner in owners[not finalist :]:  # in a race the first of two counts
        template = optuna.trial.create_trial(state=TrialState.RUNNING, system_attrs={OWNER: owner.to_dict(), **attrs})
        one.storage.create_new_trial(one.id, template)

    one.fail_dead_trials(one.ledger())

    assert [trial.state.name for trial in one.trials()] == ["COMPLETE", *(["RUNNING"] if finalist else []), "FAIL", "FAIL"]
    assert one.ledger().is_complete
    assert one.claim() is None


def test_a_sampler_sees_what_a_continued_trial_has_tried_once(make):
    seen = []

    class Sampler(optuna.samplers.RandomSampler):
        def infer_relative_search_space(self, study, trial):
            seen.append([each.number for each in study._get_trials(deepcopy=False, use_cache=True)])
            return {}

    study = make(**{**HALVING, "n_trials": 9, "make_sampler": lambda _number: Sampler()})
    pause(study, 0.2)
    best = pause(study, 0.1)
    again = study.claim()
    study.claim()

    assert best in seen[1]
    assert best not in seen[-1]
    assert again.number in seen[-1]


class Counting(optuna.samplers.RandomSampler):
    """A random sampler that notes how many complete trials it sees at each proposal."""

    def __init__(self, seen: list[int]) -> None:
        super().__init__(seed=0)
        self.seen = seen

    def infer_relative_search_space(self, study, trial):
        self.seen.append(len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))))
        study._get_trials(deepcopy=False, use_cache=True)  # the list that Optuna keeps for one proposal
        return super().infer_relative_search_space(study, trial)

    def sample_independent(self, study, trial, name, distribution):
        complete = study._get_trials(deepcopy=False, states=(TrialState.COMPLETE,), use_cache=True)
        self.seen[-1] = min(self.seen[-1], len(complete))
        return super().sample_independent(study, trial, name, distribution)


def test_a_sampler_sees_at_each_proposal_all_trials_that_have_ended(make):
    seen: list[int] = []
    study = make(first=[], make_sampler=lambda _number: Counting(seen))

    for _ in range(3):
        claimed = study.claim()
        complete(study.storage, claimed.id, [0.5])

    assert seen == [0, 1, 2]
