"""The contract of a tracker: what a training or a sweep sends it, whatever it writes to."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from speechtrain.addresses import masked
from speechtrain.errors import ConfigError, Problem

Status = Literal["FINISHED", "KILLED", "FAILED"]
"""FINISHED: it ran to its end; KILLED: it was interrupted, stopped or pruned; FAILED: it crashed."""


@dataclass(frozen=True)
class RunInfo:
    """Holds what is known of a run when it starts.

    Attributes:
        name: name of the run, which others may have too.
        folder: the run's folder.
        config: the resolved config, nested.
        tags: among them git commit, host and versions.
        texts: texts to keep as files, by name: the resolved config, a diff.
        run_id: the tracker's id of the run that is resumed; None starts a new one.
        uid: a unique name, by which another process finds the run before its id is known.
        parent: the tracker's id of the run that this one is nested in.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    tags: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    run_id: str | None = None
    uid: str = field(default_factory=lambda: uuid.uuid4().hex)
    parent: str | None = None


@dataclass(frozen=True)
class DatasetInfo:
    """Describes one split of the data that a run uses.

    Attributes:
        name: the corpus.
        split: train, val or test.
        fingerprint: digest of its utterances and their audio.
        source: the folder it was read from, or the class that made it.
        facts: counts of utterances and speakers, and hours.
    """

    name: str
    split: str
    fingerprint: str
    source: str
    facts: Mapping[str, float]


@dataclass(frozen=True)
class ModelFiles:
    """Holds a trained model as files that a tracker can keep.

    Attributes:
        weights: the checkpoint, with the config and the vocabulary in it.
        sample_rate: rate in Hz of the audio it takes.
        example: samples (N,) of one utterance.
        facts: metrics that it was measured with.
    """

    weights: Path
    sample_rate: int
    example: Sequence[float]
    facts: Mapping[str, float]


class NothingKeptError(ConfigError):
    """There is nothing that a run could go on from."""


class Tracker(ABC):
    """Records a run; whatever goes wrong on its side must neither stop the training nor make it wait."""

    keeps_models: bool = False
    """Whether `log_model` does anything, so that the model has to be prepared for it."""

    nests: ClassVar[bool] = False
    """Whether runs can be nested in another, so that a sweep has a run of its own."""

    @property
    def place(self) -> Mapping[str, str]:
        """Return the keys of the tracker's config that say where runs are kept, without secrets, for `run.json`; empty if it has none."""
        return {}

    @abstractmethod
    def start(self, info: RunInfo) -> None:
        """Begin to open a run, without waiting for it."""

    def opened(self) -> str | None:
        """Wait until the run is open, and return its id if it has one.

        Raises:
            UserError: it cannot be opened, as at a wrong address.
        """
        return None

    @abstractmethod
    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the metrics of an epoch, or of a step, together."""

    def log_values(self, values: Mapping[str, float], step: int) -> None:
        """Log single values of a run, which belong to no curve: the test, the best of the objective, sizes of data and model."""
        self.log_metrics(values, step)

    def log_dataset(self, info: DatasetInfo) -> None:  # noqa: ARG002
        """Log a split of the data."""
        return

    def log_model(self, files: ModelFiles) -> None:  # noqa: ARG002
        """Log the trained model, ready to be used."""
        return

    @abstractmethod
    def log_table(self, name: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """Log a table, given as columns of equal length."""

    @abstractmethod
    def log_file(self, path: Path, folder: str = "") -> None:
        """Log a file, which may be shown in a folder."""

    @abstractmethod
    def log_checkpoint(self, path: Path) -> None:
        """Log the checkpoint that the test measured."""

    def log_last(self, folder: Path) -> None:  # noqa: ARG002
        """Keep what `resume=` needs of the run in a folder, whose last checkpoint was just written."""
        return

    def fetch_last(self, run_id: str, folder: Path, part: Callable[[str], str] = lambda _: "") -> None:  # noqa: ARG002
        """Fetch what `log_last` has kept of a run into a folder, in which it then goes on.

        Args:
            run_id: the tracker's id of the run.
            folder: that folder, or one above it; it is made if it is not there.
            part: returns where inside of `folder` it is, called with the folder that the run was trained in, on whichever machine.

        Raises:
            NothingKeptError: there is nothing to go on from.
            UserError: it cannot be had, although it may be there.
        """
        raise NothingKeptError([Problem("retry", f"{type(self).__name__} keeps nothing that a run goes on from")])

    def delete_last(self, run_id: str, folder: Path | None = None) -> None:  # noqa: ARG002
        """Delete what `log_last` has kept of a run that will not go on, and what still waits to be sent.

        Args:
            run_id: the tracker's id of the run.
            folder: the run's folder, or one above it, if it is on this machine.
        """
        return

    @abstractmethod
    def how_to_look(self) -> str:
        """Return a line that says where the run can be seen."""

    @abstractmethod
    def set_tag(self, name: str, value: str) -> None:
        """Set a tag of the run to a value."""

    def note_end(self, status: Status) -> None:  # noqa: B027 # most trackers write it down when they finish
        """Write down how the run ended, without waiting, so that it stays true if the process is killed before `finish`."""

    @abstractmethod
    def finish(self, status: Status) -> None:
        """Close the run with the status it really ended with; a signal that waits (`interrupts.is_waiting`) cuts waiting short."""

    def abandon(self, run_id: str, reason: str) -> None:  # noqa: ARG002
        """Close a run as failed whose process died before it could close it."""
        return


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return the config as dotted keys and their values as text, without passwords."""
    values: dict[str, str] = {}
    for key, value in config.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping):
            values |= flat(value, f"{dotted}.")
        else:
            values[dotted] = "null" if value is None else masked(str(value))
    return values
