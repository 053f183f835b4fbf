"""The list of runs in MLflow's UI: what an experiment holds of it, and the link that opens it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speechtrain.tracking.mlflow.client import experiment_id, link_to_runs, open_client
from speechtrain.tracking.mlflow.location import local_uri
from speechtrain.tracking.mlflow.view import TEST_RUN, view_tags

ADDRESS = "http://127.0.0.1:5000"


def test_an_experiment_gets_its_views_when_it_is_made_and_when_it_has_others(tmp_path: Path) -> None:
    uri = local_uri(tmp_path)
    client = open_client(uri)
    old = client.create_experiment("old")
    for name in ("new", "old"):
        tags = client.get_experiment(experiment_id(client, uri, name)).tags
        assert view_tags().items() <= tags.items()
    client.set_experiment_tag(old, next(iter(view_tags())), "{}")
    link_to_runs(uri, "old", ADDRESS)
    assert view_tags().items() <= client.get_experiment(old).tags.items()


def test_the_link_leaves_test_runs_out_once_there_are_others(tmp_path: Path) -> None:
    uri = local_uri(tmp_path)
    client = open_client(uri)
    experiment = experiment_id(client, uri, "speechtrain")
    client.create_run(experiment, tags={TEST_RUN: "dry_run"})
    runs = f"{ADDRESS}/#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey="
    assert link_to_runs(uri, "speechtrain", f"{ADDRESS}/") == f"{runs}all"
    real = client.create_run(experiment).info.run_id
    assert link_to_runs(uri, "speechtrain", ADDRESS) == f"{runs}runs"
    view = json.loads(view_tags()["mlflow.sharedViewState.runs"])
    assert [run.info.run_id for run in client.search_runs([experiment], view["searchFilter"])] == [real]
    assert link_to_runs(uri, "another", ADDRESS) == f"{ADDRESS}/#/experiments?workflowType=machine_learning"


@pytest.mark.parametrize("value", view_tags().values())
def test_a_view_fits_in_a_tag_and_puts_curves_before_single_values(value: str) -> None:
    state = json.loads(value)
    assert len(value) < 5000
    titles = [chart["displayName"] for chart in state["compareRunCharts"]]
    assert titles == ["loss", "word error rate", "character error rate", "learning rate"]
    sections = [section["name"] for section in state["compareRunSections"]]
    assert [section["name"] for section in state["compareRunSections"] if section["display"]] == ["training"]
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == {state["compareRunSections"][0]["uuid"]}
    assert sections.index("val") < sections.index("test") < sections.index("values")
