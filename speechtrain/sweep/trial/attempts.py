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
from speechtrain.config.build import build
from speechtrain.errors import Problem, RunError, UserError
from speechtrain.sweep.trial.handle import TrialHandle
from speechtrain.tracking.base import NothingKeptError

log = logging.getLogger(__name__)

OUTPUT = "output.log"
"""File in a trial's folder with what it prints."""
FOLDER = "folder"
"""User attribute of a trial: the folder of its run, from which another attempt goes on."""
RUN_IDS = "run_ids"
"""User attribute of a trial: ids of the runs that it has begun last, by tracker, by which they are closed if its machine is gone."""
_OF_ONE_ATTEMPT = (".hydra", OUTPUT)
"""What stays in the folder of an attempt that has ended, as do files that the next one has as well: its log."""


Fetch = Callable[[Mapping[str, str], Path], None]
"""Fetches into a folder what a run goes on from, by its ids in the trackers.

Raises NothingKeptError where there is nothing, any other UserError where it cannot be had although it may be there.
"""


def continue_earlier_attempt(trial: TrialHandle, folder: Path, fetch: Fetch | None = None) -> Mapping[str, Any]:
    """Move what earlier attempts have left into the folder of this one, if there is a checkpoint, and repeat their reports to the pruner.

    Args:
        trial: the trial that is about to be trained.
        folder: folder of its run.
        fetch: fetches what an attempt on another machine has left; None: nothing of it can be had here.

    Returns:
        The facts that the attempt with the checkpoint stored with its trial; empty if there is nothing to go on from.

    Raises:
        RunError: there may be something, which cannot be fetched now; the trial is not begun anew for that.
    """
    trial.set_attribute(FOLDER, str(folder.absolute()))
    places = [(earlier, place) for earlier in trial.earlier_attempts() if (place := folder_of(earlier)) is not None]
    for earlier, place in places:  # the latest first
        if any(place.glob(f"**/{CHECKPOINTS}/*")):
            break
        run_ids = earlier.user_attrs.get(RUN_IDS)
        if fetch is None or not run_ids:
            continue
        try:
            fetch(run_ids, folder)
        except NothingKeptError as error:
            level = logging.DEBUG if place.is_dir() else logging.WARNING
            log.log(level, "trial %d has left nothing to go on from: %s", earlier.number, error.problems[0].message)
            continue
        except UserError as error:  # no mistake of the trial's, so that it may be tried again
            raise RunError(f"what trial {earlier.number} has left is not lost, but cannot be fetched: {error}") from error
        log.info("goes on from what trackers have of trial %d", earlier.number)
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
    """Return what fetches from the trackers what an attempt has left; None: attempts keep nothing there.

    Args:
        cfg: config of the trial.
        seeds: whether it is trained with several seeds, each in a folder of its own.
    """
    keeping = {str(name): node for name, node in cfg.tracking.items() if node.get("log_last")}
    if not keeping:
        return None

    def part(trained_in: str) -> str:
        name = PurePath(trained_in).name
        return name if seeds and _OF_A_SEED.fullmatch(name) else ""

    def fetch(run_ids: Mapping[str, str], folder: Path) -> None:
        nothing = NothingKeptError([Problem("retry", f"no tracker keeps anything of the runs {dict(run_ids)}")])
        for name in keeping.keys() & run_ids.keys():
            try:
                build("tracking", keeping[name]).fetch_last(str(run_ids[name]), folder, part)
            except NothingKeptError as error:
                nothing = error
            else:
                return
        raise nothing

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
