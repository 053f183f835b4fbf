"""`resume=` on the command line: goes on with the overrides and in the folder of the run that is resumed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from speechtrain.addresses import whole
from speechtrain.config.experiment import SCALARS
from speechtrain.config.moved import with_present_name
from speechtrain.config.overrides import override_text, parser
from speechtrain.config.stored import foreign_targets, is_printable, read_yaml
from speechtrain.errors import ConfigError, Problem, UserError, first_line
from speechtrain.tracking.run_folder import find_run, read_run_file

STORED = ".hydra"
"""Name of the folder, in that of a run, in which its config and its overrides are stored."""


def is_sweep(arguments: list[str]) -> bool:
    """Return whether a command line asks for a sweep."""
    return any(item in ("-m", "--multirun", "experiment=rerun_best") or item.startswith("sweep=") for item in arguments)


def resume_arguments(arguments: list[str]) -> list[str]:
    """Return the command line with `resume=X` replaced by the overrides, the folder and the checkpoint of the run.

    Raises:
        ConfigError: there is no such run, or its overrides do what only the user's own may do and `trust=true` is not among the arguments.
        UserError: its overrides cannot be read.
    """
    names = [item.partition("=")[2] for item in arguments if item.startswith("resume=")]
    if not names or names[-1] in ("", "null"):
        return arguments
    folder, checkpoint = find_run(names[-1])
    if "folds" in read_run_file(folder.parent):  # one fold is named, or was the last to begin: the cross-validation goes on
        folder, checkpoint = folder.parent, None
    resumed = f"resume={override_text(str(checkpoint or folder))}"
    if not (folder / STORED).is_dir():  # a checkpoint that was moved away from its run: a new run goes on from it
        return [*(item for item in arguments if not item.startswith("resume=")), resumed]
    flags = [item for item in arguments if item.startswith("-")]
    now = [item for item in arguments if not item.startswith(("resume=", "-"))]
    trusted = [item for item in now if item.startswith("trust=")][-1:] == ["trust=true"]
    place = [resumed, f"hydra.run.dir={override_text(str(folder))}"]
    if not is_sweep(arguments):  # Hydra would write over what is stored, in several steps, and before the config is checked
        place.append("hydra.output_subdir=null")
    return [*flags, *_earlier_overrides(folder, trust=trusted), *now, *place]


def _earlier_overrides(folder: Path, *, trust: bool) -> list[str]:
    """Return the overrides that the run in a folder was begun with, with the present names of classes.

    Raises:
        ConfigError: they name classes of other packages, options outside of the config groups or keys of Hydra, and are not trusted.
        UserError: they cannot be read.
    """
    file = folder / STORED / "overrides.yaml"
    if not file.is_file():
        return []
    try:
        stored = read_yaml(file.read_text(encoding="utf-8"), str(file))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({first_line(error)})\n    -> give the folder of a run, or a checkpoint") from error
    if not isinstance(stored, list) or not all(isinstance(item, str) and is_printable(item) for item in stored):
        raise ConfigError([Problem("resume", f"{file} holds no list of overrides", "give the folder of a run, or a checkpoint")])
    overrides = [with_present_name(whole(item)) for item in stored if item.lstrip("+~ ").partition("=")[0].strip() not in _NOT_TAKEN]
    problems = [] if trust else [problem for item in overrides for problem in _untrusted(item, str(file))]
    if problems:
        raise ConfigError(problems)
    return overrides


_NOT_TAKEN = ("resume", "trust")
"""Keys that the user sets when a run is resumed; a run itself says nothing about whether it is trusted."""


def _untrusted(item: str, place: str) -> Iterator[Problem]:
    """Yield what an override of a run that is resumed may not do unless it is trusted."""
    fix = "trust=true takes it, if you trust the run"
    try:
        override = parser.parse_override(item)
    except HydraException:
        yield Problem("resume", f"in {place} is {item!r:.200}, which is no override", fix)
        return
    key = override.key_or_group
    if key.partition("/")[0].partition(".")[0] == "hydra" or (override.package or "").partition(".")[0] == "hydra":
        yield Problem(key, f"in {place} is {item!r:.200}, a key of Hydra's own, which runs do not store there", fix)
    elif "${" in item and ":" in item:
        yield Problem(key, f"in {place} is {item!r:.200}, which is resolved with what is on this machine", fix)
    elif _leaves_the_groups(override):
        yield Problem(key, f"in {place} is {item!r:.200}, an option outside of the config groups", fix)
    for path, target in foreign_targets(_as_config(key, override.package, override.value())):
        yield Problem(path, f"in {place} is {target}, which is not of this package", fix)


def _leaves_the_groups(override: Override) -> bool:
    """Return whether an override chooses an option by a path that leads out of the folders of options."""
    if "." in override.key_or_group or (override.key_or_group in SCALARS and override.package is None):
        return False
    value: Any = override.value()
    options = value if isinstance(value, list) else [value]
    return any(isinstance(option, str) and (option.startswith("/") or ".." in PurePosixPath(option).parts) for option in options)


def _as_config(key: str, package: str | None, value: Any) -> dict[str, Any]:
    """Return what an override sets as nested mappings; `package` is where the option of a group is put, if it is given."""
    for part in reversed((package or key.replace("/", ".")).split(".")):
        value = {part: value}
    return dict(value)
