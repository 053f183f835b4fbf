"""MLflow: parameters, tags, metrics once an epoch, artifacts, a truthful status.

If the server goes away, training goes on: what could not be sent waits, in order, in `unsent.jsonl` beside the run and is sent with
the next call that gets through.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # training does not wait minutes for a server that is away
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from speechtrain.errors import UserError
from speechtrain.tracking.base import RunInfo, Status, Tracker, flat

log = logging.getLogger(__name__)

UNSENT = "unsent.jsonl"
_PARAM_LIMIT = 6000  # characters MLflow takes in a parameter's value
_BATCH_LIMIT = 100  # parameters or tags MLflow takes at a time


def local_uri(folder: Path) -> str:
    """The absolute address of the database in a folder."""
    return f"sqlite:///{folder.absolute() / 'mlflow.db'}"


def open_client(uri: str) -> MlflowClient:
    """A client; a local database is created whole, by one process at a time, and put in write-ahead mode."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///"))
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{path}.lock"):
            with sqlite3.connect(path) as database:
                database.execute("PRAGMA journal_mode=WAL")
            client = MlflowClient(uri)
            client.search_experiments(max_results=1)
            return client
    return MlflowClient(uri)


class MlflowTracker(Tracker):
    """One MLflow run.

    Args:
        tracking_uri: of a server or database; None: `mlflow.db` in the current folder.
        experiment: its name; made if it is not there.
        run_name: None: as the program proposes.
        log_checkpoint: keep the best checkpoint as an artifact.
    """

    def __init__(self, tracking_uri: str | None, experiment: str, run_name: str | None, log_checkpoint: bool) -> None:
        self.uri = tracking_uri or local_uri(Path.cwd())
        self.experiment = experiment
        self.run_name = run_name
        self.keeps_checkpoint = log_checkpoint
        self._client: MlflowClient
        self._run_id = ""
        self._folder = Path()
        self._waiting: list[dict[str, Any]] = []
        self._known: set[tuple[str, int]] = set()

    def start(self, info: RunInfo) -> str | None:
        """Open a run, or go on with the one of a resumed training.

        Raises:
            UserError: there is no server or database at `tracking_uri`.
        """
        self._folder = info.folder
        try:
            self._client = open_client(self.uri)
            if info.run_id is not None:
                self._run_id = info.run_id
                self._client.update_run(info.run_id, status="RUNNING")
                self._known = self._logged(info.run_id)
            else:
                run = self._client.create_run(self._experiment_id(), run_name=self.run_name or info.name)
                self._run_id = run.info.run_id
        except (MlflowException, OSError, sqlite3.Error) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"MLflow cannot be reached at {self.uri}: {reason[:300]}\n"
                "    -> set tracking.mlflow.tracking_uri, or tracking=[] to go without"
            ) from error
        if (self._folder / UNSENT).is_file():
            self._waiting = [json.loads(line) for line in (self._folder / UNSENT).read_text(encoding="utf-8").splitlines()]
        params = flat(info.config)
        self._send("log_params", params=params)
        self._send("set_tags", tags=dict(info.tags))
        for name, text in info.texts.items():
            self._send("log_text", text=text, name=name)
        return self._run_id

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Metrics of an epoch, in one go; an epoch that a resumed run had to repeat is not written twice."""
        fresh = {name: float(value) for name, value in metrics.items() if (name, step) not in self._known}
        if fresh:
            self._send("log_batch", metrics=fresh, step=step, timestamp=int(time.time() * 1000))

    def log_table(self, name: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """A table, shown in MLflow's artifact view."""
        self._send("log_table", name=f"{name}.json", columns={key: list(values) for key, values in columns.items()})

    def log_file(self, path: Path, folder: str = "") -> None:
        """A file as an artifact."""
        self._send("log_artifact", path=str(path), folder=folder)

    def log_checkpoint(self, path: Path) -> None:
        """The checkpoint as an artifact, if the config wants it."""
        if self.keeps_checkpoint:
            self.log_file(path, "checkpoints")

    def how_to_look(self) -> str:
        """The command that opens the UI."""
        if self.uri == local_uri(Path.cwd()):
            return f"MLflow      make ui, or: mlflow ui --backend-store-uri {self.uri}"
        return f"MLflow      {self.uri}"

    def set_tag(self, name: str, value: str) -> None:
        """A word about the run."""
        self._send("set_tags", tags={name: value})

    def finish(self, status: Status) -> None:
        """Close the run, truthfully."""
        self._send("set_terminated", status=status)
        if self._waiting:
            log.warning(
                "MLflow at %s did not take everything; the rest is in %s and is sent when the run is resumed",
                self.uri,
                self._folder / UNSENT,
            )

    def abandon(self, run_id: str, reason: str) -> None:
        """Close a run as failed whose process died before it could."""
        try:
            client = open_client(self.uri)
            if client.get_run(run_id).info.status == "RUNNING":
                client.set_tag(run_id, "error", reason[:_PARAM_LIMIT])
                client.set_terminated(run_id, "FAILED")
        except (MlflowException, OSError, sqlite3.Error) as error:
            log.warning("MLflow at %s cannot be told that run %s died (%s)", self.uri, run_id, type(error).__name__)

    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(self.experiment)
        if found is not None:
            return str(found.experiment_id)
        local = self.uri.startswith("sqlite:///")
        artifacts = (Path(self.uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri() if local else None
        try:
            return str(self._client.create_experiment(self.experiment, artifact_location=artifacts))
        except MlflowException:  # another process was first
            found = self._client.get_experiment_by_name(self.experiment)
            if found is None:
                raise
            return str(found.experiment_id)

    def _logged(self, run_id: str) -> set[tuple[str, int]]:
        names = self._client.get_run(run_id).data.metrics
        return {(name, int(metric.step)) for name in names for metric in self._client.get_metric_history(run_id, name)}

    def _send(self, call: str, **arguments: Any) -> None:
        """Do a call, after those that wait; if it fails, it waits too."""
        had_to_wait = bool(self._waiting)
        self._waiting.append({"call": call, **arguments})
        while self._waiting:
            try:
                self._do(**self._waiting[0])
            except Exception as error:  # whatever a client raises, training must go on
                if not had_to_wait:
                    log.warning("MLflow at %s does not answer (%s); training goes on and sends it later", self.uri, type(error).__name__)
                break
            self._waiting.pop(0)
        if self._waiting or had_to_wait:
            self._keep()

    def _keep(self) -> None:
        path = self._folder / UNSENT
        if not self._waiting:
            path.unlink(missing_ok=True)
            return
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(item) + "\n" for item in self._waiting), encoding="utf-8")
        temporary.replace(path)

    def _do(self, call: str, **given: Any) -> None:
        client, run = self._client, self._run_id
        if call == "log_params":
            params = [Param(key, value[:_PARAM_LIMIT]) for key, value in given["params"].items()]
            known = client.get_run(run).data.params
            params = [param for param in params if param.key not in known]  # a resumed run may not change them
            for start in range(0, len(params), _BATCH_LIMIT):
                client.log_batch(run, params=params[start : start + _BATCH_LIMIT])
        elif call == "set_tags":
            client.log_batch(run, tags=[RunTag(key, value[:_PARAM_LIMIT]) for key, value in given["tags"].items()])
        elif call == "log_batch":
            metrics = [Metric(name, value, given["timestamp"], given["step"]) for name, value in given["metrics"].items()]
            client.log_batch(run, metrics=metrics)
        elif call == "log_text":
            client.log_text(run, given["text"], given["name"])
        elif call == "log_table":
            client.log_table(run, given["columns"], given["name"])
        elif call == "log_artifact":
            client.log_artifact(run, given["path"], given["folder"] or None)
        elif call == "set_terminated":
            client.set_terminated(run, given["status"])


