"""Sends the events of a run's spool to MLflow, in order and as often as needed: an event that arrives twice changes nothing.

It runs in the process of `speechtrain.tracking.mlflow.writer`, or in `speechtrain.sync`.
"""

from __future__ import annotations

import speechtrain.tracking.mlflow.settings  # noqa: F401  # before MLflow

# isort: split
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from speechtrain.addresses import keep, masked, masked_values, whole
from speechtrain.errors import UserError, first_line
from speechtrain.files import is_file
from speechtrain.tracking.mlflow.client import EXPERIMENT_KEY, experiment_id, open_client
from speechtrain.tracking.mlflow.names import accepted_name
from speechtrain.tracking.mlflow.resume_files import IncompleteSnapshotError
from speechtrain.tracking.mlflow.resume_store import DELETED, KEPT, ResumeStore, is_refusal
from speechtrain.tracking.mlflow.runs import FOLDER, PROCESS, TAG_LIMIT, UID, fail_run, find_run
from speechtrain.tracking.mlflow.spool import Spool, pause_after

log = logging.getLogger(__name__)

_PARAM_LIMIT = 6000  # characters MLflow takes in a parameter's value
BATCH_LIMIT = 100  # parameters or tags MLflow takes at a time
_METRICS_LIMIT = 1000
_REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE"}
"""Error codes that MLflow answers again, however often the same is sent."""


def is_refused_for_good(error: Exception) -> bool:
    """Return whether MLflow would refuse the same again, so that it must not be sent again."""
    of_mlflow = isinstance(error, MlflowException) and str(error.error_code) in _REFUSALS
    return of_mlflow or isinstance(error, (FileNotFoundError, TypeError, _NotSentError))


class _NotSentError(Exception):
    """Says why an event of a spool must not be sent."""


