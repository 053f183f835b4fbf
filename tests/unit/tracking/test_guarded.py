"""Trackers of the user's own that are unfinished: the message names them, and a training goes on."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

import pytest

from speechtrain.errors import UserError
from speechtrain.tracking.base import RunInfo, Tracker
from speechtrain.tracking.guarded import build_tracker
from speechtrain.tracking.tensorboard import TensorBoardTracker


class Fails(TensorBoardTracker):
    def __init__(self) -> None:
        raise KeyError("no such room")


class FailsAtStart(TensorBoardTracker):
    def __init__(self) -> None: ...

    def start(self, info: RunInfo) -> None:
        raise RuntimeError("not written yet")

    def log_metrics(self, metrics: object, step: int) -> None:
        raise RuntimeError("not written yet")


class NoTracker: ...


class Half(Tracker): ...


INFO = RunInfo("run", Path(), {})


@pytest.mark.parametrize(
    ("name", "words"),
    [("Fails", "cannot be made: KeyError"), ("Half", "cannot be made: TypeError"), ("Missing", "cannot be made")],
)
def test_a_tracker_that_cannot_be_made_is_named(name: str, words: str) -> None:
    with pytest.raises(UserError, match=f"the tracker mine .*{name}.*{words}"):
        build_tracker("mine", {"_target_": f"{__name__}.{name}"})


@pytest.mark.parametrize(("name", "words"), [("FailsAtStart", "RuntimeError: not written yet"), ("NoTracker", "it has no start")])
def test_a_tracker_that_fails_at_the_start_is_named(name: str, words: str) -> None:
    with pytest.raises(UserError, match=f"the tracker mine .*{name}.* fails at start: .*{words}"):
        build_tracker("mine", {"_target_": f"{__name__}.{name}"}).start(INFO)


def test_a_tracker_that_fails_later_is_a_warning_once(caplog: pytest.LogCaptureFixture) -> None:
    tracker = build_tracker("mine", {"_target_": f"{__name__}.FailsAtStart"})
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            tracker.log_metrics({"a": 1.0}, step)
    assert [record.getMessage() for record in caplog.records] == [
        "the tracker mine fails at log_metrics (RuntimeError: not written yet); training goes on"
    ]


def test_a_tracker_can_be_copied() -> None:
    tracker = copy.copy(build_tracker("mine", {"_target_": f"{__name__}.FailsAtStart"}))
    with pytest.raises(UserError, match="not written yet"):
        tracker.start(INFO)