def import_run(database: Path, run_id: str, uri: str, *, known: str | None = None) -> str:
    """Copy a run out of another machine's database, with its artifacts beside it, into the one at `uri`; returns its id there.

    Args:
        database: SQLite file; artifacts are looked for in `mlartifacts` beside it.
        run_id: in that database.
        uri: to copy to.
        known: id of an earlier copy, which is brought up to date.
    """
    source = open_client(f"sqlite:///{database.absolute()}")
    client = open_client(uri)
    run = source.get_run(run_id)
    tracker = MlflowTracker(uri, source.get_experiment(run.info.experiment_id).name, None, log_checkpoint=False)
    tracker._client = client
    if known is None:
        tags = {key: value for key, value in run.data.tags.items() if key != "mlflow.log-model.history"}
        known = client.create_run(tracker._experiment_id(), run.info.start_time, tags, run.info.run_name).info.run_id
    tracker._run_id = known
    there = client.get_run(known)
    params = [Param(key, value) for key, value in run.data.params.items() if key not in there.data.params]
    for start in range(0, len(params), _BATCH_LIMIT):
        client.log_batch(known, params=params[start : start + _BATCH_LIMIT])
    have = {(metric.key, metric.step) for name in there.data.metrics for metric in client.get_metric_history(known, name)}
    metrics = [metric for name in run.data.metrics for metric in source.get_metric_history(run_id, name)]
    fresh = [Metric(metric.key, metric.value, metric.timestamp, metric.step) for metric in metrics if (metric.key, metric.step) not in have]
    for start in range(0, len(fresh), _BATCH_LIMIT):
        client.log_batch(known, metrics=fresh[start : start + _BATCH_LIMIT])
    for folder in (database.parent / "mlartifacts").glob(f"**/{run_id}/artifacts"):
        client.log_artifacts(known, str(folder))
    client.set_terminated(known, run.info.status, run.info.end_time)
    return str(known)
