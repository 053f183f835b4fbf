"""A job of a sweep and how it ended, in plain values that can be pickled. Runs nothing and stores nothing."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from hydra.core.utils import JobReturn, JobStatus

from speechtrain.config.internals import result_of
from speechtrain.config.overrides import override_text
from speechtrain.errors import RunError, RunPaused, RunPruned, UserError

VARIABLE = "SPEECHTRAIN_TRIAL"
"""Environment variable that tells a job which trial it is; its value is `TrialContext.to_text()`."""

Ending = Literal["done", "pruned", "paused", "failed", "died", "lost", "timeout", "memory", "interrupted"]


@dataclass(frozen=True)
class SweepJob:
    """One run of the program.

    Attributes:
        number: number of the job, which also names its folder; in a study, the number of the trial.
        overrides: command line of the job.
        env: environment variables that are set while it runs.
    """

    number: int
    overrides: Sequence[str]
    env: dict[str, str]

    def with_env_overrides(self) -> list[str]:
        """Return the command line for one of Hydra's launchers, which pass variables on in no other way."""
        return [*self.overrides, *(f"++hydra.job.env_set.{name}={override_text(value)}" for name, value in self.env.items())]


@dataclass(frozen=True)
class Outcome:
    """How a job ended, and what is to be recorded of it.

    Attributes:
        number: number of the job.
        ending: what ended it; `died`, `lost` (its machine went away), `timeout` and `memory` are seen from outside of its process.
        value: what it returned.
        reason: why it failed, was pruned or paused, in a line; otherwise empty.
        trace: the stack trace of an unexpected error, for the log.
        final: whether the same job would fail again.
        recorded: whether the study has the outcome already.
    """

    number: int
    ending: Ending
    value: Any = None
    reason: str = ""
    trace: str = ""
    final: bool = False
    recorded: bool = False


class UnpicklableError(Exception):
    """Stands for an error of a job that cannot be pickled, on its way from another process to the sweeper.

    Args:
        outcome: what that error makes of the job.
    """

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome)
        self.outcome = outcome


def outcome_of(number: int, returned: JobReturn) -> Outcome:
    """Return the outcome of a job that Hydra has run."""
    result = result_of(returned)
    if returned.status is JobStatus.COMPLETED:
        return Outcome(number, "done", value=result)
    if isinstance(result, BaseException):
        return outcome_of_error(number, result)
    return Outcome(number, "failed", reason=f"ended without a result: {result!r}")


def outcome_of_error(number: int, error: BaseException) -> Outcome:
    """Return the outcome of a job that raised an error."""
    if isinstance(error, UnpicklableError):
        return replace(error.outcome, number=number)
    if isinstance(error, KeyboardInterrupt):
        return Outcome(number, "interrupted", reason="interrupted")
    if isinstance(error, RunPaused):
        return Outcome(number, "paused", reason=str(error))
    if _is_pruned(error):
        return Outcome(number, "pruned", reason=str(error))
    try:
        text = str(error).strip() or "no message"
    except Exception:  # an error may fail to make its own text
        text = "no message"
    reason = f"{type(error).__name__}: {text}"
    if isinstance(error, (UserError, RunError)):
        return Outcome(number, "failed", reason=reason, final=isinstance(error, UserError))
    telling = _telling_line(error)
    if not reason.startswith(telling):
        reason = f"{telling}\n{reason}"
    return Outcome(number, "failed", reason=reason, trace="".join(traceback.format_exception(error)))


def _is_pruned(error: BaseException) -> bool:
    """Return whether a job ended because it was pruned; programs may raise what Optuna raises for that."""
    optuna = sys.modules.get("optuna.exceptions")
    return isinstance(error, RunPruned) or (optuna is not None and isinstance(error, optuna.TrialPruned))


_TRACES = ("_RemoteTraceback", "RemoteTraceback")


def _telling_line(error: BaseException) -> str:
    """Return the line that says most about an error: of its first cause, and the last one where the first only announces it.

    What pools of processes put there as the cause of an error is no error of its own but the text of a stack trace.
    """
    seen: set[int] = set()
    while error.__cause__ is not None and type(error.__cause__).__name__ not in _TRACES and id(error) not in seen:
        seen.add(id(error))
        error = error.__cause__
    try:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    except Exception:  # an error may fail to make its own text
        lines = ["no message"]
    return f"{type(error).__name__}: {lines[-1] if lines[0].endswith(':') else lines[0]}"
