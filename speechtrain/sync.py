"""`python -m speechtrain.sync`: send to MLflow what could not be sent while runs went on.

    python -m speechtrain.sync              everything below outputs/ and multirun/
    python -m speechtrain.sync outputs/X    what is below these folders

Runs that still go on are left to themselves. Exit codes: 0 all is sent, 1 something still waits, 2 a folder is not there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from speechtrain.console import console, errors
from speechtrain.errors import UserError


def sync(folders: Sequence[Path]) -> int:
    """Send what waits below some folders; how many runs still wait.

    Raises:
        UserError: one of the folders is not there.
    """
    from speechtrain.tracking.sender import is_in_use, send_spool
    from speechtrain.tracking.spool import spools_below

    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: there is no such folder\n    -> give the folder of a run, or one above it")
    left = 0
    spools = spools_below(folders)
    for spool in spools:
        run = spool.path.parent.parent
        if is_in_use(spool):
            console.print(f"{run}: goes on", markup=False)
            continue
        try:
            sent = send_spool(spool)
        except UserError as error:
            console.print(f"{run}: MLflow refuses it: {error}", markup=False)
            sent = False
        left += not sent
        if sent:
            console.print(f"{run}: sent", markup=False)
    if not spools:
        console.print("nothing waits", markup=False)
    return left


def main() -> None:
    """The command line."""
    arguments = sys.argv[1:]
    if any(item in ("-h", "--help") for item in arguments):
        console.print((__doc__ or "").strip(), markup=False)
        return
    try:
        given = [Path(item) for item in arguments] or [path for path in (Path("outputs"), Path("multirun")) if path.is_dir()]
        sys.exit(1 if sync(given) else 0)
    except UserError as error:
        errors.print(str(error), style="red", markup=False)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
