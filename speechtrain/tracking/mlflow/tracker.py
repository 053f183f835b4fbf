"""MLflow: parameters, tags, metrics, data sets, artifacts, models, a truthful status.

The training only writes down what is to be sent, in order, in a file of the run; a process beside it sends (`writer.py`). If the server
goes away, training goes on: what could not be sent stays in the file, and goes with the next call that gets through, with `resume=`, with
the next run on this machine, or with `python -m speechtrain.sync`.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from speechtrain.addresses import masked
from speechtrain.backends.checkpoint_files import FOLDER
from speechtrain.errors import Problem, UserError
from speechtrain.files import launch_folder
from speechtrain.processes import interrupts
from speechtrain.processes.identity import Process
from speechtrain.tracking.base import DatasetInfo, ModelFiles, NothingKeptError, RunInfo, Status, Tracker, flat
from speechtrain.tracking.mlflow.fetched_runs import can_be_asked, downloaded
from speechtrain.tracking.mlflow.location import experiment_name, local_uri, named_address, place_of_run, tracking_address
from speechtrain.tracking.mlflow.names import name_behind_curves
from speechtrain.tracking.mlflow.resume_files import arrange
from speechtrain.tracking.mlflow.spool import Spool, spools_below
from speechtrain.tracking.mlflow.writer import writer
from speechtrain.tracking.run_folder import RunNotFoundError

log = logging.getLogger(__name__)

PARENT = "mlflow.parentRunId"

_OPENING = 120.0
"""Seconds that a run may take to be opened, with a database that has to be made."""
_SENDING = 300.0
"""Seconds that the end of a run waits for a server that does answer, to send what is left."""
_FETCHING = (1.0, 4.0, 15.0, 40.0, 60.0)
"""Seconds before each time that what a trial goes on from is tried to be fetched again."""
_TRIES = 3
"""Failures in a row after which a server counts as not there when a run starts."""


class MlflowTracker(Tracker):
    """Tracks one run as a run of MLflow.

    Args:
        tracking_uri: a server or database; None takes `MLFLOW_TRACKING_URI`, or else `mlflow.db` in the current folder.
        experiment: name of the experiment, which is created if there is none; None takes `MLFLOW_EXPERIMENT_NAME`, or else `speechtrain`.
        run_name: the run's name in MLflow; None takes the one that all trackers are given.
        log_checkpoint: whether the best checkpoint is kept as an artifact.
        log_last: whether what `resume=` needs is kept as artifacts after each checkpoint, so that the run goes on where its folder is not.
        log_model: whether the model is kept as one that MLflow can load and serve.
        registered_model: the name in the registry to which the model is added as a new version; None adds it to none.
        system_metrics: seconds between samples of the machine; None takes none.
        patience: seconds that the end of a run waits for a server that does not answer.
    """

    nests: ClassVar[bool] = True

    def __init__(
        self,
        tracking_uri: str | None = None,
        experiment: str | None = None,
        run_name: str | None = None,
        log_checkpoint: bool = True,
        log_last: bool = False,
        log_model: bool = True,
        registered_model: str | None = None,
        system_metrics: float | None = 10.0,
        patience: float = 10.0,
    ) -> None:
        self._named = named_address(tracking_uri)
        self.uri = tracking_address(tracking_uri)  # masked in the experiment that a sweep has written
        self.experiment = experiment_name(experiment)
        self.run_name = run_name
        self.keeps_checkpoint = log_checkpoint
        self.keeps_last = log_last
        self.keeps_models = log_model
        self.registered_model = registered_model
        self.system_metrics = system_metrics
        self.patience = patience
        self._spool: Spool
        self._run_id: str | None = None
        self._closed = False
        self._warned_of_disk = self._warned_of_snapshot = False
        self._warned_of_server = False

    @property
    def place(self) -> Mapping[str, str]:
        """Return address and experiment, which may come from the environment; what is masked of the address is kept for its owner."""
        return place_of_run(self._named, self.experiment)

    def start(self, info: RunInfo) -> None:
        """Begin to open a run, or the run of a training that is resumed."""
        self._spool = Spool.new(info.folder)
        tags = {"host": Process.current().host, **info.tags, **({PARENT: info.parent} if info.parent is not None else {})}
        self._add(
            "open",
            uri=self.uri,
            experiment=self.experiment,
            name=self.run_name or info.name,
            uid=info.uid,
            run_id=info.run_id,
            folder=str(info.folder.absolute()),
            tags=tags,
            process=Process.current().to_dict(),
            system_metrics=self.system_metrics,
        )
        self._add("params", params=flat(info.config))
        for name, text in info.texts.items():
            self._add("text", text=text, name=name)

    def opened(self) -> str | None:
        """Wait until the run is open, and return its id.

        Raises:
            UserError: there is no server or database at `tracking_uri`, or it refuses.
        """
        if self._run_id is None:
            state = self._answer()
            if "run_id" not in state:
                writer().forget(self._spool.path)
                self._spool.remove()
                if refused := state.get("refused"):
                    raise UserError(f"MLflow at {masked(self.uri)} refuses the run: {masked(refused)}")
                reason = state.get("away") or state.get("died") or f"no answer in {_OPENING:.0f} s"
                raise UserError(
                    f"MLflow cannot be reached at {masked(self.uri)}: {masked(reason)}\n"
                    "    -> set tracking.mlflow.tracking_uri, or tracking=[] to go without"
                )
            self._run_id = str(state["run_id"])
        return self._run_id

    def _answer(self) -> dict[str, Any]:
        """Wait for the reply of the writer process to a run that is to be opened; empty if there is none in time."""
        path, started = self._spool.path, time.monotonic()
        unexpected_exits = writer().unexpected_exits
        while time.monotonic() - started < _OPENING:
            state = writer().wait(path, lambda reply: "run_id" in reply or "refused" in reply or reply.get("failures", 0) >= _TRIES, 1.0)
            if "run_id" in state or "refused" in state or state.get("failures", 0) >= _TRIES:
                return state
            if writer().unexpected_exits - unexpected_exits >= _TRIES:
                return {"died": f"the process that sends to MLflow exits ({writer().last_error_line})"}
            if writer().unexpected_exits > unexpected_exits:
                writer().attend(path, self.uri)
        return {}

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics of a step together; one that the run has already for this step is not written again."""
        if metrics:
            self._add("metrics", metrics={name: float(value) for name, value in metrics.items()}, step=step)

    def log_values(self, values: Mapping[str, float], step: int) -> None:
        """Log single values, under names that MLflow shows behind the curves."""
        self.log_metrics({name_behind_curves(name): value for name, value in values.items()}, step)

    def log_table(self, name: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """Log a table, which MLflow shows among the artifacts."""
        self._add("table", name=f"{name}.json", columns={key: list(values) for key, values in columns.items()})

    def log_file(self, path: Path, folder: str = "") -> None:
        """Log a file as an artifact."""
        self._add("file", path=str(path), folder=folder)

    def log_checkpoint(self, path: Path) -> None:
        """Log the checkpoint as an artifact, if `log_checkpoint` is set."""
        if self.keeps_checkpoint:
            self.log_file(path, FOLDER)

    def log_last(self, folder: Path) -> None:
        """Keep what `resume=` needs as artifacts, if `log_last` is set; what waits from an earlier checkpoint is not sent any more."""
        if not self.keeps_last:
            return
        try:
            self._add("last", snapshot=self._spool.snapshots.take(folder))
        except OSError as error:
            if not self._warned_of_snapshot:
                log.warning("%s: what resume= needs cannot be kept for MLflow (%s); the next checkpoint is tried again", folder, error)
            self._warned_of_snapshot = True

    def log_dataset(self, info: DatasetInfo) -> None:
        """Log a split as a data set of MLflow."""
        self._add("datasets", datasets=[asdict(info)])

    def log_model(self, files: ModelFiles) -> None:
        """Log the model as one that MLflow can load and serve, if `log_model` is set."""
        if self.keeps_models:
            self._add("model", **{**asdict(files), "weights": str(files.weights)}, registered_model=self.registered_model)

    def how_to_look(self) -> str:
        """Return the command that opens the UI, or the server's address."""
        if self.uri == local_uri(launch_folder()):
            return "MLflow      make ui, or: speechtrain ui"
        if self.uri.startswith("sqlite:///"):
            return f"MLflow      speechtrain ui {shlex.quote(f'tracking_uri={self.uri}')}"
        return f"MLflow      {masked(self.uri)}"

    def set_tag(self, name: str, value: str) -> None:
        """Set a tag of the run."""
        self._add("tags", tags={name: value})

    def note_end(self, status: Status) -> None:
        """Append the status to what is to be sent, which the process that sends does even if this one is killed."""
        self._add("close", status=status)
        self._closed = True

    def finish(self, status: Status) -> None:
        """Close the run with its status, and wait until all is sent, or for `patience` seconds if the server does not answer."""
        if not self._closed:
            self.note_end(status)
        path = self._spool.path
        if self._spool.held:
            writer().send_command({"attend": str(path), "uri": self.uri, "events": self._spool.take_unwritten()})
        started = time.monotonic()

        def is_over(reply: Mapping[str, Any]) -> bool:
            waited = time.monotonic() - started
            return "closed" in reply or "refused" in reply or (bool(reply.get("failures")) and waited > self.patience)

        exits = writer().unexpected_exits
        while not is_over(state := writer().wait(path, is_over, 1.0)) and time.monotonic() - started < _SENDING:
            if interrupts.is_waiting():
                break
            if writer().unexpected_exits - exits >= _TRIES:
                state = {"away": f"the process that sends exits: {writer().last_error_line}"}
                break
            if writer().unexpected_exits > exits:
                with contextlib.suppress(OSError):
                    writer().attend(path, self.uri)
        if "closed" not in state and not interrupts.is_waiting():
            log.warning(
                "MLflow at %s did not take everything (%s); the rest is in %s, and `python -m speechtrain.sync` sends it",
                masked(self.uri),
                state.get("refused") or state.get("away") or "no answer yet",
                path,
            )
        writer().forget(path)

    def abandon(self, run_id: str, reason: str) -> None:
        """Close a run as failed whose process died before it could close it."""
        writer().send_command({"abandon": run_id, "uri": self.uri, "reason": reason})

    def fetch_last(self, run_id: str, folder: Path, part: Callable[[str], str] = lambda _: "") -> None:
        """Fetch what `log_last` has kept of a run into a folder; a server that does not answer is tried again for two minutes.

        Raises:
            NothingKeptError: there is nothing to go on from.
            UserError: it cannot be had, although it may be there.
        """
        if not self.keeps_last or not can_be_asked(self.uri):
            raise NothingKeptError([Problem("retry", f"nothing of run {run_id} is kept in MLflow at {masked(self.uri)}")])
        try:
            with downloaded(run_id, self.uri, self.experiment, folder, key="retry", pauses=_FETCHING) as (run, files):
                arrange(run, files, folder / part(run.folder))
        except RunNotFoundError as error:
            raise NothingKeptError(error.problems) from error

    def delete_last(self, run_id: str, folder: Path | None = None) -> None:
        """Delete what `log_last` has kept of a run that will not go on, and what still waits to be sent."""
        if not self.keeps_last:
            return
        for spool in [] if folder is None else spools_below([folder]):  # of a server that is away, behind what is to be deleted
            spool.snapshots.remove()
            with contextlib.suppress(OSError):
                spool.append({"call": "delete_last"})
        writer().send_command({"delete_last": run_id, "uri": self.uri})

    def _add(self, call: str, **arguments: Any) -> None:
        """Append an event to the spool, and wake the process that sends it."""
        try:
            self._spool.append({"call": call, "timestamp": int(time.time() * 1000), **arguments})
        except OSError as error:
            if not self._warned_of_disk:
                log.warning("%s cannot be written (%s); training goes on and tries again", self._spool.path, error.strerror)
            self._warned_of_disk = True
        with contextlib.suppress(OSError):
            writer().attend(self._spool.path, self.uri)
        away = writer().state(self._spool.path).get("away")
        if away and not self._warned_of_server and self._run_id is not None:
            log.warning("MLflow at %s does not answer (%s); training goes on and it is sent later", masked(self.uri), away)
        self._warned_of_server = bool(away)
