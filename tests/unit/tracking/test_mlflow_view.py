"""The list of runs in MLflow's UI: what an experiment holds of it, and the link that opens it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from speechtrain.errors import UserError
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


class _Answers(BaseHTTPRequestHandler):
    """Answers each request whose path ends in a key with (status, text), others as a server that is well."""

    answers: dict[str, tuple[int, str]]

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        name = self.path.partition("?")[0].rpartition("/")[2]
        status, text = self.answers.get(name, (200, "{}"))
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    do_POST = do_GET  # noqa: N815 # http.server's name

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def server(**answers: tuple[int, str]) -> Iterator[str]:
    """Address of a server that answers so."""
    served = ThreadingHTTPServer(("127.0.0.1", 0), type("Answers", (_Answers,), {"answers": answers}))
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()
    served.server_close()


def test_a_server_that_cannot_leave_test_runs_out_is_shown_with_all_runs() -> None:
    experiment = json.dumps({"experiment": {"experiment_id": "3", "name": "speechtrain", "lifecycle_stage": "active"}})
    refusal = json.dumps({"error_code": "INVALID_PARAMETER_VALUE", "message": "Invalid clause(s) in filter string: 'IS NULL'"})
    with server(**{"get-by-name": (200, experiment), "search": (400, refusal)}) as uri:
        assert link_to_runs(uri, "speechtrain", ADDRESS).endswith("/experiments/3/runs?workflowType=machine_learning&viewStateShareKey=all")


def test_a_server_that_wants_a_password_or_fails_is_told_with_what_to_do() -> None:
    with server(**{"get-by-name": (401, "You are not authenticated.")}) as uri, pytest.raises(UserError) as caught:
        link_to_runs(uri, "speechtrain", ADDRESS)
    assert f"MLflow at {uri} refuses to show the experiment 'speechtrain'" in str(caught.value)
    assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in str(caught.value)
    with server(**{"get-by-name": (404, "<html>no such page")}) as uri, pytest.raises(UserError, match="look whether MLflow's own page"):
        link_to_runs(uri, "speechtrain", ADDRESS)


@pytest.mark.parametrize("value", view_tags().values())
def test_a_view_fits_in_a_tag_and_puts_curves_before_single_values(value: str) -> None:
    state = json.loads(value)
    assert len(value) < 5000
    titles = [chart["displayName"] for chart in state["compareRunCharts"]]
    assert titles == ["loss", "word error rate", "character error rate", "learning rate"]
    sections = [section["name"] for section in state["compareRunSections"]]
    assert [section["name"] for section in state["compareRunSections"] if section["display"]] == ["training"]
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == {state["compareRunSections"][0]["uuid"]}
    assert {chart["scaleType"] for chart in state["compareRunCharts"]} == {"linear"}, (
        "a logarithmic axis has no place for epochs without errors"
    )
    assert "metrics.`values/best val wer`" in state["selectedColumns"]
    assert sections.index("val") < sections.index("test") < sections.index("values")
