"""What a tracker is told, whatever it writes to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Status = Literal["FINISHED", "KILLED", "FAILED"]
"""finished; stopped or pruned; crashed."""


@dataclass(frozen=True)
class RunInfo:
    """What is known when a run starts.

    Attributes:
        name: for people.
        folder: of the run.
        config: resolved, nested.
        tags: git commit, host, versions, ...
        texts: files to keep, by name (the resolved config, a diff).
        run_id: of the run to go on with, when resumed.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    tags: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    run_id: str | None = None


class Tracker(ABC):
    """Told of a run; whatever goes wrong on its side must not stop the training."""

    @abstractmethod
    def start(self, info: RunInfo) -> str | None:
        """Open a run; returns its id if it has one."""

    @abstractmethod
    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Metrics of an epoch, in one go."""

    @abstractmethod
    def log_table(self, name: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """A table."""

    @abstractmethod
    def log_file(self, path: Path, folder: str = "") -> None:
        """A file."""

    @abstractmethod
    def log_checkpoint(self, path: Path) -> None:
        """The checkpoint that the test measured."""

    @abstractmethod
    def how_to_look(self) -> str:
        """A line that tells a person where to see the run."""

    @abstractmethod
    def set_tag(self, name: str, value: str) -> None:
        """A word about the run."""

    @abstractmethod
    def finish(self, status: Status) -> None:
        """Close the run, truthfully."""

    @abstractmethod
    def abandon(self, run_id: str, reason: str) -> None:
        """Close a run as failed whose process died before it could."""


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted keys and their values as text."""
    out: dict[str, str] = {}
    for key, value in config.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping):
            out |= flat(value, f"{dotted}.")
        else:
            out[dotted] = "null" if value is None else str(value)
    return out
