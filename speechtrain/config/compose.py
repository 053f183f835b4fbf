"""Composes and checks the config of a training, and that of another command."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from speechtrain.config.checks import find_problems, find_training_problems
from speechtrain.config.composition import CONF_DIR, REFUSED, compose_groups, settle_folder
from speechtrain.config.explain import explain, explain_command
from speechtrain.config.node_checks import find_node_problems
from speechtrain.config.overrides import override_text, text_as_typed
from speechtrain.config.plain import ABSENT
from speechtrain.config.schemas.commands import COMMANDS
from speechtrain.config.schemas.node import Node
from speechtrain.errors import ConfigError, Problem, did_you_mean
from speechtrain.files import is_file, user_path

C = TypeVar("C", bound=Node)


def compose(overrides: Sequence[str] = (), *, output_dir: str | Path | None = None) -> DictConfig:
    """Compose and check a config as the command line does.

    Args:
        overrides: as typed behind `python -m speechtrain`.
        output_dir: the run's folder; by default a new one under `outputs/`.

    Raises:
        ConfigError: with every problem found.
    """
    cfg = compose_unchecked(overrides, output_dir=output_dir)
    check(cfg)
    return cfg


def compose_unchecked(overrides: Sequence[str], *, output_dir: str | Path | None = None) -> DictConfig:
    """Compose a config as `compose` does, whose values are still to be checked.

    Raises:
        ConfigError: the overrides do not compose.
    """
    folder = Path(output_dir) if output_dir is not None else Path("outputs") / datetime.now().strftime("%Y-%m-%d/%H-%M-%S-%f")
    with_folder = [*text_as_typed(overrides), f"output_dir={override_text(str(folder.absolute()))}"]
    try:
        cfg = compose_groups(with_folder)
    except REFUSED as error:
        raise explain(with_folder, error) from None
    drop_typed_choices(cfg, overrides)
    return cfg


def drop_typed_choices(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Take the keys that overrides set out of `choose`."""
    typed = {item.lstrip("+").partition("=")[0] for item in overrides}
    if "choose" not in typed:
        cfg.choose = [key for key in cfg.choose if key not in typed]


def compose_command(schema: type[C], overrides: Sequence[str]) -> C:
    """Compose and check the config of one of the other commands; words for a list key may stand without brackets.

    Args:
        schema: schema of the command, one of `COMMANDS`.
        overrides: as typed behind `python -m speechtrain.COMMAND`.

    Raises:
        ConfigError: with the first problem of composing, or every problem of the values.
    """
    name = next(name for name, each in COMMANDS.items() if each is schema)
    if GlobalHydra.instance().is_initialized():
        GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(CONF_DIR), version_base="1.3"):
        defaults = hydra_compose(name)
        with_lists = text_as_typed([_as_list(item, defaults) for item in overrides], schema)
        try:
            cfg = hydra_compose(name, overrides=[item for item in with_lists if not item.startswith("tags.")])
            for item in (item for item in with_lists if item.startswith("tags.")):
                key, _, value = item.removeprefix("tags.").partition("=")
                with open_dict(cfg.tags):
                    cfg.tags[key] = value
        except REFUSED as error:
            raise ConfigError([explain_command(error, with_lists, defaults)]) from None
    _refuse(list(find_node_problems(cfg, "")))
    command = OmegaConf.to_object(cfg)
    assert isinstance(command, schema)
    return command


def _as_list(item: str, known: DictConfig) -> str:
    """Return an argument whose words are put into brackets if its key is a list; a file of that name is one word."""
    key, _, value = item.partition("=")
    if key not in known or not (isinstance(known[key], ListConfig) or key == "metrics") or value == "null":
        return item
    if is_file(user_path(value)):
        return f"{key}=[{override_text(value)}]"
    return item if value.startswith("[") and value.endswith("]") else f"{key}=[{value}]"


def check(cfg: DictConfig) -> None:
    """Check ranges, rules between keys, targets and their arguments.

    Raises:
        ConfigError: with every problem found.
    """
    _refuse(find_problems(cfg))


def check_training(cfg: DictConfig) -> None:
    """Check a config as `check` does, and that what it watches while training is measured.

    Raises:
        ConfigError: with every problem found.
    """
    _refuse(find_training_problems(cfg))


def _refuse(problems: list[Problem]) -> None:
    """Raise the error of a config that has problems."""
    if problems:
        raise ConfigError(problems)


def find_job_problems(cfg: DictConfig) -> list[Problem]:
    """Return all problems of a config that a sweep composed for one of its jobs."""
    settle_folder(cfg)
    return find_training_problems(cfg)


def set_values(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Set dotted keys of a config, given as `key=value`.

    Raises:
        ConfigError: the config has no such key, or it is a whole group.
    """
    problems = []
    for item in text_as_typed(overrides):
        key, _, value = item.partition("=")
        current = ABSENT if key.startswith(("+", "~")) else OmegaConf.select(cfg, key, default=ABSENT)
        if current is ABSENT:
            parent: Any = OmegaConf.select(cfg, key.rpartition(".")[0]) if "." in key else cfg
            names = [str(name) for name in parent] if isinstance(parent, DictConfig) else []
            problems.append(Problem(key, "the run has no such key", did_you_mean(key.rpartition(".")[2], names)))
        elif isinstance(current, DictConfig):
            fix = f"change its keys ({key}.…=), or train anew with another {key}"
            problems.append(Problem(key, "is a group; only values can be changed", fix))
        else:
            _set(cfg, key, value, problems)
    _refuse(problems)


def _set(cfg: DictConfig, key: str, text: str, problems: list[Problem]) -> None:
    try:
        value = OverridesParser.create().parse_override(f"{key}={text}").value()
        OmegaConf.update(cfg, key, value)
    except REFUSED as error:
        problems.append(Problem(key, f"cannot be set to {text!r} ({str(error).splitlines()[0]})", "write key=value"))


def preset_params(overrides: Sequence[str], config_dir: str | None = None) -> dict[str, Any]:
    """Return the `hydra.sweeper.params` of the options of `sweep` and `experiment` that are chosen; none where they do not compose.

    Args:
        overrides: as typed.
        config_dir: the user's own folder of configs.
    """
    chosen = [item for item in overrides if item.startswith(_PRESETS)]
    if not chosen:
        return {}
    try:
        cfg = compose_groups([*chosen, *(item for item in overrides if item.startswith("hydra.searchpath="))], config_dir, with_hydra=True)
    except REFUSED:  # which Hydra will tell
        return {}
    sweeper: Any = OmegaConf.to_container(cfg.hydra.sweeper, resolve=False)
    return {str(key): value for key, value in (sweeper.get("params") or {}).items()}


_PRESETS = ("sweep=", "experiment=")
