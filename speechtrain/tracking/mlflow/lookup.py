"""Finds runs by the names that users type. A local database is read without MLflow, so that a wrong name is answered at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from speechtrain.addresses import masked
from speechtrain.errors import ConfigError, Problem, UserError, did_you_mean
from speechtrain.files import is_file, is_folder, sqlite_file
from speechtrain.tracking.mlflow.internals import has_run, run_names, study_names
from speechtrain.tracking.mlflow.location import experiment_name, noted_address, stored_address, tracking_address
from speechtrain.tracking.run_folder import RunNotFoundError, find_run, places_of, read_run_file

if TYPE_CHECKING:
    from speechtrain.tracking.mlflow.reader import Reader


def open_reader(
    tracking_uri: str | None,
    experiment: str | None,
    *,
    runs: Sequence[str] = (),
    studies: Sequence[str] = (),
    key: str = "runs",
    uri_key: str = "tracking_uri",
) -> Reader:
    """Return a reader of a server or a database, which has these runs and studies if it is a local one.

    Args:
        tracking_uri: the server or database, see `location.tracking_address`; None takes the one in which this user's runs were tracked
            that are named by their folders or as `last`, if it is one.
        experiment: the experiment in which names are looked for, see `location.experiment_name`.
        runs: names of runs that will be read.
        studies: names of studies whose trials will be read.
        key: the key of the config that names the runs, for messages.
        uri_key: the key of the config that `tracking_uri` comes from, for messages.

    Raises:
        UserError: there is no such database, run or study, or the server cannot be reached.
    """
    place = _place_of(runs, key, uri_key) if tracking_uri is None else {}
    uri = tracking_address(place.get("tracking_uri", tracking_uri))
    experiment = experiment_name(place.get("experiment") if experiment is None else experiment)
    if uri.startswith("sqlite:///"):
        database = sqlite_file(uri)
        if not database.is_file():
            raise UserError(f"{database}: there is no such database\n    -> set {uri_key}, or change the folder")
        check_names(database, uri, experiment, runs, studies, key)
    from speechtrain.tracking.mlflow.reader import Reader

    return Reader(uri, experiment, key=uri_key)


def _place_of(runs: Sequence[str], key: str, uri_key: str) -> dict[str, str]:
    """Return the keys `tracking_uri` and `experiment` of the one place where runs of this user that have folders here were tracked."""
    found = []
    for name in runs:
        unquoted = name.strip("'\"")
        if unquoted == "last" or is_folder(Path(unquoted)):
            places, is_own = places_of(find_run(unquoted, key)[0])
            if is_own and "tracking_uri" in (place := places.get("mlflow", {})) and place not in found:
                found.append(place)
    return {**found[0], "tracking_uri": stored_address(noted_address(found[0]), uri_key)} if len(found) == 1 else {}


def check_names(database: Path, uri: str, experiment: str, runs: Sequence[str], studies: Sequence[str], key: str) -> None:
    """Check that a local database has runs and studies of these names; one that cannot be read is not asked.

    Raises:
        ConfigError: it has not.
    """
    wanted = [stored_id(name, key) for name in runs]
    if unknown := [name for name in wanted if not has_run(database, name)]:
        names = run_names(database, experiment)
        for name in unknown if names is not None else ():
            choose_run(name, names or {}, experiment, uri, key)
    known = study_names(database, experiment) if studies else None
    for study in studies if known is not None else ():
        if study not in (known or ()):
            raise no_study(study, known or (), uri)


def stored_id(name: str, key: str) -> str:
    """Return MLflow's id of a run that is named by its folder or as `last`; any other name unquoted.

    Args:
        name: the name.
        key: the key of the config that names the run, for messages.

    Raises:
        ConfigError: there is no last run.
    """
    unquoted = name.strip("'\"")
    if unquoted == "last" or is_file(Path(unquoted)) or is_folder(Path(unquoted)):
        folder, _ = find_run(unquoted, key)
        return str(read_run_file(folder).get("mlflow_run_id") or unquoted)
    return unquoted


def choose_run(wanted: str, names: Mapping[str, str], experiment: str, uri: str, key: str) -> str:
    """Return the id of the one run whose id begins so, that has this name, or whose name begins with this and a blank.

    Args:
        wanted: what was typed.
        names: names of the runs of an experiment by their ids, the newest first.
        experiment: the experiment, for messages.
        uri: where it was looked for, for messages.
        key: the key of the config that names the run, for messages.

    Raises:
        RunNotFoundError: there is none.
        ConfigError: there are several.
    """
    matches = [run for run in names if run.startswith(wanted)] or [run for run, name in names.items() if name == wanted]
    matches = matches or [run for run, name in names.items() if name.startswith(f"{wanted} ")]
    if len(matches) == 1:
        return matches[0]
    if matches:
        message = f"{len(matches)} runs are called '{wanted}', the newest first:{_listed(matches, names)}"
        raise ConfigError([Problem(key, message, "give one of these ids")])
    fix = "train something first, or set experiment and tracking_uri"
    if names:
        fix = f"give the id or the name of a run; the newest:{_listed(list(names), names)}"
    raise RunNotFoundError([Problem(key, f"there is no run '{wanted}' in experiment '{experiment}' of {masked(uri)}", fix)])


_LISTED = 6


def _listed(runs: Sequence[str], names: Mapping[str, str]) -> str:
    """Return ids and names of the first of some runs, a line each."""
    more = f"\n         and {len(runs) - _LISTED} more" if len(runs) > _LISTED else ""
    return "".join(f"\n         {run[:8]}  {names[run]}" for run in runs[:_LISTED]) + more


def no_study(study: str, known: Iterable[str], uri: str) -> ConfigError:
    """Return the error to raise where no trial of a study is found among those of the studies that are known."""
    return ConfigError([Problem("study", f"there are no trials of '{study}' in {masked(uri)}", did_you_mean(study, known))])
