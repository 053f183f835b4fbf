"""The tags by which MLflow's runs are found again, which process writes a run, and the end of one whose process died."""

from __future__ import annotations

import json

from mlflow import MlflowClient
from mlflow.entities import Run

from speechtrain.processes.identity import Process

UID, PROCESS, FOLDER = (f"speechtrain.{name}" for name in ("uid", "process", "folder"))
"""Tags of a run: a name known before MLflow gives it an id, the process that writes it, its folder."""

TAG_LIMIT = 8000


def find_run(client: MlflowClient, experiment: str, uid: str) -> str | None:
    """Return the id of the run with this value of the tag `UID`, or None."""
    runs = client.search_runs([experiment], f"tags.`{UID}` = '{uid}'", max_results=1)
    return str(runs[0].info.run_id) if runs else None


def fail_run(client: MlflowClient, run_id: str, reason: str, *, keep_reason: bool = False) -> None:
    """Close a run whose process died as failed; a run that has ended in another way stays as it is.

    Args:
        client: the client of its server.
        run_id: the run.
        reason: why, for the tag `error`.
        keep_reason: whether an `error` that the run has already stays.
    """
    run = client.get_run(run_id)
    if run.info.status not in ("RUNNING", "FAILED"):
        return
    if not (keep_reason and "error" in run.data.tags):
        client.set_tag(run_id, "error", reason[:TAG_LIMIT])
    if run.info.status == "RUNNING":
        client.set_terminated(run_id, "FAILED")


def process_of(run: Run) -> Process | None:
    """Return the process that writes a run, or None if its tag cannot be read."""
    try:
        return Process.from_dict(json.loads(run.data.tags.get(PROCESS, "null")))
    except (ValueError, KeyError, TypeError):
        return None
