"""`resume=` on the command line: goes on with the overrides and in the folder of the run that is resumed."""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from speechtrain.addresses import owner_key, whole
from speechtrain.config.experiment import SCALARS
from speechtrain.config.moved import with_present_name
from speechtrain.config.overrides import override_text, parser
from speechtrain.config.plain import is_printable
from speechtrain.config.stored import foreign_targets, read_yaml
from speechtrain.errors import ConfigError, Problem, UserError, first_line
from speechtrain.files import user_path, write_text
from speechtrain.tracking.mlflow.location import local_uri, tracking_address
from speechtrain.tracking.run_folder import RunNotFoundError, find_run, read_run_file

STORED = ".hydra"
"""Name of the folder, in that of a run, in which its config and its overrides are stored."""


_SIGNATURE = "signature"


def sign(folder: Path) -> None:
    """Note beside the overrides that are stored in a run's folder that this user gave them, so that `resume=` need not ask."""
    with suppress(OSError):
        if (signature := _signature(folder)) is not None:
            write_text(folder / STORED / _SIGNATURE, signature)


def _is_own(folder: Path) -> bool:
    """Return whether this user gave the overrides that are stored in a run's folder."""
    with suppress(OSError):
        signature = _signature(folder)
        return signature is not None and hmac.compare_digest(signature.encode(), (folder / STORED / _SIGNATURE).read_bytes())
    return False


def _signature(folder: Path) -> str | None:
    key = owner_key()
    return None if key is None else hmac.digest(key, (folder / STORED / "overrides.yaml").read_bytes(), "sha256").hex()


def is_sweep(arguments: list[str]) -> bool:
    """Return whether a command line asks for a sweep."""
    return any(item in ("-m", "--multirun", "experiment=rerun_best") or item.startswith("sweep=") for item in arguments)


def resume_arguments(arguments: list[str]) -> list[str]:
    """Return the command line with `resume=X` replaced by the overrides, the folder and the checkpoint of the run.

    A run that is not on this machine is fetched from MLflow, if it was trained with `tracking.mlflow.log_last=true`.

    Raises:
        ConfigError: there is no such run, or its overrides do what only the user's own may do, another user gave them, and `trust=true` is
            not among the arguments.
        UserError: its overrides cannot be read.
    """
    names = [item.partition("=")[2] for item in arguments if item.startswith("resume=")]
    if not names or names[-1] in ("", "null"):
        return arguments
    folder, checkpoint = _find_or_fetch(names[-1].strip("'\""), arguments)
    if "folds" in read_run_file(folder.parent):  # one fold is named, or was the last to begin: the cross-validation goes on
        folder, checkpoint = folder.parent, None
    resumed = f"resume={override_text(str(checkpoint or folder))}"
    if not (folder / STORED).is_dir():  # a checkpoint that was moved away from its run: a new run goes on from it
        return [*(item for item in arguments if not item.startswith("resume=")), resumed]
    flags, now = _divided([item for item in arguments if not item.startswith("resume=")])
    trusted = [item for item in now if item.startswith("trust=")][-1:] == ["trust=true"] or _is_own(folder)
    place = [resumed, f"hydra.run.dir={override_text(str(folder))}"]
    if not is_sweep(arguments):  # Hydra would write over what is stored, in several steps, and before the config is checked
        place.append("hydra.output_subdir=null")
    typed = {item.lstrip("+").partition("=")[0] for item in now}
    return [*flags, *_earlier_overrides(folder, typed, trust=trusted), *now, *place]


def _find_or_fetch(name: str, arguments: list[str]) -> tuple[Path, Path | None]:
    """Return the folder of a run, which may have to be fetched from MLflow, and the checkpoint to go on from; see `find_run`."""
    try:
        return find_run(name)
    except RunNotFoundError as error:
        if name == "last" or "/" in name or "\\" in name:
            raise
        from speechtrain.app.fetch import fetch_run

        return find_run(str(fetch_run(name, arguments, error, adapt=_adapt_overrides)))


def _adapt_overrides(folder: Path) -> None:
    """Leave out of overrides that were fetched the address of a server; the user's own stay signed."""
    from speechtrain.app.fetch import forget_server

    is_own = _is_own(folder)
    forget_server(folder)
    if is_own:
        sign(folder)


_WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd", "--info", "-i")
"""Options of Hydra's that have a value behind them."""


