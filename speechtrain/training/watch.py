"""Watches a training, says what keeps it from learning as soon as that is known, and keeps it in `diagnosis.json` of the run's folder."""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf.errors import OmegaConfBaseException

from speechtrain.backends.callbacks import Callback, Control
from speechtrain.backends.failures import NonFiniteLossError
from speechtrain.errors import UserError
from speechtrain.files import write_json
from speechtrain.tracking.run_folder import read_run_file
from speechtrain.training.diagnosis import Evidence, Finding, diagnose
from speechtrain.training.facts import Facts
from speechtrain.training.history import HISTORY, read_history

if TYPE_CHECKING:
    from speechtrain.tracking.recorder import RunRecorder
    from speechtrain.training.history import History

log = logging.getLogger(__name__)

DIAGNOSIS = "diagnosis.json"
"""The file in a run's folder: facts of before the first step, and what was found."""


_WINDOW = 1000  # batches


class DiagnosisCallback(Callback):
    """Judges a run before its first step and after each epoch, and tells each finding once.

    Args:
        facts: what is known before the first step.
        history: history of the run; it receives each epoch before this callback.
        recorder: sends findings to the trackers.
    """

    def __init__(self, facts: Facts, history: History, recorder: RunRecorder) -> None:
        self._facts = facts
        self._history = history
        self._recorder = recorder
        self._epochs = 0
        self._told: set[str] = set()
        self._kept: list[Finding] | None = None
        self._tagged = False
        self._failure: str | None = None
        self._losses: list[float] = []

    def on_train_start(self, total_epochs: int, first_epoch: int) -> None:  # noqa: ARG002
        """Tell what config, data and model show, before the first step."""
        self._epochs = total_epochs
        self._tagged = _holds_findings(self._recorder.folder / DIAGNOSIS)  # those of a run that is resumed are in the trackers too
        self._judge(ended=False)

    def on_epoch_start(self, epoch: int) -> None:  # noqa: ARG002
        """Begin to count the batches of an epoch."""
        self._losses = []

    def on_batch_end(self, epoch: int, batch_index: int, batch_count: int, loss: float, lr: float) -> None:  # noqa: ARG002
        """Tell what the last thousand batches of a long epoch show, so that nobody waits for its end."""
        self._losses.append(loss)
        if len(self._losses) < _WINDOW:
            return
        part = {"train/loss": statistics.fmean(self._losses)}
        self._losses = []
        if batch_count >= 2 * _WINDOW and not self._facts.adds_to_loss:
            self._judge(ended=False, part=part, done=epoch + (batch_index + 1) / batch_count)

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, float], control: Control) -> None:  # noqa: ARG002
        """Tell what the epochs so far show."""
        self._judge(ended=epoch + 1 >= self._epochs or (epoch + 1) * self._facts.epoch_steps >= self._facts.steps)

    @contextmanager
    def recording_failure(self) -> Iterator[None]:
        """Judge a training whose loss is no number any more, and let the error go on."""
        try:
            yield
        except NonFiniteLossError as error:
            self._failure = str(error).partition("\n")[0]
            self._judge(ended=True)
            raise

    def _judge(self, *, ended: bool, part: Mapping[str, float] | None = None, done: float | None = None) -> None:
        epochs = [*self._history.epochs, *([part] if part is not None else [])]
        found = diagnose(Evidence(self._facts, epochs, ended=ended, failure=self._failure, done=done))
        for finding in found:
            if finding.code not in self._told:
                log.warning("%s: %s", finding.code, finding)
        self._told |= {finding.code for finding in found}
        if found != self._kept:
            path = self._recorder.folder / DIAGNOSIS
            findings = [finding.as_dict() for finding in found]
            write_json(path, {"facts": self._facts.as_dict(), "failure": self._failure, "findings": findings})
            if found or self._tagged:
                self._recorder.diagnosis([finding.code for finding in found], path)
            self._kept, self._tagged = found, bool(found)


def _holds_findings(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_text(encoding="utf-8"))["findings"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError, OmegaConfBaseException):
        return False


def read_evidence(folder: Path) -> Evidence:
    """Return what the folder of a run holds to judge it by, also while it trains.

    Raises:
        UserError: it was begun by an earlier version, or has not begun to train.
    """
    path = folder / DIAGNOSIS
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        facts = Facts.of(content["facts"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError, OmegaConfBaseException):
        message = f"{path} is not there, or cannot be read: the run has not begun to train, or an earlier version trained it"
        raise UserError(f"{message}\n    -> wait for its first step, or train it again") from None
    finished = read_run_file(folder).get("status") == "FINISHED"  # one that was interrupted might have gone on to learn
    return Evidence(facts, read_history(folder / HISTORY), ended=finished, failure=content.get("failure"))
