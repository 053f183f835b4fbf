"""The file of MLflow's runs, which several processes have open at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from speechtrain.tracking.mlflow.client import open_client


def test_a_database_that_is_opened_once_more_loses_no_write_of_the_process_that_has_it_open(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = open_client(uri)
    run_id = client.create_run(client.create_experiment("one")).info.run_id
    open_client(uri)  # as where the run of a killed process is closed
    for status in ("RUNNING", "FINISHED"):  # another process is done with the database and removes the log of what is not in it yet
        ask = f"import sqlite3; print(sqlite3.connect({str(tmp_path / 'mlflow.db')!r}).execute('SELECT status FROM runs').fetchall())"
        assert subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout.strip() == f"[('{status}',)]"
        client.set_terminated(run_id)
