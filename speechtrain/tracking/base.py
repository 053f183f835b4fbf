"""What a tracker is told, whatever it writes to."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from speechtrain.errors import without_passwords

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
        uid: a name that the run alone has, by which another process finds it before its id is known.
        parent: id of the run that this one stands under.
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
    """One split of the data that a run saw.

    Attributes:
        name: of the corpus.
        split: train, val or test.
        fingerprint: of its utterances and their audio.
        source: where it came from: a folder, or what made it.
        facts: counts, hours, speakers.
    """

    name: str
    split: str
    fingerprint: str
    source: str
    facts: Mapping[str, float]


@dataclass(frozen=True)
class ModelFiles:
    """A trained model as files that a tracker can keep.

    Attributes:
        weights: with the config and the vocabulary in it.
        sample_rate: Hz of the audio it takes.
        example: samples (N,) of one utterance.
        facts: metrics it was measured with.
    """

    weights: Path
    sample_rate: int
    example: Sequence[float]
    facts: Mapping[str, float]


class Tracker(ABC):
    """Told of a run; whatever goes wrong on its side must not stop the training, nor make it wait."""

    keeps_models: bool = False
    """Whether it wants to be told of the trained model."""

    nests: ClassVar[bool] = False
    """Whether runs can stand under another, so that a sweep has a run of its own."""

    @abstractmethod
    def start(self, info: RunInfo) -> None:
        """Begin to open a run."""

    def opened(self) -> str | None:
        """Wait until the run is open; its id, if it has one.

        Raises:
            UserError: it cannot be opened, as at a wrong address.
        """
        return None

    @abstractmethod
    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Metrics of an epoch, or of a step, in one go."""

    def log_dataset(self, info: DatasetInfo) -> None:  # noqa: ARG002
        """A split of the data."""
        return

    def log_model(self, files: ModelFiles) -> None:  # noqa: ARG002
        """The trained model, ready to be used."""
        return

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

    def abandon(self, run_id: str, reason: str) -> None:  # noqa: ARG002
        """Close a run as failed whose process died before it could."""
        return


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted keys and their values as text."""
    out: dict[str, str] = {}
    for key, value in config.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping):
            out |= flat(value, f"{dotted}.")
        else:
            out[dotted] = "null" if value is None else without_passwords(str(value))
    return out
