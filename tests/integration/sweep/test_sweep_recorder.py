"""A sweep in MLflow: one run with its trials under it, truthful statuses, a report that can be read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from conftest import TINY
from mlflow import MlflowClient

from speechtrain.tracking.mlflow.client import open_client

pytestmark = pytest.mark.long

TRIALS = [
    *(item for item in TINY if not item.startswith(("tracking", "report"))),
    "model=mlp",
    "trainer.epochs=4",
    "hydra.sweeper.study_name=study",
]
PRUNED = ["hydra/sweeper/pruner=threshold", "hydra.sweeper.pruner.upper=4.0", "hydra.sweeper.report=val/loss"]


def runs_of(folder):
    """(the sweep's own runs, its trials' by number and attempt)."""
    found = open_client(f"sqlite:///{folder / 'mlflow.db'}").search_runs(["1"], order_by=["attributes.start_time"])
    sweeps = [run for run in found if run.data.tags.get("speechtrain.kind") == "sweep"]
    return sweeps, {run.data.tags["speechtrain.trial"]: run for run in found if "speechtrain.trial" in run.data.tags}


@pytest.mark.slow
def test_a_sweep_is_one_run_that_holds_its_trials_its_report_and_what_it_cost(command, tmp_path):
    rates = "optimizer.lr=0.003,1e-12,1e30"  # learns, learns nothing, fails
    settings = ["hydra.sweeper.retries=1", "trainer.gradient_clip_val=null", "hydra.sweeper.max_failure_rate=1"]
    done = command("-m", *TRIALS, rates, *PRUNED, *settings)
    assert done.returncode == 0, done.stdout + done.stderr

    (sweep,), trials = runs_of(tmp_path)
    assert (sweep.info.status, sweep.info.run_name) == ("FINISHED", "study")
    assert {run.data.tags["mlflow.parentRunId"] for run in trials.values()} == {sweep.info.run_id}
    by_rate = {run.data.params["optimizer.lr"]: run for run in trials.values()}
    assert {rate: run.info.status for rate, run in by_rate.items()} == {"0.003": "FINISHED", "1e-12": "KILLED", "1e+30": "FAILED"}
    assert by_rate["0.003"].info.run_name == "lr=0.003"
    assert "NonFiniteLossError" in by_rate["1e+30"].data.tags["error"]
    assert "val/loss" in by_rate["1e-12"].data.tags["pruned"]
    retried = by_rate["1e+30"].data.tags  # the run of both attempts, for the second went on from the checkpoint of the first
    assert int(retried["speechtrain.trial"]) > int(retried["speechtrain.retry_of"])

    metrics = sweep.data.metrics
    assert (metrics["trials/complete"], metrics["trials/pruned"], metrics["trials/failed"]) == (1, 1, 2)
    assert metrics["cost/cpu_h"] > 0
    assert metrics["cost/audio_h"] > 0
    assert metrics["cost/saved_by_pruning_h"] > 0
    assert metrics["best/val/cer"] == by_rate["0.003"].data.metrics["values/best val cer"]
    assert sweep.data.params["sweeper.retries"] == "1"
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    kept = {item.path for item in client.list_artifacts(sweep.info.run_id)}
    assert {"sweep_report.html", "trials.csv", "trials.json", "optimization_results.yaml", "experiment", "space.json"} <= kept
    page = Path(client.download_artifacts(sweep.info.run_id, "sweep_report.html")).read_text()
    for shown in ("History", "Intermediate values", "Timeline", "saved by pruning", "NonFiniteLossError"):
        assert shown in page, shown
    assert not re.search(r'<(script|link|img)[^>]+="http', page)
    best = Path(client.download_artifacts(sweep.info.run_id, "experiment/best.yaml")).read_text()
    assert yaml.safe_load(best)["optimizer"]["lr"] == 0.003
    table = json.loads(Path(client.download_artifacts(sweep.info.run_id, "trials.json")).read_text())
    assert len(table["data"]) == 4

    more = command("-m", *TRIALS, rates, *PRUNED, *settings)
    assert "nothing was left to do" in more.stdout
    sweeps, again = runs_of(tmp_path)
    assert [run.info.run_id for run in sweeps] == [sweep.info.run_id]  # the same study goes on in the same run
    assert len(again) == len(trials)


def test_a_sweep_without_any_result_is_failed_and_says_why(command, tmp_path):
    done = command("-m", *TRIALS, "optimizer.lr=1e30", "hydra.sweeper.retries=0", "trainer.gradient_clip_val=null")
    assert done.returncode == 1, done.stdout
    (sweep,), trials = runs_of(tmp_path)
    assert sweep.info.status == "FAILED"
    assert "no trial of the study" in sweep.data.tags["error"]
    assert [run.info.status for run in trials.values()] == ["FAILED"]
