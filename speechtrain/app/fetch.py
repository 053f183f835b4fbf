"""A run that is resumed where its folder is not: what it goes on from comes from MLflow, into a folder of its own."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path

import yaml
from hydra.errors import HydraException

from speechtrain.addresses import masked
from speechtrain.config.overrides import parser
from speechtrain.config.stored import read_yaml
from speechtrain.console import console
from speechtrain.errors import ConfigError, Problem, UserError, unwritable
from speechtrain.files import user_path, write_text
from speechtrain.tracking.mlflow.fetched_runs import can_be_asked, downloaded
from speechtrain.tracking.mlflow.location import named_address, place_of_run, tracking_address
from speechtrain.tracking.mlflow.resume_files import arrange
from speechtrain.tracking.run_folder import RUN_FOLDERS, RunNotFoundError, note_places

log = logging.getLogger(__name__)

_URI, _EXPERIMENT, _FOLDER = "tracking.mlflow.tracking_uri", "tracking.mlflow.experiment", "hydra.run.dir"
_PAUSES = (1.0, 4.0)
"""Seconds before each time that it is tried again to fetch a run."""


def fetch_run(name: str, arguments: list[str], not_here: RunNotFoundError, *, adapt: Callable[[Path], None]) -> Path:
    """Fetch what a run goes on from that is not on this machine, and return its new folder.

    Args:
        name: the run's id in MLflow, the first letters of it, or its name.
        arguments: what was typed; it may name the server, the experiment and the folder.
        not_here: the error of looking for the run on this machine.
        adapt: called with the folder before anything can find a run in it.

    Raises:
        RunNotFoundError: MLflow does not have it either.
        ConfigError: it has kept nothing, or its folder would be one in which there is something.
        UserError: what it has kept cannot be used, or the server does not answer.
    """
    uri, experiment, typed = (_typed(arguments, key) for key in (_URI, _EXPERIMENT, _FOLDER))
    if not can_be_asked(uri):
        raise not_here
    base = user_path(RUN_FOLDERS[0]).absolute()
    if typed is not None:
        base = user_path(typed).absolute().parent
    address = masked(tracking_address(uri))
    check = functools.partial(_check_free, base, None if typed is None else Path(typed).name, address)
    try:
        with downloaded(name, uri, experiment, base, pauses=_PAUSES, check=check) as (run, files):
            new, folder = files / "run", check(run.run_id)
            try:
                arrange(run, files, new, adapt=adapt)
                note_places(new, {"mlflow": place_of_run(named_address(uri), run.experiment)})
                new.rename(folder)
            except OSError as error:
                check(run.run_id)  # another process may have fetched it meanwhile
                raise unwritable(folder, error, _FOLDER) from error
    except RunNotFoundError as error:
        here, there = not_here.problems[0], error.problems[0]
        raise RunNotFoundError([Problem("resume", f"{here.message}; {there.message}", there.fix)]) from error
    if run.status == "RUNNING":
        log.warning("MLflow says that run %s is running: if it still is, on another machine, both will write to it", run.run_id)
    console.print(f"fetched     run {run.run_id} from {address}\n            {folder}", markup=False, highlight=False)
    return folder


def _check_free(base: Path, name: str | None, address: str, run_id: str) -> Path:
    """Return the new folder of a run, in which there is nothing.

    Args:
        base: the folder that it is to lie in.
        name: its name; None takes the run's id.
        address: the server that has the run, for messages.
        run_id: the run.

    Raises:
        ConfigError: there is something.
    """
    folder = base / (run_id if name is None else name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        fix = f"{_FOLDER}=... names another folder for the run, or move this one away"
        raise ConfigError([Problem("resume", f"{folder} is in the way of run {run_id}, which {address} has", fix)])
    return folder


def _typed(arguments: list[str], key: str) -> str | None:
    """Return the value of a key on the command line; None: it has none there."""
    values = [item for item in arguments if item.lstrip("+").partition("=")[0] == key]
    try:
        value = parser.parse_override(values[-1]).value() if values else None
    except HydraException:  # which is told when the config is composed
        return None
    return None if value is None else str(value)


def forget_server(folder: Path) -> None:
    """Leave out of the stored overrides the address that the run had for its server: it goes on at the one that it was fetched from."""
    file = folder / ".hydra" / "overrides.yaml"
    try:
        stored = read_yaml(file.read_text(encoding="utf-8"), str(file))
    except (OSError, ValueError, UserError):  # which is told when they are read
        return
    if isinstance(stored, list):
        kept = [item for item in stored if str(item).lstrip("+").partition("=")[0] != _URI]
        if kept != stored:
            write_text(file, yaml.safe_dump(kept, allow_unicode=True))
