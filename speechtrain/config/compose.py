"""Composing a config, and saying all that is wrong with one that does not compose."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from speechtrain.config import schema
from speechtrain.config.checks import find_node_problems, find_problems
from speechtrain.errors import ConfigError, Problem, did_you_mean

_PACKAGED = Path(__file__).resolve().parents[1] / "conf"
CONF_DIR = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).resolve().parents[2] / "conf"
"""The config directory: inside the package when installed from a wheel, beside it in a checkout."""

schema.register()

_GROUP_CHOICE = re.compile(rf"^({'|'.join(schema.SCHEMAS)}|experiment)=")


def compose(overrides: Sequence[str] = (), *, output_dir: str | Path | None = None) -> DictConfig:
    """Compose and check a config as the command line does.

    Args:
        overrides: as typed behind `python -m speechtrain`.
        output_dir: the run's folder; by default a new one under `outputs/`.

    Raises:
        ConfigError: with every problem found.
    """
    folder = Path(output_dir) if output_dir is not None else Path("outputs") / datetime.now().strftime("%Y-%m-%d/%H-%M-%S-%f")
    given = [*overrides, f"output_dir='{folder.absolute()}'"]
    try:
        cfg = _compose(given)
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(given, error) from None
    check(cfg)
    return cfg


def compose_command(name: str, overrides: Sequence[str]) -> DictConfig:
    """The config of one of the other commands, checked; words for a list key may stand without brackets.

    Raises:
        ConfigError: with what is wrong.
    """
    if GlobalHydra.instance().is_initialized():
        GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(CONF_DIR), version_base="1.3"):
        known = hydra_compose(name)
        given = [_as_list(item, known) for item in overrides]
        try:
            cfg = hydra_compose(name, overrides=[item for item in given if not item.startswith("tags.")])
            for item in (item for item in given if item.startswith("tags.")):
                key, _, value = item.removeprefix("tags.").partition("=")
                cfg.tags[key] = value
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError([_of_command(error, given, known)]) from None
    problems = find_node_problems(cfg, "")
    if problems:
        raise ConfigError(problems)
    return cfg


def _as_list(item: str, known: DictConfig) -> str:
    key, _, value = item.partition("=")
    is_list = key in known and (isinstance(known[key], ListConfig) or key == "metrics")
    return f"{key}=[{value}]" if is_list and not value.startswith("[") and value != "null" else item


def _of_command(error: Exception, overrides: Sequence[str], known: DictConfig) -> Problem:
    names = [str(name) for name in known]
    for item in overrides:
        key = item.partition("=")[0]
        if key.partition(".")[0] not in names:
            return Problem(key, "there is no such key", did_you_mean(key, names))
    links = list(_chain(error))
    text = next((line for line in str(links[-1]).splitlines() if line.strip()), type(error).__name__)
    culprit = _culprit(overrides, error)
    return Problem((culprit or "command line").partition("=")[0], text, "write key=value")


def check(cfg: DictConfig) -> None:
    """Check ranges, rules between keys, targets and their arguments.

    Raises:
        ConfigError: with every problem found.
    """
    problems = find_problems(cfg)
    if problems:
        raise ConfigError(problems)


def find_job_problems(cfg: DictConfig) -> list[Problem]:
    """All problems of a config that a sweep composed for one of its jobs."""
    _settle_folder(cfg)
    return find_problems(cfg)


def set_values(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Set dotted keys that the config has.

    Raises:
        ConfigError: there is no such key, or it is a whole group.
    """
    problems = []
    for item in overrides:
        key, _, value = item.partition("=")
        found = _NOTHING if key.startswith(("+", "~")) else OmegaConf.select(cfg, key, default=_NOTHING)
        if found is _NOTHING:
            parent: Any = OmegaConf.select(cfg, key.rpartition(".")[0]) if "." in key else cfg
            names = [str(name) for name in parent] if isinstance(parent, DictConfig) else []
            problems.append(Problem(key, "the run has no such key", did_you_mean(key.rpartition(".")[2], names)))
        elif isinstance(found, DictConfig):
            fix = f"change its keys ({key}.…=), or train anew with another {key}"
            problems.append(Problem(key, "is a group; only values can be changed", fix))
        else:
            _set(cfg, key, value, problems)
    if problems:
        raise ConfigError(problems)


_NOTHING = object()


def _set(cfg: DictConfig, key: str, text: str, problems: list[Problem]) -> None:
    try:
        value = OverridesParser.create().parse_override(f"{key}={text}").value()
        OmegaConf.update(cfg, key, value)
    except (HydraException, OmegaConfBaseException) as error:
        problems.append(Problem(key, f"cannot be set to {text!r} ({str(error).splitlines()[0]})", "write key=value"))


def explain(overrides: Sequence[str], error: Exception, config_dir: str | None = None, *, sweep: bool = False) -> ConfigError:
    """All problems of overrides that failed to compose with `error`.

    Hydra stops at the first one. Here each override that is at fault is set aside and the rest composed again, until what is left
    composes; then that is checked as well. The overrides of a sweep hold several values each and are not composed again.
    """
    left = list(overrides)
    problems = []
    while True:
        culprit = _culprit(left, error)
        problems.append(_describe(error, culprit, left))
        if culprit is None or sweep:
            return ConfigError(problems)
        left.remove(culprit)
        try:
            cfg = _compose(left, config_dir)
        except (HydraException, OmegaConfBaseException) as next_error:
            error = next_error
            continue
        return ConfigError([*problems, *find_problems(cfg)])


