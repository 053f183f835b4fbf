"""Sends the spools that processes left behind when they died, and closes their runs."""

from __future__ import annotations

import logging
from pathlib import Path

import filelock
from mlflow import MlflowClient

from speechtrain.addresses import masked
from speechtrain.errors import UserError, first_line
from speechtrain.processes.identity import Process
from speechtrain.tracking.mlflow.runs import FOLDER, fail_run, process_of
from speechtrain.tracking.mlflow.sender import Sender
from speechtrain.tracking.mlflow.spool import Spool, spools_in

log = logging.getLogger(__name__)


def fail_dead_runs(client: MlflowClient, experiment_name: str) -> list[str]:
    """Close this machine's runs that are stored as running although their process is gone, after sending their spools; return their ids."""
    failed: list[str] = []
    experiment = client.get_experiment_by_name(experiment_name)
    if experiment is None:
        return failed
    host = Process.current().host.replace("'", "")
    for run in client.search_runs([experiment.experiment_id], f"attributes.status = 'RUNNING' and tags.host = '{host}'", max_results=1000):
        process = process_of(run)
        if process is None or not process.is_local() or process.is_alive():
            continue
        send_remaining(Path(run.data.tags.get(FOLDER, "/nowhere")))
        fail_run(client, run.info.run_id, f"its process {process.pid} died", keep_reason=True)
        failed.append(str(run.info.run_id))
    return failed


def send_remaining(folder: Path, besides: Path | None = None) -> bool:
    """Send the spools that earlier processes left in a run's folder, and return whether all of it was sent.

    Args:
        folder: the run's folder.
        besides: a spool to leave out, because another sender sends it.
    """
    waiting = [spool for spool in spools_in(folder) if spool.path != besides and not is_in_use(spool)]
    return all(send_spool(spool) for spool in waiting)


def is_in_use(spool: Spool) -> bool:
    """Return whether the process that writes a spool is still alive."""
    first = next(spool.read(0), None)
    process = Process.from_dict(first[0].get("process")) if first is not None else None
    return process is not None and process.is_local() and process.is_alive()


def send_spool(spool: Spool) -> bool:
    """Send one spool to its end, close its run as failed if it was never closed, and return whether all of it was sent.

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
        sender.fail("its process died")
    except UserError:
        raise
    except Exception as error:
        log.warning("MLflow at %s does not answer (%s); what waits stays in %s", masked(sender.uri), first_line(error), spool.path)
        return False
    if not sender.run_id:
        spool.remove()
        return True
    return sender.finish()
