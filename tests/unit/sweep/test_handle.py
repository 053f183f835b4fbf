"""The owner of a trial: one claim, one time limit and one record, however many callers enter it in a process."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from speechtrain.errors import RunPruned, UserError
from speechtrain.sweep.study.attributes import BEAT, FAILURE, JOB
from speechtrain.sweep.study.internals import id_of
from speechtrain.sweep.study.storage import open_storage
from speechtrain.sweep.trial.context import TrialContext
from speechtrain.sweep.trial.handle import TrialCancelledError, TrialTimeoutError, own_trial
from speechtrain.sweep.trial.outcome import Outcome


@pytest.fixture
def make(tmp_path):
    """The context of a new running trial in a journal."""
    url = f"journal:///{tmp_path}/study.journal"
    study = optuna.create_study(storage=open_storage(url), study_name="study")

    def context(**changes) -> TrialContext:
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        return TrialContext(url, "study", id_of(study.trials[trial.number]), trial.number, **changes)

    return context


def stored(context: TrialContext) -> optuna.trial.FrozenTrial:
    return open_storage(context.storage).get_trial(context.id)


def done(context: TrialContext, value: object) -> Outcome:
    return Outcome(context.number, "done", value=value)


def journal_entries(context: TrialContext, **content: object) -> int:
    lines = Path(context.storage.removeprefix("journal:///")).read_text().splitlines()
    return sum(content.items() <= json.loads(line).items() for line in lines)


def test_a_trial_that_is_entered_twice_is_claimed_and_recorded_once(make):
    context = make(heartbeat=3600.0)
    with own_trial(context) as outer:
        threads = set(threading.enumerate())
        with own_trial(context) as inner:
            assert inner is outer
            assert not set(threading.enumerate()) - threads  # one heartbeat
            inner.end(done(context, 0.5))
        assert stored(context).state is TrialState.RUNNING
        outer.end(done(context, 7.0))

    assert stored(context).values == [0.5]  # the first to know the outcome is heard
    assert outer.recorded
    assert JOB in stored(context).system_attrs
    assert journal_entries(context, trial_id=context.id, op_code=6) == 1
    assert journal_entries(context, trial_id=context.id, op_code=9) == 1  # the claim


def test_different_trials_of_one_process_have_different_owners(make):
    first, second = make(), make()
    with own_trial(first) as one, own_trial(second) as other:
        one.end(done(first, 1.0))
        other.end(done(second, 2.0))

    assert (stored(first).value, stored(second).value) == (1.0, 2.0)


def test_the_owners_time_limit_still_holds_when_the_job_has_left(make):
    context = make(timeout=0.2)

    def sleep() -> None:
        with own_trial(context):
            with own_trial(context):
                pass
            time.sleep(30)

    with pytest.raises(TrialTimeoutError):
        sleep()
    assert stored(context).state is TrialState.FAIL
    assert "took longer than hydra.sweeper.timeout=0.2 s" in stored(context).user_attrs["reason"]


@pytest.mark.parametrize(
    ("error", "state", "reason", "failure"),
    [
        (RunPruned("others do better"), TrialState.PRUNED, "others do better", None),
        (RuntimeError("went wrong"), TrialState.FAIL, "RuntimeError: went wrong", None),
        (UserError("no such file"), TrialState.FAIL, "UserError: no such file", {"charged": True, "final": True}),
        (KeyboardInterrupt(), TrialState.FAIL, "interrupted", {"charged": False, "final": False}),
        (SystemExit(3), TrialState.FAIL, "SystemExit: 3", None),
    ],
)
@pytest.mark.parametrize("nested", [True, False])
def test_an_error_that_leaves_the_job_is_recorded_whoever_owns_the_trial(make, error, state, reason, failure, nested):
    context = make()

    def work() -> None:
        with own_trial(context), own_trial(context) if nested else contextlib.nullcontext():
            raise error

    with pytest.raises(type(error)):
        work()
    trial = stored(context)
    assert trial.state is state
    assert trial.user_attrs["reason"] == reason
    assert trial.system_attrs.get(FAILURE) == failure


@pytest.mark.parametrize("value", [None, "a text", float("nan"), [1.0, 2.0]])
def test_what_is_not_one_number_an_objective_fails_the_trial(make, value):
    context = make()
    with own_trial(context) as trial:
        trial.end(done(context, value))

    assert stored(context).state is TrialState.FAIL
    assert stored(context).user_attrs["reason"] == f"returned {value!r}, not 1 number"


def test_a_trial_that_was_finished_meanwhile_is_not_started(make):
    context = make()
    open_storage(context.storage).set_trial_state_values(context.id, state=TrialState.FAIL)

    with pytest.raises(TrialCancelledError, match="was cancelled before it started"), own_trial(context):
        pytest.fail("it was started")

    assert JOB not in stored(context).system_attrs


def test_a_heartbeat_is_stored_while_the_trial_is_owned(make):
    context = make(heartbeat=0.02)
    with own_trial(context) as trial:
        until = time.monotonic() + 30
        while BEAT not in stored(context).system_attrs and time.monotonic() < until:
            time.sleep(0.02)
        trial.end(done(context, 1.0))

    assert BEAT in stored(context).system_attrs


def test_a_pruner_judges_what_was_reported(make):
    pruner = {"_target_": "optuna.pruners.ThresholdPruner", "upper": 1.0}
    context, unpruned = make(pruner=pruner), make()
    with own_trial(context) as trial:
        trial.report(0.5, 0)
        assert not trial.should_prune()
        trial.report(2.0, 1)
        assert trial.should_prune()
        trial.set_constraints({"model/parameters <= 10": 5.0})
        trial.set_constraints({"model/parameters <= 10": 7.0})
    with own_trial(unpruned) as trial:
        trial.report(2.0, 0)
        assert not trial.should_prune()

    assert stored(context).constraints == {"model/parameters <= 10": 5.0}


def test_hyperband_compares_trials_of_the_same_bracket(make):
    """Its brackets are chosen inside of the pruner, so the study is not filtered for it beforehand."""
    pruner = {"_target_": "optuna.pruners.HyperbandPruner", "min_resource": 1, "max_resource": 9, "reduction_factor": 3}
    verdicts = []
    for index in range(8):
        context = make(pruner=pruner)
        with own_trial(context) as trial:
            for epoch in range(9):
                trial.report(float(index), epoch)
                if trial.should_prune():
                    verdicts.append((index, epoch))
                    trial.end(Outcome(context.number, "pruned"))
                    break
            trial.end(done(context, float(index)))

    assert verdicts
    assert all(index > 0 for index, _ in verdicts)  # the best trial is never pruned