def _compose(overrides: Sequence[str], config_dir: str | None = None, *, with_hydra: bool = False) -> DictConfig:
    if GlobalHydra.instance().is_initialized():
        GlobalHydra.instance().clear()
    given = list(overrides)
    if config_dir is not None:
        given.append(f"hydra.searchpath=[file://{Path(config_dir).absolute()}]")
    with initialize_config_dir(config_dir=str(CONF_DIR), version_base="1.3"):
        cfg = hydra_compose("config", overrides=given, return_hydra_config=with_hydra)
    _settle_folder(cfg)
    return cfg


def _settle_folder(cfg: DictConfig) -> None:
    """A config outside a run has no folder of its own yet."""
    with open_dict(cfg):
        if "hydra:runtime" in str(cfg._get_node("output_dir")):
            cfg.output_dir = str(Path("outputs").absolute())


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _culprit(overrides: Sequence[str], error: Exception) -> str | None:
    """The override that Hydra's error is about."""
    text = "\n".join(str(link) for link in _chain(error))
    for item in overrides:
        key, _, value = item.lstrip("+~").partition("=")
        if re.search(rf"['\" ]{re.escape(item)}(['\"\s.]|$)", text) or f"override '{key}'" in text or f"'{key}/{value}'" in text:
            return item
    for item in overrides:
        key, _, value = item.lstrip("+~").partition("=")
        named = [part.strip() for part in value.strip("[]").split(",")]
        if f"'{key}'" in text or f"full_key: {key}\n" in f"{text}\n" or any(f"'{key}/{part}'" in text for part in named):
            return item
    return None


def _describe(error: Exception, override: str | None, overrides: Sequence[str]) -> Problem:
    links = list(_chain(error))
    text = "\n".join(str(link) for link in links)
    key = (override or "").lstrip("+~").partition("=")[0]

    if missing := re.search(r"Could not (?:find|load) '([^']+)'", text):
        name = missing.group(1)
        group, _, option = name.rpartition("/")
        options = _options(group)
        if group and options:
            return Problem(group, f"there is no '{option}'", did_you_mean(option, options))
        if not group:
            return Problem(name, "no such config", "python -m speechtrain --help lists what there is")
    full_key = next((m.group(1) for link in links if (m := re.search(r"full_key: (\S+)", str(link)))), None)
    if unknown := re.search(r"Key '([^']+)' (?:is )?not in '?([^'\s]*)'?", text):
        path = full_key or key or unknown.group(1)
        return Problem(
            path, "there is no such key", did_you_mean(path.rpartition(".")[2], _siblings(path, overrides), prefix=path.rpartition(".")[0])
        )
    if "Could not override" in text and override is not None:
        return Problem(
            key, "there is no such key", did_you_mean(key.rpartition(".")[2], _siblings(key, overrides), prefix=key.rpartition(".")[0])
        )
    if full_key is not None and (wrong := _WRONG_TYPE.search(text)):
        return Problem(full_key, f"must be {_TYPES.get(wrong.group(2), wrong.group(2))}, received {wrong.group(1)!r}", _example(full_key))
    if isinstance(error, OverrideParseException):
        return Problem(
            "command line", f"'{error.override}' cannot be read", "write key=value; quote a value with spaces or brackets for the shell"
        )
    first = next((line for line in str(links[-1]).splitlines() if line.strip()), type(error).__name__)
    return Problem(full_key or key or "config", first.strip(), f"received {override!r}" if override else "")


_WRONG_TYPE = re.compile(r"Value '(.*?)' (?:of type '\w+' could not be converted to|is not a valid) (\w+)", re.DOTALL)
_TYPES = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false", "bool": "true or false", "String": "a text"}


def _options(group: str) -> list[str]:
    folder = CONF_DIR / group
    return sorted(path.stem for path in folder.glob("*.yaml")) if folder.is_dir() else []


def _siblings(path: str, overrides: Sequence[str]) -> list[str]:
    """Names beside a dotted path, in the options that are chosen; for a key of the root the groups too."""
    parent = path.rpartition(".")[0]
    choices = [item for item in overrides if _GROUP_CHOICE.match(item)]
    cfg: Any
    try:
        cfg = _compose(choices, with_hydra=path.startswith("hydra."))
    except (HydraException, OmegaConfBaseException):
        cfg = _compose([])
    for part in filter(None, parent.split(".")):
        cfg = cfg.get(part) if isinstance(cfg, DictConfig) and part in cfg else None
    names = [str(name) for name in cfg] if isinstance(cfg, DictConfig) else []
    return sorted({*names, *(["experiment"] if not parent else [])} - {"_target_"})


def _example(path: str) -> str:
    node: Any = _compose([])
    for part in path.split("."):
        node = node.get(part) if isinstance(node, DictConfig) and part in node else None
    return f"for example {path}={node}" if node is not None and not isinstance(node, DictConfig) else ""