class Sender:
    """Sends the events of one spool to the MLflow run that the first of them opens.

    Args:
        spool: the events of a run.
        warn: called with a message for each event that MLflow refused.
        uri: the address that is masked in the spool; None: it is kept, or holds no secret.

    Attributes:
        run_id: id of the open run; empty before it is open.
        closed: whether the run's end was sent.
        open_event: the event that opens the run; empty where the spool is.
        unkept: why the store of artifacts does not take the last checkpoint that waits, in a line; empty: none waits, or none was refused.
        unkept_failures: how often in a row it has not been taken.
        unkept_due: when it is tried again, by `time.monotonic`.
    """

    def __init__(self, spool: Spool, warn: Callable[[str], None] = log.warning, uri: str | None = None) -> None:
        self.spool = spool
        self.warn = warn
        state = spool.state()
        self.offset = int(state.get("offset", 0))
        self.run_id = str(state.get("run_id", ""))
        self._given_uri = uri
        self.uri = self._whole(str(state.get("uri", "")))
        self.closed = bool(state.get("closed", False))
        first = next(spool.read(0), None)
        self.open_event: Mapping[str, Any] = first[0] if first is not None else {}
        self._client: MlflowClient | None = None
        self._sent_metrics: set[tuple[str, int]] | None = None
        self._resume_store: ResumeStore | None = None
        self.unkept = ""
        self.unkept_failures = 0
        self.unkept_due = 0.0
        self._warned: set[str] = set()

    def _whole(self, uri: str) -> str:
        return self._given_uri if self._given_uri is not None and masked_values(self._given_uri) == uri else whole(uri)

    @property
    def client(self) -> MlflowClient:
        """Return the client of the run's server, opened when it is first needed."""
        if self._client is None:
            self._client = open_client(self.uri)
        return self._client

    def advance(self) -> bool:
        """Send all events that wait, then the last checkpoint, and return whether there were any events.

        Raises:
            Exception: the server cannot be reached; what was sent before is noted, the rest is sent by the next call.
        """
        events = list(self.spool.read(self.offset))
        position = 0
        while position < len(events):
            size = _count_batched(events[position:])
            group = [event for event, _ in events[position : position + size]]
            try:
                self.send(group)
            except UserError:
                raise
            except Exception as error:
                if not is_refused_for_good(error):
                    raise
                reason = first_line(error)
                self._warn_once(reason, f"MLflow at {masked(self.uri)} refuses {group[0]['call']}: {reason}")
            position += size
            self.offset = events[position - 1][1]
            self._save_state()
        if self.run_id and self.unkept_due <= time.monotonic():
            self._send_last()
        return bool(events)

    def finish(self) -> bool:
        """Remove the spool if the run is closed and all is sent, and return whether that is so."""
        if self.closed and next(self.spool.read(self.offset), None) is None and not self._has_snapshot():
            self.spool.remove()
            return True
        return False

    def fail(self, reason: str) -> None:
        """Close the run as failed, because its process died before it closed it."""
        if self.closed or not self.run_id:
            return
        fail_run(self.client, self.run_id, reason, keep_reason=True)
        self.closed = True
        self._save_state()

    def _save_state(self) -> None:
        self.spool.commit(keep({"offset": self.offset, "run_id": self.run_id, "uri": self.uri, "closed": self.closed}))

    def send(self, group: Sequence[Mapping[str, Any]]) -> None:
        """Send one event, or several metric events in one call; see `advance` for what is raised."""
        for event in group:
            _check(event)
        call = str(group[0]["call"])
        if call == "open":
            self._open(group[0])
        elif not self.run_id:
            raise MlflowException.invalid_parameter_value("the run was never opened")
        elif call == "metrics":
            self._send_metrics(group)
        elif call in _SENDERS:
            _SENDERS[call](self, group[0])

    def _open(self, event: Mapping[str, Any]) -> None:
        """Create the run, or find it again.

        Raises:
            UserError: MLflow refuses.
        """
        self.uri, self.open_event = self._whole(event["uri"]), event
        self._client = self._resume_store = None
        self._sent_metrics = None
        self.closed = False
        given = {self._accepted(key): value for key, value in event["tags"].items()}
        tags = {PROCESS: json.dumps(event["process"]), UID: event["uid"], FOLDER: event["folder"], **given}
        remedy = f"set {EXPERIMENT_KEY} to a name that MLflow takes"
        try:
            experiment = experiment_id(self.client, self.uri, event["experiment"])
            remedy = "look at the server's log, or set tracking=[] to go on without MLflow"
            run_id = self._resumable(event["run_id"]) or find_run(self.client, experiment, event["uid"])
            if run_id is None:
                run = self.client.create_run(experiment, start_time=event["timestamp"], tags=dict(_texts(tags)), run_name=event["name"])
                run_id = run.info.run_id
            else:
                self.client.update_run(run_id, status="RUNNING")
                self._log_all("tag", _tags(tags), run_id)
                if self.client.get_run(run_id).data.tags.get(KEPT) == DELETED:  # it goes on after all
                    self.client.delete_tag(run_id, KEPT)
        except MlflowException as error:
            if is_refused_for_good(error):
                raise UserError(f"{first_line(error)}\n    -> {remedy}") from error
            raise
        self.run_id = str(run_id)

    def _resumable(self, run_id: str | None) -> str | None:
        """Return the id of a run that is resumed; None where MLflow has it no more, so that a new one is to be made.

        Raises:
            UserError: it is deleted, but can be restored.
        """
        try:
            deleted = run_id is not None and self._is_deleted(run_id)
        except MlflowException as error:
            if str(error.error_code) != "RESOURCE_DOES_NOT_EXIST":
                raise
            self.warn(f"MLflow at {masked(self.uri)} does not have the run {run_id} that is resumed; what follows is in a new run there")
            return None
        if deleted:
            restore = f"restore it with `mlflow runs restore --run-id {run_id}`"
            raise UserError(f"the run {run_id} is deleted there\n    -> {restore}, or set tracking=[] to go on without")
        return run_id

    def _send_metrics(self, group: Sequence[Mapping[str, Any]]) -> None:
        """Send the metrics that the run does not have yet: an epoch that a resumed run had to repeat is not written twice."""
        if self._sent_metrics is None:
            data = self.client.get_run(self.run_id).data.metrics
            self._sent_metrics = {(name, int(item.step)) for name in data for item in self.client.get_metric_history(self.run_id, name)}
        named = [(self._accepted(name), value, event) for event in group for name, value in event["metrics"].items()]
        fresh = [
            Metric(name, value, event["timestamp"], event["step"])
            for name, value, event in named
            if (name, event["step"]) not in self._sent_metrics
        ]
        self._log_all("metric", fresh)
        self._sent_metrics.update((metric.key, metric.step) for metric in fresh)

    def _send_params(self, event: Mapping[str, Any]) -> None:
        """Send the parameters that the run does not have: MLflow refuses to change one, as a resumed run may want to."""
        sent = self.client.get_run(self.run_id).data.params
        named = {self._accepted(key): value for key, value in event["params"].items()}
        self._log_all("parameter", [Param(key, value[:_PARAM_LIMIT]) for key, value in named.items() if key not in sent])

    def _send_tags(self, event: Mapping[str, Any]) -> None:
        self._log_all("tag", _tags({self._accepted(key): value for key, value in event["tags"].items()}))

    def _accepted(self, name: str) -> str:
        """Return the name under which MLflow keeps something, and say once that it is another."""
        accepted = accepted_name(name)
        if accepted != name:
            self._warn_once(name, f"MLflow does not take the name '{name:.80}'; there it is '{accepted:.100}'")
        return accepted

    def _warn_once(self, name: str, message: str) -> None:
        if name not in self._warned:
            self._warned.add(name)
            self.warn(message)

    def _log_all(self, kind: str, items: Sequence[Metric | Param | RunTag], run_id: str | None = None) -> None:
        """Log metrics, parameters or tags in as few calls as MLflow takes; one that it refuses is named once, and the rest is sent.

        Args:
            kind: `metric`, `parameter` or `tag`.
            items: all of that kind.
            run_id: the run; None takes the open one.
        """
        argument, limit = _BATCHES[kind]
        batches = [items[start : start + limit] for start in range(0, len(items), limit)]
        while batches:
            batch = batches.pop(0)
            arguments: dict[str, Any] = {argument: batch}
            try:
                self.client.log_batch(run_id or self.run_id, **arguments)
            except MlflowException as error:
                if str(error.error_code) != "INVALID_PARAMETER_VALUE" or self._is_deleted(run_id or self.run_id):
                    raise
                if len(batch) == 1:
                    self._warn_once(batch[0].key, f"MLflow at {masked(self.uri)} refuses the {kind} '{batch[0].key}': {first_line(error)}")
                else:
                    middle = len(batch) // 2
                    batches[:0] = [batch[:middle], batch[middle:]]

    def _is_deleted(self, run_id: str) -> bool:
        return str(self.client.get_run(run_id).info.lifecycle_stage) == LifecycleStage.DELETED

    def _send_text(self, event: Mapping[str, Any]) -> None:
        self.client.log_text(self.run_id, event["text"], event["name"])

    def _send_file(self, event: Mapping[str, Any]) -> None:
        self.client.log_artifact(self.run_id, str(self._own_file(event["path"])), event["folder"] or None)

    def _own_file(self, name: str) -> Path:
        """Return a file of the run's folder without the links in its path: a spool of somebody else's may name any file.

        Raises:
            _NotSentError: it is none, or lies elsewhere.
        """
        try:
            path = Path(name).resolve()
        except (OSError, ValueError, RuntimeError) as error:
            raise _NotSentError(f"{name!r:.200} is no file: {error}") from error
        self._own_folder(path, name)
        if not is_file(path):
            raise _NotSentError(f"{name!r:.200} is no file")
        return path

    def _own_folder(self, path: Path, name: str) -> None:
        """Check that a path, which an event calls by a name, lies in the run's folder.

        Raises:
            _NotSentError: it does not.
        """
        if not path.resolve().is_relative_to(self.spool.path.absolute().parent.parent.resolve()):
            raise _NotSentError(f"{name!r:.200} lies outside of the run's folder")

    def _send_datasets(self, event: Mapping[str, Any]) -> None:
        self.client.log_inputs(self.run_id, [_dataset(item) for item in event["datasets"]])

    def _send_model(self, event: Mapping[str, Any]) -> None:
        from speechtrain.tracking.mlflow.flavor import log_model

        log_model(self.client, self.uri, self.run_id, {**event, "weights": str(self._own_file(event["weights"]))})

    def _send_last(self) -> None:
        """Send what `resume=` needs, as it is in the latest snapshot; metrics and the run's end do not wait for a store that fails.

        What a server refuses for good is given up; all else stays where it is and is tried again later, or a later one in its place.

        Raises:
            Exception: the server does not answer at all.
        """
        snapshot = self.spool.snapshots.claim() if self._has_snapshot() else None
        if snapshot is None:
            self.unkept, self.unkept_failures = "", 0
            return
        if self._resume_store is None:
            self._resume_store = ResumeStore(self.client, self.run_id)
        place = f"MLflow at {masked(self.uri)}"
        try:
            undeleted = self._resume_store.put(snapshot)
        except IncompleteSnapshotError as error:
            self._warn_once("incomplete", f"what resume= needs is not sent to {place}: {error}; the next checkpoint is")
        except Exception as error:
            self.client.get_run(self.run_id)
            if not is_refusal(error):
                self.unkept = f"what resume= needs: {first_line(error)}"
                self.unkept_failures += 1
                self.unkept_due = time.monotonic() + pause_after(self.unkept_failures)
                self._warn_once("away", f"{place} does not take what resume= needs now ({first_line(error)}); it is tried again")
                return
            self._warn_once("last", f"{place} refuses what resume= needs ({first_line(error)}); the next checkpoint is tried again")
        else:
            if undeleted:
                more = "each checkpoint takes up more room there"
                self._warn_once("undeleted", f"{place} does not delete what earlier checkpoints needed ({undeleted}): {more}")
        self.unkept, self.unkept_failures = "", 0
        self.spool.snapshots.discard(snapshot)

    def _has_snapshot(self) -> bool:
        """Return whether the last checkpoint waits to be sent; what a spool of somebody else's has elsewhere is none."""
        try:
            self._own_folder(self.spool.snapshots.folder, "what resume= needs")
        except _NotSentError:
            return False
        return self.spool.snapshots.waits()

    def _wait_for_last(self, _event: Mapping[str, Any]) -> None:
        """Leave a snapshot to `advance`, which sends the latest one behind all events."""

    def _delete_last(self, _event: Mapping[str, Any]) -> None:
        """Delete what `resume=` needs of a run that will not go on, which was not there to be deleted when that was decided."""
        self.spool.snapshots.remove()
        ResumeStore(self.client, self.run_id).delete()

    def _close(self, event: Mapping[str, Any]) -> None:
        self.client.set_terminated(self.run_id, event["status"], event["timestamp"])
        self.closed = True
        self.unkept_due = 0.0

    def _send_table(self, event: Mapping[str, Any]) -> None:
        """Send a file in the form that MLflow's own `log_table` writes, which would append to the table when called again."""
        columns = event["columns"]
        content = {"columns": list(columns), "data": [list(row) for row in zip(*columns.values(), strict=True)]}
        self.client.log_text(self.run_id, json.dumps(content, ensure_ascii=False), event["name"])
        logged = json.loads(self.client.get_run(self.run_id).data.tags.get("mlflow.loggedArtifacts", "[]"))
        entry = {"path": event["name"], "type": "table"}
        if entry not in logged:
            self.client.set_tag(self.run_id, "mlflow.loggedArtifacts", json.dumps([*logged, entry]))