def _divided(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return the options of a command line, with their values, and the overrides."""
    flags: list[str] = []
    now: list[str] = []
    for before, item in zip(["", *arguments], arguments, strict=False):
        is_value = before in _WITH_VALUE and "=" not in item
        (flags if item.startswith("-") or is_value else now).append(item)
    return flags, now


def _earlier_overrides(folder: Path, typed: set[str], *, trust: bool) -> list[str]:
    """Return the overrides that the run in a folder was begun with, with the present names of classes.

    Args:
        folder: the run's folder.
        typed: keys that are on the command line now, whose stored values have no effect.
        trust: whether the stored overrides may do all that the user's own may.

    Raises:
        ConfigError: they name classes of other packages, options outside of the config groups, keys of Hydra, servers or
            places to write to, or begin a sweep, and are not trusted.
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
    kept = [item for item in stored if item.lstrip("+~ ").partition("=")[0].strip() not in _NOT_TAKEN]
    overrides = [with_present_name(whole(item)) for item in kept]
    problems = [] if trust else [problem for item in overrides for problem in _untrusted(item, str(file))]
    if not trust:  # an address that was masked, and is known here, is the user's own
        masked_here = {whole(item) for item in kept if whole(item) != item}
        problems += [each for item in overrides if item not in masked_here for each in _reaches_out(item, folder, typed)]
    if problems:
        raise ConfigError(problems)
    return overrides


_NOT_TAKEN = ("resume", "trust")
"""Keys that the user sets when a run is resumed; a run itself says nothing about whether it is trusted."""

_TRUST = "trust=true takes it, if you trust the run"


def _untrusted(item: str, place: str) -> Iterator[Problem]:
    """Yield what an override of a run that is resumed may not do unless it is trusted."""
    fix = _TRUST
    try:
        override = parser.parse_override(item)
    except HydraException:
        yield Problem("resume", f"in {place} is {item!r:.200}, which is no override", fix)
        return
    key = override.key_or_group
    if key.partition("/")[0].partition(".")[0] == "hydra" or _package(override).partition(".")[0] == "hydra":
        yield Problem(key, f"in {place} is {item!r:.200}, a key of Hydra's own, which runs do not store there", fix)
    elif "${" in item and ":" in item:
        yield Problem(key, f"in {place} is {item!r:.200}, which is resolved with what is on this machine", fix)
    elif _leaves_the_groups(override):
        yield Problem(key, f"in {place} is {item!r:.200}, an option outside of the config groups", fix)
    elif _begins_a_sweep(override):
        yield Problem(key, f"in {place} is {item!r:.200}, which begins a sweep", fix)
    for path, target in foreign_targets(_as_config(override)):
        yield Problem(path, f"in {place} is {target}, which is not of this package", fix)


def _reaches_out(item: str, folder: Path, typed: set[str]) -> Iterator[Problem]:
    """Yield the servers to which an override of a run that is resumed sends, and the places outside of its folder to which it writes."""
    try:
        override = parser.parse_override(item)
    except HydraException:  # which `_untrusted` yields
        return
    for path, value in _leaves(_as_config(override)):
        name = path.rpartition(".")[2]
        if value is None or path in typed:
            continue
        if name in _SERVERS and tracking_address(str(value)) != local_uri(Path.cwd()):
            yield Problem(path, f"in {folder / STORED} is {value!r:.200}, to which the run would be sent", f"type it again, or {_TRUST}")
        elif name in _WRITTEN or (name == "folder" and path.startswith("tracking.")):
            base = folder if name == "folder" else Path.cwd()
            if not (base / user_path(str(value))).resolve().is_relative_to(folder.resolve()):
                message = f"in {folder / STORED} is {value!r:.200}, a place outside of the run's folder that would be written to"
                yield Problem(path, message, f"type it again, or {_TRUST}")


_SERVERS = ("tracking_uri", "registry_uri", "entity")
"""Names of keys that say to which server, or to whose account, a run is sent."""
_WRITTEN = ("output_dir", "save_to", "cache_dir")
"""Names of keys that say where files are written."""


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, value) of all values of nested mappings and lists that are neither."""
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _begins_a_sweep(override: Override) -> bool:
    """Return whether an override begins a sweep, as several values and the options that are made for sweeps do."""
    if override.is_sweep_override():
        return True
    value: Any = override.value()
    options = value if isinstance(value, list) else [value]
    group = override.key_or_group.partition(".")[0]
    return (group == "sweep" and options not in ([None], [])) or (group == "experiment" and any(map(_is_for_sweeps, options)))


def _is_for_sweeps(experiment: object) -> bool:
    """Return whether an option of the group `experiment` is one that begins a sweep."""
    return str(experiment).removesuffix(".yaml") == "rerun_best"


def _leaves_the_groups(override: Override) -> bool:
    """Return whether an override chooses an option by a path that leads out of the folders of options."""
    if "." in override.key_or_group or (override.key_or_group in SCALARS and override.package is None):
        return False
    value: Any = override.value()
    options = value if isinstance(value, list) else [value]
    return any(isinstance(option, str) and (option.startswith("/") or ".." in PurePosixPath(option).parts) for option in options)


def _package(override: Override) -> str:
    """Return the package that an override states, from the root of the config; empty if it states none."""
    return (override.package or "").removeprefix("_global_.")


def _as_config(override: Override) -> dict[str, Any]:
    """Return what an override sets as nested mappings; its package is where the option of a group is put, if it is given."""
    value: Any = override.value()
    for part in reversed((_package(override) or override.key_or_group.replace("/", ".")).split(".")):
        value = {part: value}
    return dict(value)
