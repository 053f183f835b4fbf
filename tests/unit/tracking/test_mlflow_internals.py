"""The tables of MLflow's database that are read without MLflow: a test fails with MLflow's name when they change."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import mlflow
import pytest

from speechtrain.errors import ConfigError, UserError
from speechtrain.tracking.mlflow.client import experiment_id, open_client
from speechtrain.tracking.mlflow.internals import has_run, relocate_artifacts, run_names, study_names
from speechtrain.tracking.mlflow.location import local_uri
from speechtrain.tracking.mlflow.lookup import open_reader


@pytest.fixture
def ids(tmp_path: Path) -> dict[str, str]:
    """A database in the current folder with three runs of one experiment, one of them deleted, and one of another; their ids by name."""
    client = open_client(local_uri(tmp_path))
    here, there = (client.create_experiment(name) for name in ("here", "there"))
    runs = {"first": here, "second": here, "gone": here, "other": there}
    tags = {"second": {"speechtrain.study": "lr-1b6cd7", "speechtrain.trial": "0"}}
    found = {
        name: client.create_run(experiment, start_time=number, run_name=name, tags=tags.get(name)).info.run_id
        for number, (name, experiment) in enumerate(runs.items(), start=1)
    }
    client.delete_run(found["gone"])
    return found


def test_mlflow_keeps_runs_and_studies_in_the_tables_that_are_read(tmp_path: Path, ids: dict[str, str]) -> None:
    database = tmp_path / "mlflow.db"
    changed = f"MLflow {mlflow.__version__} changed its tables, which speechtrain/tracking/mlflow/internals.py reads"
    names = run_names(database, "here")
    assert names is not None, changed
    assert list(names.items()) == [(ids["second"], "second"), (ids["first"], "first")], changed
    assert [has_run(database, each) for each in (ids["gone"], ids["other"], "zzz")] == [True, True, False], changed
    assert (study_names(database, "here"), study_names(database, "there")) == (["lr-1b6cd7"], []), changed


def test_another_database_is_left_to_mlflow(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database")
    assert run_names(tmp_path / "text.db", "here") is None
    assert study_names(tmp_path / "text.db", "here") is None


@pytest.mark.parametrize("name", ["zzz", "gone", "other"])
def test_a_run_that_is_not_there_is_refused_as_by_mlflow(name: str, ids: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as early:
        open_reader(None, "here", runs=[ids["first"], name])
    with pytest.raises(ConfigError) as late:
        open_reader(None, "here").run(name)
    assert str(early.value) == str(late.value)
    assert f"runs: there is no run '{name}' in experiment 'here'" in str(early.value)
    assert all(f"{ids[each][:8]}  {each}" in str(early.value) for each in ("first", "second"))


def test_a_study_that_is_not_there_is_refused_as_by_mlflow(ids: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as early:
        open_reader(None, "here", studies=["lr-1b6cd8"])
    with pytest.raises(ConfigError) as late:
        open_reader(None, "here").trials("lr-1b6cd8")
    assert str(early.value) == str(late.value)
    assert "did you mean 'lr-1b6cd7'" in str(early.value)


def test_runs_are_found_by_id_first_letters_and_name(ids: dict[str, str]) -> None:
    first = ids["first"]
    length = next(count for count in range(1, 33) if sum(each.startswith(first[:count]) for each in ids.values()) == 1)
    names = [first, first[:length], "first"]
    reader = open_reader(None, "here", runs=[*names, ids["other"]], studies=["lr-1b6cd7"])
    assert [reader.run(name).id for name in names] == [first] * 3
    assert reader.run(ids["other"]).name == "other"


def test_a_name_of_several_runs_is_answered_with_their_ids(ids: dict[str, str], tmp_path: Path) -> None:
    client = open_client(local_uri(tmp_path))
    again = client.create_run(client.get_experiment_by_name("here").experiment_id, run_name="first").info.run_id
    with pytest.raises(ConfigError, match="2 runs are called 'first'") as error:
        open_reader(None, "here", runs=["first"])
    assert again[:8] in str(error.value)


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mlflow\.db: there is no such database\n    -> set tracking_uri"):
        open_reader(None, "here", runs=["zzz"])
    assert not (tmp_path / "mlflow.db").exists()


def test_artifacts_of_a_project_that_was_moved_are_read_and_written_where_they_are_now(tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    client = open_client(local_uri(tmp_path / "before"))
    experiment = experiment_id(client, local_uri(tmp_path / "before"), "speechtrain")
    run = client.create_run(experiment).info.run_id
    client.log_text(run, "old", "old.txt")
    model = client.create_logged_model(experiment, "model", run)
    (tmp_path / "before").rename(tmp_path / "now")
    mlflow.tracking._tracking_service.utils._artifact_repos_cache.clear()  # as in another process
    client = open_client(local_uri(tmp_path / "now"))
    client.log_text(run, "new", "new.txt")
    changed = f"MLflow {mlflow.__version__} changed its tables, which speechtrain/tracking/mlflow/internals.py writes"
    assert Path(client.download_artifacts(run, "old.txt")).read_text() == "old", changed
    assert {item.path for item in client.list_artifacts(run)} == {"old.txt", "new.txt"}, changed
    assert client.get_logged_model(model.model_id).artifact_location.startswith((tmp_path / "now").as_uri()), changed
    assert not (tmp_path / "before").exists(), changed


def test_the_artifacts_of_a_moved_project_are_found_and_those_of_folders_with_a_like_name_stay(tmp_path: Path) -> None:
    client = open_client(local_uri(tmp_path))
    for name, place in (("moved", "a_b/mlartifacts"), ("like", "aXb/mlartifacts/0"), ("longer", "a_b/mlartifacts2")):
        client.create_run(client.create_experiment(name, artifact_location=f"file:///{place}"))
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        relocate_artifacts(database, tmp_path / "mlartifacts")
        rows = database.execute("SELECT artifact_location, artifact_uri FROM experiments JOIN runs USING (experiment_id)")
        places = [[str(each) for each in row] for row in rows]
    here = (tmp_path / "mlartifacts").as_uri()
    assert {location for location, _ in places} == {here, "file:///aXb/mlartifacts/0", "file:///a_b/mlartifacts2"}
    assert all(uri.startswith(f"{location}/") for location, uri in places)


@pytest.mark.parametrize("copied", [False, True])
def test_artifacts_that_lie_on_another_disk_on_purpose_stay_there_unless_they_are_here_too(copied: bool, tmp_path: Path) -> None:
    client = open_client(local_uri(tmp_path))
    other, here = (tmp_path / name / "mlartifacts" for name in ("disk", "."))
    run = client.create_run(client.create_experiment("large", artifact_location=other.as_uri())).info
    place = Path(run.artifact_uri.removeprefix("file://")).relative_to(other)
    (other / place).mkdir(parents=True)
    (here / place if copied else here).mkdir(parents=True)
    open_client(local_uri(tmp_path))
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        (uri,) = database.execute("SELECT artifact_uri FROM runs").fetchone()
    assert uri.startswith(((here if copied else other).resolve()).as_uri())
