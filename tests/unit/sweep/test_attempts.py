"""A trial that is tried again on another machine begins anew only where nothing of it is left."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from studies import make_study

from speechtrain.errors import Problem, RunError, UserError
from speechtrain.sweep.space.space import parse_space
from speechtrain.sweep.study.attributes import fail
from speechtrain.sweep.trial.attempts import FOLDER, RUN_IDS, continue_earlier_attempt
from speechtrain.sweep.trial.context import TrialContext
from speechtrain.sweep.trial.handle import TrialHandle
from speechtrain.tracking.base import NothingKeptError


@pytest.fixture
def retried(tmp_path: Path) -> TrialHandle:
    """A trial whose first attempt was on a machine that is gone, with a report of one epoch and a fact."""
    study = make_study(tmp_path, space=parse_space(["seed=1"], {}), n_trials=1, retries=1)

    def claimed() -> TrialHandle:
        trial = study.claim()
        assert trial is not None
        return TrialHandle(TrialContext(study.url, "study", trial.id, trial.number, ["val/loss"], retry_of=trial.retry_of))

    first = claimed()
    first.report(0.5, 0)
    for name, value in {FOLDER: "/gone", RUN_IDS: {"mlflow": "the run"}, "fact": 3}.items():
        first.set_attribute(name, value)
    fail(study.storage, first.context.id, "the machine went away", charged=True, final=False)
    return claimed()


def test_a_trial_goes_on_from_what_trackers_have_of_it(retried: TrialHandle, tmp_path: Path) -> None:
    asked: list[tuple[Mapping[str, str], Path]] = []
    facts = continue_earlier_attempt(retried, tmp_path / "new", lambda *arguments: asked.append(arguments))
    assert asked == [({"mlflow": "the run"}, tmp_path / "new")]
    assert facts["fact"] == 3
    assert retried.last_reported() == 0


def test_a_trial_of_which_nothing_is_kept_begins_anew(retried: TrialHandle, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fetch(*_: object) -> None:
        raise NothingKeptError([Problem("retry", "there is nothing of it")])

    assert continue_earlier_attempt(retried, tmp_path / "new", fetch) == {}
    assert retried.last_reported() is None
    assert "there is nothing of it" in caplog.text


def test_a_trial_that_cannot_be_fetched_now_fails_and_may_be_tried_again(retried: TrialHandle, tmp_path: Path) -> None:
    def fetch(*_: object) -> None:
        raise UserError("the server does not answer\n    -> try again")

    with pytest.raises(RunError, match=r"what trial 0 has left is not lost, but cannot be fetched: the server does not answer"):
        continue_earlier_attempt(retried, tmp_path / "new", fetch)
