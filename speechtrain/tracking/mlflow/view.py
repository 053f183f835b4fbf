"""What the list of runs of an experiment shows in MLflow's UI: columns, filter and charts, as a view that the experiment holds.

MLflow keeps what its button "Share" makes of a list as a tag of the experiment, and a link names that tag. A run writes one such tag, so
that the link of `runs_link` opens the list as it is wanted here, on any server and in any browser. The pages of a single run have no such
tag: their charts stand in the order of their names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from urllib.parse import urlencode

from speechtrain.tracking.mlflow.names import name_behind_curves

REAL_RUNS, ALL_RUNS = "runs", "all"
"""Names of the two views in links: without runs that only test the settings, and with them."""

TEST_RUN = "speechtrain.test_run"
"""Tag of a run that tests the settings, with the kind of the test: dry_run, fast_dev_run, ..."""
ONLY_REAL = f"tags.`{TEST_RUN}` IS NULL"
"""MLflow's filter that leaves out such runs."""
ERROR = "error"
"""Tag of a run that failed: why."""

COLUMNS: Mapping[str, int | None] = {
    "attributes.`Run Name`": 215,
    "metrics.`test/wer`": 85,
    "metrics.`val/wer`": 85,
    "duration": 80,
    f"metrics.`{name_behind_curves('best/val/wer')}`": 95,
    f"metrics.`{name_behind_curves('best/val/cer')}`": 95,
    "metrics.`best/val/wer`": 95,
    "metrics.`test/accuracy`": 85,
    "metrics.`val/accuracy`": 85,
    f"tags.`{ERROR}`": 420,
}
"""Columns of the list in their order, with their widths in pixels; those of metrics that no run has are not shown, and a run's status is a
sign beside the time of its start. The best value of a sweep is a curve over its trials, that of a training stands behind the curves."""

CHARTS: Sequence[tuple[str, Sequence[str]]] = (
    ("loss", ("train/loss", "val/loss")),
    ("word error rate", ("val/wer",)),
    ("character error rate", ("val/cer",)),
    ("learning rate", ("train/lr",)),
)
"""The charts that come first, each with its metrics. Their axes are linear: MLflow's logarithmic ones leave out epochs without errors."""

_FIRST_SECTION = "training"
_NAMED_SECTIONS = ("val", "train", "test", "values", "trials", "best/val", "cost", "time")
"""Prefixes of metrics; their sections are closed below the first one, curves before single values."""
_OF_MLFLOW = ("Model metrics", "System metrics")
"""The sections that MLflow expects to be the last two."""


def runs_link(address: str, experiment_id: str, view: str = REAL_RUNS) -> str:
    """Return the address of the list of an experiment's runs in the UI of a server, in MLflow's view of model training.

    Args:
        address: the server, as `http://127.0.0.1:5000`.
        experiment_id: the experiment, which has the tags of `view_tags`.
        view: one of the two views.
    """
    query = urlencode({"workflowType": "machine_learning", "viewStateShareKey": view})
    return f"{address.rstrip('/')}/#/experiments/{experiment_id}/runs?{query}"


def view_tags() -> dict[str, str]:
    """Return the tags of an experiment that hold its views: word error rates in the list, and the curves of a training first."""
    return {f"mlflow.sharedViewState.{name}": _state(text) for name, text in ((REAL_RUNS, ONLY_REAL), (ALL_RUNS, ""))}


def _state(search: str) -> str:
    charts = [
        {
            "uuid": f"training-{number}",
            "type": "LINE",
            "displayName": title,
            "metricKey": metrics[0],
            "selectedMetricKeys": list(metrics),
            "metricSectionId": _FIRST_SECTION,
            "scaleType": "linear",
            "xAxisScaleType": "linear",
            "xAxisKey": "step",
            "yAxisKey": "metric",
            "selectedXAxisMetricKey": "",
            "lineSmoothness": 0,
            "useGlobalXaxisKey": True,
            "useGlobalLineSmoothing": True,
            "runsCountToCompare": 10,
            "deleted": False,
            "isGenerated": False,
        }
        for number, (title, metrics) in enumerate(CHARTS)
    ]
    names = (_FIRST_SECTION, *_NAMED_SECTIONS, *_OF_MLFLOW)
    state = {
        "searchFilter": search,
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "selectedColumns": [*COLUMNS, "attributes.`Duration`"],
        "columnOrder": list(COLUMNS),
        "columnWidths": COLUMNS,
        "hideEmptyCharts": True,
        "compareRunCharts": charts,
        "compareRunSections": [
            {"uuid": name, "name": name, "display": name == _FIRST_SECTION, "isReordered": name == _FIRST_SECTION} for name in names
        ],
        "isAccordionReordered": True,
    }
    return json.dumps(state, separators=(",", ":"))
