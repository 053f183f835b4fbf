from __future__ import annotations

from concurrent.futures.process import _RemoteTraceback

import pytest

from speechtrain.errors import RunError
from speechtrain.sweep.trial.outcome import outcome_of_error


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("too small"), "ValueError: too small"),
        (ValueError(""), "ValueError: no message"),
        (RuntimeError("CUDA error: out of memory\nCompile with X"), "RuntimeError: CUDA error: out of memory"),
        (RuntimeError("Error(s) in loading:\n\tsize mismatch for head"), "RuntimeError: size mismatch for head"),
        (caused(TypeError("Error in call to target 'x':"), caused(KeyError("b"), OSError("no such file"))), "OSError: no such file"),
        (caused(RuntimeError("a process has died"), _RemoteTraceback('\n"""\nTraceback ...\n"""')), "RuntimeError: a process has died"),
        (caused(RunError("the training failed"), ValueError("inner")), "RunError: the training failed"),
    ],
)
def test_the_first_line_of_a_reason_says_what_went_wrong(error, line):
    outcome = outcome_of_error(0, error)

    assert outcome.reason.splitlines()[0] == line
    assert str(error).strip() in outcome.reason
