"""The tables of MLflow's SQLite database that are read without MLflow, whose import takes as long as that of PyTorch.

`tests/unit/tracking/test_mlflow_internals.py` says that MLflow has changed when a table is another. Where one cannot be read, MLflow is
asked.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

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


_LOCATIONS = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}
"""Columns of the tables that hold the absolute place of artifacts, by table."""


def relocate_artifacts(connection: sqlite3.Connection, artifacts: Path) -> None:
    """Have a database that was moved, with the folder of artifacts beside it, name that folder in place of the one where it was.

    An experiment whose artifacts lie elsewhere on purpose stays as it is.

    Args:
        connection: the database.
        artifacts: where the folder is now, whose name it has kept.
    """
    here = artifacts.as_uri()
    try:
        places = [str(row[0]) for row in connection.execute("SELECT DISTINCT artifact_location FROM experiments")]
        for place in places:
            named_alike = place != here and place.startswith("file:") and place.endswith(f"/{artifacts.name}")
            if named_alike and _was_moved(connection, place, artifacts):
                for table, columns in _LOCATIONS.items():
                    for column in columns:
                        # not LIKE, for which an underscore in the name of a folder stands for any letter
                        within = f"{column} = ? OR substr({column}, 1, ?) = ?"
                        change = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {within}"  # noqa: S608 # names of ours
                        connection.execute(change, (here, len(place) + 1, place, len(place) + 1, f"{place}/"))
        connection.commit()
    except sqlite3.Error:  # a database of before or after this version of MLflow, or one that is made just now
        connection.rollback()


def _was_moved(connection: sqlite3.Connection, place: str, artifacts: Path) -> bool:
    """Return whether a folder of artifacts has what the database names in another place, or that place is no more."""
    names = connection.execute(
        "SELECT substr(artifact_uri, ?) FROM runs WHERE substr(artifact_uri, 1, ?) = ?", (len(place) + 2, len(place) + 1, f"{place}/")
    )
    return any((artifacts / unquote(str(row[0]))).exists() for row in names) or not Path(unquote(urlsplit(place).path)).is_dir()
