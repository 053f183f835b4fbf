"""`speechtrain compare`: which of its arguments name runs, and which value of a metric is a run's last."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechtrain import compare
from speechtrain.errors import ConfigError
from speechtrain.tracking.mlflow.client import experiment_id, open_client
from speechtrain.tracking.mlflow.location import local_uri
from speechtrain.tracking.mlflow.lookup import open_reader


def test_runs_are_compared_by_names_that_hold_what_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    uri = local_uri(tmp_path)
    client = open_client(uri)
    experiment = experiment_id(client, uri, "speechtrain")
    names = ["tdnn-digits lr=0.003 12-01 14:05", "lr=0.01"]
    for number, name in enumerate(names):
        run = client.create_run(experiment, run_name=name)
        for metric in (f"values/best val wer {number}", "zeta"):
            client.log_metric(run.info.run_id, metric, 0.25)
    assert compare.run([*names, "sort=zeta", "top=2"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in names)
    with pytest.raises(ConfigError, match="did you mean 'study'"):
        compare.run(["stduy=lr", *names])
    with pytest.raises(ConfigError, match="there is no run 'nothing=1'"):
        compare.run(["nothing=1"])

    resumed = client.create_run(experiment, run_name="resumed").info.run_id
    for name, value in (("values/best val wer", 0.125), ("best/val/wer", 0.5), ("values/best epoch", 9), ("best/epoch", 3)):
        client.log_metric(resumed, name, value)
    assert open_reader(uri, None).run("resumed").metrics == {"best/val/wer": 0.125, "best/epoch": 9}
