"""The tables of MLflow's SQLite database that are read without MLflow, whose import takes as long as that of PyTorch.

`tests/unit/tracking/test_mlflow_internals.py` says that MLflow has changed when a table is another. Where one cannot be read, MLflow is
asked.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

_RUNS = """
    SELECT run_uuid, runs.name FROM runs JOIN experiments USING (experiment_id)
    WHERE experiments.name = ? AND runs.lifecycle_stage = 'active' ORDER BY start_time DESC, run_uuid
"""
_STUDIES = """
    SELECT DISTINCT tags.value, tags.value FROM tags JOIN runs USING (run_uuid) JOIN experiments USING (experiment_id)
    WHERE experiments.name = ? AND runs.lifecycle_stage = 'active' AND tags.key = 'speechtrain.study'
"""


def has_run(database: Path, run_id: str) -> bool:
    """Return whether a database has a run of this id, in whichever experiment; False where it cannot be read."""
    return bool(_read(database, "SELECT run_uuid, name FROM runs WHERE run_uuid = ?", run_id))


def run_names(database: Path, experiment: str) -> dict[str, str] | None:
    """Return the name of each run of an experiment by its id, the newest first; None: the database cannot be read."""
    return _read(database, _RUNS, experiment)


def study_names(database: Path, experiment: str) -> list[str] | None:
    """Return the names of the sweeps with runs in an experiment; None: the database cannot be read."""
    names = _read(database, _STUDIES, experiment)
    return None if names is None else sorted(names)


def _read(database: Path, query: str, value: str) -> dict[str, str] | None:
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            return {str(key): str(name or "") for key, name in connection.execute(query, (value,))}
    except sqlite3.Error:
        return None
