"""Sends what a run has spooled to MLflow, in order and as often as needed: an event that arrives twice changes nothing.

Everything that talks to MLflow is here; it runs in the process of `speechtrain.tracking.mlflow.writer`, or in a command of its own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # what could not be sent is sent again by ourselves
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from speechtrain.errors import UserError, first_line, without_passwords
from speechtrain.processes.identity import Process
from speechtrain.tracking.mlflow.spool import Spool, spools_in

log = logging.getLogger(__name__)

UID, PROCESS, FOLDER = (f"speechtrain.{name}" for name in ("uid", "process", "folder"))
"""Tags: a name known before the run's id, the process that writes the run, the run's folder."""

_KIND = "mlflow.experimentKind"  # makes the UI show what belongs to trained models first
_PARAM_LIMIT = 6000  # characters MLflow takes in a parameter's value
_TAG_LIMIT = 8000
_NO_NAME = re.compile(r"[^\w .:/-]")  # what MLflow does not take in a parameter's name
_BATCH_LIMIT = 100  # parameters or tags MLflow takes at a time
_METRICS_LIMIT = 1000
_REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE"}
"""What MLflow will answer again however often it is asked."""


def is_refusal(error: Exception) -> bool:
    """Whether trying again is in vain."""
    return (isinstance(error, MlflowException) and str(error.error_code) in _REFUSALS) or isinstance(error, (FileNotFoundError, TypeError))


def open_client(uri: str) -> MlflowClient:
    """A client; a local database is created whole, by one process at a time, and put in write-ahead mode."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///"))
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{path}.lock"):
            with contextlib.closing(sqlite3.connect(path)) as database:
                database.execute("PRAGMA journal_mode=WAL")
            client = MlflowClient(uri)
            client.search_experiments(max_results=1)
            return client
    return MlflowClient(uri)


def experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    """Of an experiment, which is made if it is not there; one in a local database keeps its artifacts beside it."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    local = uri.startswith("sqlite:///")
    artifacts = (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri() if local else None
    try:
        return str(client.create_experiment(name, artifact_location=artifacts, tags={_KIND: "custom_model_development"}))
    except MlflowException:  # another process was first
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


class Sender:
    """Sends one spool.

    Args:
        spool: of a run.
        warn: told what MLflow refused.

    Attributes:
        run_id: of the open run; empty before.
        closed: whether the run's end was sent.
        wishes: the event that opened the run.
    """

    def __init__(self, spool: Spool, warn: Callable[[str], None] = log.warning) -> None:
        self.spool = spool
        self.warn = warn
        state = spool.state()
        self.offset = int(state.get("offset", 0))
        self.run_id = str(state.get("run_id", ""))
        self.uri = str(state.get("uri", ""))
        self.closed = bool(state.get("closed", False))
        first = next(spool.read(0), None)
        self.wishes: Mapping[str, Any] = first[0] if first is not None else {}
        self._client: MlflowClient | None = None
        self._known: set[tuple[str, int]] | None = None

    @property
    def client(self) -> MlflowClient:
        """Of the run's server."""
        if self._client is None:
            self._client = open_client(self.uri)
        return self._client

    def advance(self) -> bool:
        """Send all that waits; whether there was anything.

        Raises:
            Exception: the server is away; what was sent before is noted, the rest comes with the next call.
        """
        events = list(self.spool.read(self.offset))
        position = 0
        while position < len(events):
            size = _alike(events[position:])
            group = [event for event, _ in events[position : position + size]]
            try:
                self.do(group)
            except UserError:
                raise
            except Exception as error:
                if not is_refusal(error):
                    raise
                self.warn(f"MLflow at {without_passwords(self.uri)} refuses {group[0]['call']}: {first_line(error)}")
            position += size
            self.offset = events[position - 1][1]
            self._note()
        return bool(events)

    def finish(self) -> bool:
        """Remove the spool if nothing is left to do; whether it is so."""
        if self.closed and next(self.spool.read(self.offset), None) is None:
            self.spool.remove()
            return True
        return False

    def bury(self, reason: str) -> None:
        """The run's process died: it is failed, unless it is known how it ended."""
        if self.closed or not self.run_id:
            return
        abandon(self.client, self.run_id, reason, keep_reason=True)
        self.closed = True
        self._note()

    def _note(self) -> None:
        self.spool.commit({"offset": self.offset, "run_id": self.run_id, "uri": self.uri, "closed": self.closed})

    def do(self, group: Sequence[Mapping[str, Any]]) -> None:
        """One event, or several that go in one call; see `advance`."""
        call, event = str(group[0]["call"]), group[0]
        if call == "open":
            self._open(event)
        elif not self.run_id:
            raise MlflowException.invalid_parameter_value("the run was never opened")
        elif call == "metrics":
            self._send_metrics(group)
        elif call == "params":
            known = self.client.get_run(self.run_id).data.params  # a resumed run may not change them
            named = {_NO_NAME.sub("_", key): value for key, value in event["params"].items()}
            params = [Param(key, value[:_PARAM_LIMIT]) for key, value in named.items() if key not in known]
            for start in range(0, len(params), _BATCH_LIMIT):
                self.client.log_batch(self.run_id, params=params[start : start + _BATCH_LIMIT])
        elif call == "tags":
            self.client.log_batch(self.run_id, tags=_tags(event["tags"]))
        elif call == "text":
            self.client.log_text(self.run_id, event["text"], event["name"])
        elif call == "table":
            self._send_table(event)
        elif call == "file":
            self.client.log_artifact(self.run_id, event["path"], event["folder"] or None)
        elif call == "datasets":
            self.client.log_inputs(self.run_id, [_dataset(item) for item in event["datasets"]])
        elif call == "model":
            from speechtrain.tracking.mlflow.flavor import log_model

            log_model(self.client, self.uri, self.run_id, event)
        elif call == "close":
            self.client.set_terminated(self.run_id, event["status"], event["timestamp"])
            self.closed = True

    def _open(self, event: Mapping[str, Any]) -> None:
        """Create the run, or find it again.

        Raises:
            UserError: MLflow refuses.
        """
        self.uri, self.wishes = event["uri"], event
        self._client = None
        self._known = None
        self.closed = False
        tags = {PROCESS: json.dumps(event["process"]), UID: event["uid"], FOLDER: event["folder"], **event["tags"]}
        try:
            experiment = experiment_id(self.client, self.uri, event["experiment"])
            found = event["run_id"] or find_run(self.client, experiment, event["uid"])
            if found is None:
                run = self.client.create_run(experiment, start_time=event["timestamp"], tags=dict(_texts(tags)), run_name=event["name"])
                found = run.info.run_id
            else:
                self.client.update_run(found, status="RUNNING")
                self.client.log_batch(found, tags=_tags(tags))
        except MlflowException as error:
            if is_refusal(error):
                raise UserError(first_line(error)) from error
            raise
        self.run_id = str(found)

    def _send_metrics(self, group: Sequence[Mapping[str, Any]]) -> None:
        """Those that the run does not have: an epoch that a resumed run had to repeat is not written twice."""
        if self._known is None:
            data = self.client.get_run(self.run_id).data.metrics
            self._known = {(name, int(item.step)) for name in data for item in self.client.get_metric_history(self.run_id, name)}
        fresh = [
            Metric(name, value, event["timestamp"], event["step"])
            for event in group
            for name, value in event["metrics"].items()
            if (name, event["step"]) not in self._known
        ]
        for start in range(0, len(fresh), _METRICS_LIMIT):
            self.client.log_batch(self.run_id, metrics=fresh[start : start + _METRICS_LIMIT])
        self._known.update((metric.key, metric.step) for metric in fresh)

    def _send_table(self, event: Mapping[str, Any]) -> None:
        """A file in the form that MLflow's own `log_table` writes, which would add to what is there when called again."""
        columns = event["columns"]
        content = {"columns": list(columns), "data": [list(row) for row in zip(*columns.values(), strict=True)]}
        self.client.log_text(self.run_id, json.dumps(content, ensure_ascii=False), event["name"])
        known = json.loads(self.client.get_run(self.run_id).data.tags.get("mlflow.loggedArtifacts", "[]"))
        entry = {"path": event["name"], "type": "table"}
        if entry not in known:
            self.client.set_tag(self.run_id, "mlflow.loggedArtifacts", json.dumps([*known, entry]))


def _alike(events: Sequence[tuple[Mapping[str, Any], int]]) -> int:
    """How many events, from the first on, go in one call: metrics do."""
    size = 1
    while size < len(events) and events[0][0]["call"] == "metrics" == events[size][0]["call"]:
        size += 1
    return size


def _texts(tags: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key, str(value)[:_TAG_LIMIT]) for key, value in tags.items()]


def _tags(tags: Mapping[str, Any]) -> list[RunTag]:
    return [RunTag(key, value) for key, value in _texts(tags)]


