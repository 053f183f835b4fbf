"""Copies runs from another machine's database, as sweeps over SSH do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mlflow.entities import Metric, Param

from speechtrain.files import sqlite_address
from speechtrain.tracking.mlflow.client import ARTIFACTS, experiment_id, open_client
from speechtrain.tracking.mlflow.runs import PROCESS
from speechtrain.tracking.mlflow.sender import BATCH_LIMIT


def import_run(
    database: Path,
    run_id: str,
    uri: str,
    experiment: str,
    *,
    earlier_copy: str | None = None,
    tags: Mapping[str, str] | None = None,
    name: str = "",
) -> str:
    """Copy a run from another machine's database and its artifacts to the server or database at `uri`, and return the id of the copy.

    Args:
        database: the SQLite file; artifacts are read from `mlartifacts` in its folder.
        run_id: the run in that database.
        uri: tracking URI that the run is copied to.
        experiment: name of the experiment there.
        earlier_copy: id of an earlier copy, which is brought up to date; None makes a new one.
        tags: tags for the copy, besides those of the run.
        name: name of the copy; empty takes the run's.
    """
    source = open_client(sqlite_address(database))
    client = open_client(uri)
    run = source.get_run(run_id)
    if earlier_copy is None:
        copied_tags = {
            key: value for key, value in run.data.tags.items() if key not in ("mlflow.log-model.history", "mlflow.runName", PROCESS)
        }
        earlier_copy = client.create_run(
            experiment_id(client, uri, experiment), run.info.start_time, {**copied_tags, **(tags or {})}, name or run.info.run_name
        ).info.run_id
    copied = client.get_run(earlier_copy)
    params = [Param(key, value) for key, value in run.data.params.items() if key not in copied.data.params]
    for start in range(0, len(params), BATCH_LIMIT):
        client.log_batch(earlier_copy, params=params[start : start + BATCH_LIMIT])
    sent = {(metric.key, metric.step) for name in copied.data.metrics for metric in client.get_metric_history(earlier_copy, name)}
    metrics = [metric for name in run.data.metrics for metric in source.get_metric_history(run_id, name)]
    fresh = [Metric(metric.key, metric.value, metric.timestamp, metric.step) for metric in metrics if (metric.key, metric.step) not in sent]
    for start in range(0, len(fresh), BATCH_LIMIT):
        client.log_batch(earlier_copy, metrics=fresh[start : start + BATCH_LIMIT])
    for folder in (database.parent / ARTIFACTS).glob(f"**/{run_id}/artifacts"):
        client.log_artifacts(earlier_copy, str(folder))
    client.set_terminated(earlier_copy, run.info.status, run.info.end_time)
    return str(earlier_copy)
