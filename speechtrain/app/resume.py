"""`resume=` on the command line: goes on with the overrides and in the folder of the run that is resumed."""

from __future__ import annotations

import yaml

from speechtrain.config.moved import with_present_name
from speechtrain.config.overrides import override_text
from speechtrain.tracking.run_folder import find_run, read_run_file


def resume_arguments(arguments: list[str]) -> list[str]:
    """Return the command line with `resume=X` replaced by the overrides, the folder and the checkpoint of the run.

    Raises:
        ConfigError: there is no such run.
    """
    names = [item.partition("=")[2] for item in arguments if item.startswith("resume=")]
    if not names or names[-1] in ("", "null"):
        return arguments
    folder, checkpoint = find_run(names[-1])
    if "folds" in read_run_file(folder.parent):  # one fold is named, or was the last to begin: the cross-validation goes on
        folder, checkpoint = folder.parent, None
    resumed = f"resume={override_text(str(checkpoint or folder))}"
    if not (folder / ".hydra").is_dir():  # a checkpoint that was moved away from its run: a new run goes on from it
        return [*(item for item in arguments if not item.startswith("resume=")), resumed]
    earlier = folder / ".hydra" / "overrides.yaml"
    stored_overrides = yaml.safe_load(earlier.read_text(encoding="utf-8")) if earlier.is_file() else []
    flags = [item for item in arguments if item.startswith("-")]
    now = [item for item in arguments if not item.startswith(("resume=", "-"))]
    earlier_overrides = [with_present_name(str(item)) for item in stored_overrides if not str(item).startswith("resume=")]
    return [*flags, *earlier_overrides, *now, resumed, f"hydra.run.dir={override_text(str(folder))}"]
