"""The table of a comparison of runs."""

from __future__ import annotations

from speechtrain.report.comparison import ComparisonReport, as_csv, as_markdown, rows, warning_of_tests
from speechtrain.tracking.mlflow.reader import Record


def test_a_trial_of_a_sweep_is_named_with_its_number():
    trial = Record("a" * 32, "lr=0.002", "FINISHED", tags={"speechtrain.trial": "3"})
    report = ComparisonReport([trial, Record("b" * 32, "tdnn", "FINISHED")], [], {}, [])

    assert [row[1] for row in rows(report)[1]] == ["#3 lr=0.002", "tdnn"]
    assert "#3 lr=0.002" in as_csv(report)


def test_a_comparison_says_which_runs_only_tested_the_settings():
    real = Record("a" * 32, "tdnn", "FINISHED")
    tried = Record("b" * 32, "mlp", "FINISHED", tags={"speechtrain.test_run": "dry_run"})

    assert warning_of_tests(ComparisonReport([real], [], {}, [])) is None
    assert "bbbbbbbb (dry_run) only tested the settings" in as_markdown(ComparisonReport([real, tried], [], {}, []))