_BATCHES = {"metric": ("metrics", _METRICS_LIMIT), "parameter": ("params", BATCH_LIMIT), "tag": ("tags", BATCH_LIMIT)}
"""The argument of MLflow's `log_batch` and the number it takes at a time, by what is logged."""

_SENDERS: Mapping[str, Callable[[Sender, Mapping[str, Any]], None]] = {
    "params": Sender._send_params,
    "tags": Sender._send_tags,
    "text": Sender._send_text,
    "table": Sender._send_table,
    "file": Sender._send_file,
    "datasets": Sender._send_datasets,
    "model": Sender._send_model,
    "last": Sender._wait_for_last,
    "delete_last": Sender._delete_last,
    "close": Sender._close,
}
"""What sends an event, by its `call`; an event of another version that is not here is passed over."""


_KEYS: Mapping[str, Mapping[str, type]] = {
    "open": {"uri": str, "experiment": str, "uid": str, "folder": str, "tags": dict, "timestamp": int},
    "metrics": {"metrics": dict, "timestamp": int, "step": int},
    "params": {"params": dict},
    "tags": {"tags": dict},
    "text": {"text": str, "name": str},
    "table": {"columns": dict, "name": str},
    "file": {"path": str},
    "datasets": {"datasets": list},
    "model": {"weights": str},
    "last": {"snapshot": str},
    "close": {"status": str, "timestamp": int},
}
"""The keys that an event of each `call` has, with their types."""


