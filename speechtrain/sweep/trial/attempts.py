"""What an attempt at a trial leaves in its folder: checkpoints and records, which the next attempt takes over, or which are deleted."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any

from omegaconf import DictConfig
from optuna.trial import FrozenTrial

from speechtrain.backends.checkpoint_files import FOLDER as CHECKPOINTS
from speechtrain.errors import ConfigError, RunError, UserError
from speechtrain.sweep.trial.handle import TrialHandle
from speechtrain.tracking.mlflow.fetched_runs import downloaded
from speechtrain.tracking.mlflow.resume_files import arrange

log = logging.getLogger(__name__)

OUTPUT = "output.log"
"""File in a trial's folder with what it prints."""
FOLDER = "folder"
"""User attribute of a trial: the folder of its run, from which another attempt goes on."""
RUN_IDS = "run_ids"
"""User attribute of a trial: ids of the runs that it has begun last, by tracker, by which they are closed if its machine is gone."""
_OF_ONE_ATTEMPT = (".hydra", OUTPUT)
"""What stays in the folder of an attempt that has ended, as do files that the next one has as well: its log."""


Fetch = Callable[[str, Path], None]
"""Fetches into a folder what the run of an id goes on from; raises UserError where there is nothing, or it cannot be had."""


def continue_earlier_attempt(trial: TrialHandle, folder: Path, fetch: Fetch | None = None) -> Mapping[str, Any]:
    """Move what earlier attempts have left into the folder of this one, if there is a checkpoint, and repeat their reports to the pruner.

    Args:
        trial: the trial that is about to be trained.
        folder: folder of its run.
        fetch: fetches what an attempt on another machine has left; None: nothing of it can be had here.

    Returns:
        The facts that the attempt with the checkpoint stored with its trial; empty if there is nothing to go on from.
    """
    trial.set_attribute(FOLDER, str(folder.absolute()))
    places = [(earlier, place) for earlier in trial.earlier_attempts() if (place := folder_of(earlier)) is not None]
    for earlier, place in places:  # the latest first
        if any(place.glob(f"**/{CHECKPOINTS}/*")):
            break
        run_id = earlier.user_attrs.get(RUN_IDS, {}).get("mlflow")
        if fetch is None or run_id is None:
            continue
        try:
            fetch(str(run_id), folder)
        except (UserError, RunError) as error:
            reason = error.problems[0].message if isinstance(error, ConfigError) else error
            log.log(
                logging.DEBUG if place.is_dir() else logging.WARNING,
                "what trial %d has left cannot be fetched: %s",
                earlier.number,
                reason,
            )
            continue
        log.info("goes on from what MLflow has of trial %d", earlier.number)
        return _taken_over(trial, earlier)
    attempts = [(earlier, place) for earlier, place in places if place.is_dir()]
    if places and not attempts:
        log.warning("what trial %d has left is on another machine (%s): it begins anew", places[0][0].number, places[0][1])
    with_checkpoints = [index for index, (_, place) in enumerate(attempts) if any(place.glob(f"**/{CHECKPOINTS}/*"))]
    if not with_checkpoints:
        return {}
    newest = with_checkpoints[0]
    earlier = attempts[newest][0]
    for index in [
        *with_checkpoints,
        *range(newest),
    ]:  # one that was killed while it moved files has some of them
        _move(attempts[index][1], folder)
    log.info("goes on from what trial %d has left", earlier.number)
    return _taken_over(trial, earlier)


def _taken_over(trial: TrialHandle, earlier: FrozenTrial) -> Mapping[str, Any]:
    """Repeat what an attempt has reported to the pruner, and return the facts that it stored with its trial."""
    for epoch, value in earlier.intermediate_values.items():
        trial.report(value, epoch)
    trial.set_constraints(earlier.constraints)
    return earlier.user_attrs


def fetching(cfg: DictConfig, *, seeds: bool) -> Fetch | None:
    """Return what fetches from MLflow what an attempt has left; None: attempts keep nothing there.

    Args:
        cfg: config of the trial.
        seeds: whether it is trained with several seeds, each in a folder of its own.
    """
    node = cfg.tracking.get("mlflow")
    if node is None or not node.get("log_last"):
        return None

    def fetch(run_id: str, folder: Path) -> None:
        with downloaded(run_id, node.tracking_uri, node.experiment, folder, key="retry") as (run, files):
            name = PurePath(run.folder).name
            arrange(run, files, folder / name if seeds and _OF_A_SEED.fullmatch(name) else folder)

    return fetch


_OF_A_SEED = re.compile(r"seed_\d+")


def folder_of(trial: FrozenTrial) -> Path | None:
    """Return the folder of a trial's run; None: its job has not begun."""
    folder = trial.user_attrs.get(FOLDER)
    return None if folder is None else Path(folder)


def _move(place: Path, folder: Path) -> None:
    """Move what an attempt has left into the folder of the next one, checkpoints last: by them a later attempt knows where to look."""
    for item in sorted(place.iterdir(), key=lambda item: item.name == CHECKPOINTS):
        if item.name not in _OF_ONE_ATTEMPT and not (folder / item.name).exists():
            shutil.move(item, folder / item.name)


def delete_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of all runs in a trial's folder."""
    for checkpoints in folder.glob(f"**/{CHECKPOINTS}"):
        shutil.rmtree(checkpoints, ignore_errors=True)
