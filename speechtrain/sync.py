"""`python -m speechtrain.sync`: send to MLflow what could not be sent while runs went on.

    python -m speechtrain.sync              everything below outputs/ and multirun/
    python -m speechtrain.sync outputs/X    what is below these folders

Runs that still go on are left to themselves. Exit codes: 0 all is sent, 1 something still waits, 2 a folder is not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from speechtrain.app.command import run_command
from speechtrain.console import console
from speechtrain.errors import UserError
from speechtrain.tracking.mlflow.spool import spools_below


def sync(folders: Sequence[Path]) -> int:
    """Send what waits below some folders, and return how many runs still wait.

    Raises:
        UserError: one of the folders is not there.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: there is no such folder\n    -> give the folder of a run, or one above it")
    spools = spools_below(folders)
    if not spools:
        console.print("nothing waits", markup=False)
        return 0
    from speechtrain.tracking.mlflow.leftovers import is_in_use, send_spool

    left = 0
    for spool in spools:
        folder = spool.path.parent.parent
        if is_in_use(spool):
            console.print(f"{folder}: goes on", markup=False)
            continue
        try:
            sent = send_spool(spool)
        except UserError as error:
            console.print(f"{folder}: MLflow refuses it: {error}", markup=False)
            sent = False
        left += not sent
        if sent:
            console.print(f"{folder}: sent", markup=False)
    return left


def run(arguments: list[str]) -> int:
    """Send what waits below the folders that are named, and return the exit code."""
    folders = [Path(item) for item in arguments] or [path for path in (Path("outputs"), Path("multirun")) if path.is_dir()]
    return 1 if sync(folders) else 0


if __name__ == "__main__":
    run_command(__doc__, run)
