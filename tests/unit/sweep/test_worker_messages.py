from __future__ import annotations

import threading
from multiprocessing import Pipe
from pathlib import Path

import pytest
from hydra.core.utils import JobReturn, JobStatus

from speechtrain.errors import UserError
from speechtrain.sweep.trial.outcome import Outcome, SweepJob
from speechtrain.sweep.workers.messages import JobEnded, JobStarted, Setup, StartJob, receive, send


def test_messages_arrive_as_they_were_sent():
    ours, theirs = Pipe()
    messages = [
        StartJob(SweepJob(3, ["x=1"], {"A": "b"}), Path("3/output.log")),
        JobStarted(),
        JobEnded(Outcome(3, "done", value=0.5), None),
    ]
    for message in messages:
        send(ours, message)

    assert [receive(theirs) for _ in messages] == messages
    ours.close()
    with pytest.raises(EOFError):
        receive(theirs)


def test_a_result_that_cannot_be_pickled_arrives_as_its_text():
    ours, theirs = Pipe()
    lock = threading.Lock()
    send(ours, JobEnded(Outcome(3, "done", value=lock), None))

    assert receive(theirs) == JobEnded(Outcome(3, "done", value=repr(lock)), None)


def test_an_error_that_cannot_be_read_back_leaves_the_reason_that_is_recorded_of_it():
    ours, theirs = Pipe()
    returned = JobReturn(status=JobStatus.FAILED)
    returned.return_value = TwoArgumentsError(4, 2)
    outcome = Outcome(3, "failed", reason="TwoArgumentsError: 4 is not 2")
    send(ours, JobEnded(outcome, returned))

    assert receive(theirs) == JobEnded(outcome, None)


def test_a_function_that_cannot_be_sent_to_workers_is_a_mistake_that_is_named():
    lock = threading.Lock()
    with pytest.raises(UserError, match=r"cannot be sent to the workers of the pool: .*lock.*\n.*hydra\.sweeper\.n_jobs=1"):
        Setup.of_this_process(lambda: lock)


class TwoArgumentsError(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} is not {second}")
