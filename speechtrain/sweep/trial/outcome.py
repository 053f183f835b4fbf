"""A job and how it ended, in plain words that can be pickled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from speechtrain.sweep.space.overrides import override_text

VARIABLE = "SPEECHTRAIN_TRIAL"
"""Environment variable that tells a job which trial it is."""

Ending = Literal["done", "failed", "died", "timeout", "memory", "interrupted"]


@dataclass(frozen=True)
class Job:
    """One run of the program.

    Attributes:
        number: of the job, also the name of its folder; a trial's number in a sweep.
        overrides: its command line.
        env: environment variables set while it runs.
    """

    number: int
    overrides: Sequence[str]
    env: dict[str, str]

    def with_env_overrides(self) -> list[str]:
        """The command line for a launcher of Hydra's, which knows no other way to pass variables on."""
        return [*self.overrides, *(f"++hydra.job.env_set.{name}={override_text(value)}" for name, value in self.env.items())]


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        value: what it returned.
        reason: why it failed, in a line; empty if it did not.
        trace: the stack trace, for the log.
        final: whether it would fail again.
        recorded: whether the job's study knows it already.
    """

    number: int
    ending: Ending
    value: Any = None
    reason: str = ""
    trace: str = ""
    final: bool = False
    recorded: bool = False
