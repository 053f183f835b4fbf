"""The table of a comparison of runs."""

from __future__ import annotations

from pathlib import Path

from speechtrain.report.comparison import ComparisonReport, as_csv, as_markdown, as_page, rows, warning_of_tests
from speechtrain.tracking.mlflow.client import experiment_id, open_client
from speechtrain.tracking.mlflow.location import local_uri
from speechtrain.tracking.mlflow.lookup import open_reader
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


def test_an_epoch_without_errors_has_a_place_on_the_logarithmic_axis(tmp_path: Path) -> None:
    uri = local_uri(tmp_path)
    client = open_client(uri)
    run = client.create_run(experiment_id(client, uri, "speechtrain"), run_name="tdnn").info.run_id
    for step, rate in enumerate((0.5, 0.02, 0.0)):
        client.log_metric(run, "val/wer", rate, step=step)
        client.log_metric(run, "val/cer", 0.0, step=step)
    reader = open_reader(uri, None)
    page = as_page(ComparisonReport([reader.run("tdnn")], ["val/wer"], {}, []), reader)

    assert '"y":[50.0,2.0,1.0]' in page
    assert '"customdata":[50.0,2.0,0.0]' in page
    assert "0 is drawn at 1" in page
    assert page.count('"type":"log"') - page.split("<body", 1)[0].count('"type":"log"') == 1, "nothing but zeros is linear"
