"""What an attempt at a trial leaves in its folder: checkpoints and records, which the next attempt takes over, or which are deleted."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from speechtrain.backends.checkpoint_files import FOLDER as CHECKPOINTS
from speechtrain.sweep.trial.handle import TrialHandle

log = logging.getLogger(__name__)

OUTPUT = "output.log"
"""File in a trial's folder with what it prints."""
FOLDER = "folder"
"""User attribute of a trial: the folder of its run, from which another attempt goes on."""
RUN_IDS = "run_ids"
"""User attribute of a trial: ids of the runs that it has begun last, by tracker, by which they are closed if its machine is gone."""
_OF_ONE_ATTEMPT = (".hydra", OUTPUT)
"""What stays in the folder of an attempt that has ended, as do files that the next one has as well: its log."""


def continue_earlier_attempt(trial: TrialHandle, folder: Path) -> Mapping[str, Any]:
    """Move what earlier attempts have left into the folder of this one, if there is a checkpoint, and repeat their reports to the pruner.

    Args:
        trial: the trial that is about to be trained.
        folder: folder of its run.

    Returns:
        The facts that the attempt with the checkpoint stored with its trial; empty if there is nothing to go on from.
    """
    trial.set_attribute(FOLDER, str(folder.absolute()))
    places = [(earlier, place) for earlier in trial.earlier_attempts() if (place := folder_of(earlier)) is not None]
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
    for epoch, value in earlier.intermediate_values.items():
        trial.report(value, epoch)
    trial.set_constraints(earlier.constraints)
    log.info("goes on from what trial %d has left", earlier.number)
    return earlier.user_attrs


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