def _dataset(item: Mapping[str, Any]) -> DatasetInput:
    profile = json.dumps(item["facts"])
    source = json.dumps({"uri": item["source"]})
    dataset = Dataset(item["name"], item["fingerprint"][:12], "local", source, profile=profile)
    context = {"train": "training", "val": "validation"}.get(item["split"], item["split"])
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])


def find_run(client: MlflowClient, experiment: str, uid: str) -> str | None:
    """Id of the run with this tag."""
    found = client.search_runs([experiment], f"tags.`{UID}` = '{uid}'", max_results=1)
    return str(found[0].info.run_id) if found else None


def abandon(client: MlflowClient, run_id: str, reason: str, *, keep_reason: bool = False) -> None:
    """Close a run as failed whose process died; one that has ended otherwise is left alone.

    Args:
        client: of its server.
        run_id: of the run.
        reason: for people.
        keep_reason: leave the reason that somebody else gave.
    """
    run = client.get_run(run_id)
    if run.info.status not in ("RUNNING", "FAILED"):
        return
    if not (keep_reason and "error" in run.data.tags):
        client.set_tag(run_id, "error", reason[:_TAG_LIMIT])
    if run.info.status == "RUNNING":
        client.set_terminated(run_id, "FAILED")


def bury_dead(client: MlflowClient, experiment: str) -> list[str]:
    """Close the runs of this machine that say they run and whose process is gone; what they had spooled is sent first."""
    buried: list[str] = []
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return buried
    host = Process.current().host.replace("'", "")
    for run in client.search_runs([found.experiment_id], f"attributes.status = 'RUNNING' and tags.host = '{host}'", max_results=1000):
        process = process_of(run)
        if process is None or not process.is_local() or process.is_alive():
            continue
        send_leftovers(Path(run.data.tags.get(FOLDER, "/nowhere")))
        abandon(client, run.info.run_id, f"its process {process.pid} died", keep_reason=True)
        buried.append(str(run.info.run_id))
    return buried


def process_of(run: Run) -> Process | None:
    """The process that writes a run."""
    try:
        return Process.from_dict(json.loads(run.data.tags.get(PROCESS, "null")))
    except (ValueError, KeyError, TypeError):
        return None


def send_leftovers(folder: Path, besides: Path | None = None) -> bool:
    """Send what earlier processes left unsent in a run's folder; whether all of it went through.

    Args:
        folder: of the run.
        besides: a spool that somebody else sends.
    """
    waiting = [spool for spool in spools_in(folder) if spool.path != besides and not is_in_use(spool)]
    return all(send_spool(spool) for spool in waiting)


def is_in_use(spool: Spool) -> bool:
    """Whether the process that writes a spool still lives."""
    first = next(spool.read(0), None)
    process = Process.from_dict(first[0].get("process")) if first is not None else None
    return process is not None and process.is_local() and process.is_alive()


def send_spool(spool: Spool) -> bool:
    """Send one spool to its end; whether all of it went through. A run that was never closed is failed.

    Raises:
        UserError: MLflow refuses the run.
    """
    try:
        with spool.lock():
            return _send_spool(spool)
    except filelock.Timeout:
        return False


def _send_spool(spool: Spool) -> bool:
    sender = Sender(spool)
    try:
        sender.advance()
        sender.bury("its process died")
    except UserError:
        raise
    except Exception as error:
        log.warning(
            "MLflow at %s does not answer (%s); what waits stays in %s", without_passwords(sender.uri), first_line(error), spool.path
        )
        return False
    if not sender.run_id:
        spool.remove()
        return True
    return sender.finish()


def import_run(
    database: Path, run_id: str, uri: str, *, known: str | None = None, tags: Mapping[str, str] | None = None, name: str = ""
) -> str:
    """Copy a run out of another machine's database, with its artifacts beside it, into the one at `uri`; returns its id there.

    Args:
        database: SQLite file; artifacts are looked for in `mlartifacts` beside it.
        run_id: in that database.
        uri: to copy to.
        known: id of an earlier copy, which is brought up to date.
        tags: for the copy, besides those of the run.
        name: of the copy; empty: the run's.
    """
    source = open_client(f"sqlite:///{database.absolute()}")
    client = open_client(uri)
    run = source.get_run(run_id)
    if known is None:
        kept = {key: value for key, value in run.data.tags.items() if key not in ("mlflow.log-model.history", "mlflow.runName", PROCESS)}
        experiment = experiment_id(client, uri, source.get_experiment(run.info.experiment_id).name)
        known = client.create_run(experiment, run.info.start_time, {**kept, **(tags or {})}, name or run.info.run_name).info.run_id
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
