"""The table of a comparison of runs."""

from __future__ import annotations

from speechtrain.report.comparison import ComparisonReport, as_csv, rows
from speechtrain.tracking.mlflow.reader import Record


def test_a_trial_of_a_sweep_is_named_with_its_number():
    trial = Record("a" * 32, "lr=0.002", "FINISHED", tags={"speechtrain.trial": "3"})
    report = ComparisonReport([trial, Record("b" * 32, "tdnn", "FINISHED")], [], {}, [])

    assert [row[1] for row in rows(report)[1]] == ["#3 lr=0.002", "tdnn"]
    assert "#3 lr=0.002" in as_csv(report)