def _check(event: Mapping[str, Any]) -> None:
    """Check that an event is one that a tracker wrote, for a spool may be damaged, or a stranger's.

    Raises:
        _NotSentError: a key is missing or has another type.
    """
    for key, kind in _KEYS.get(str(event["call"]), {}).items():
        if not isinstance(event.get(key), kind):
            raise _NotSentError(f"its '{key}' is {event.get(key)!r:.60}")


def _count_batched(events: Sequence[tuple[Mapping[str, Any], int]]) -> int:
    """Return how many events, from the first on, can be sent in one call: only metrics can."""
    size = 1
    while size < len(events) and events[0][0]["call"] == "metrics" == events[size][0]["call"]:
        size += 1
    return size


def _texts(tags: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key, str(value)[:TAG_LIMIT]) for key, value in tags.items()]


def _tags(tags: Mapping[str, Any]) -> list[RunTag]:
    return [RunTag(key, value) for key, value in _texts(tags)]


def _dataset(item: Mapping[str, Any]) -> DatasetInput:
    profile = json.dumps(item["facts"])
    source = json.dumps({"uri": item["source"]})
    dataset = Dataset(item["name"], item["fingerprint"][:12], "local", source, profile=profile)
    context = {"train": "training", "val": "validation"}.get(item["split"], item["split"])
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])
