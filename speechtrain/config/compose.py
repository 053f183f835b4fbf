"""Composes a config from the groups of `conf/`, and names every problem of one that does not compose."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import BooleanNode, DictConfig, FloatNode, IntegerNode, ListConfig, OmegaConf, StringNode, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, ConfigTypeError, OmegaConfBaseException, ValidationError

from speechtrain.config import schema
from speechtrain.config.checks import find_problems, find_training_problems
from speechtrain.config.extras import LAUNCHERS
from speechtrain.config.node_checks import find_node_problems
from speechtrain.config.overrides import override_text, parsed, text_as_typed
from speechtrain.config.plain import ABSENT
from speechtrain.config.schemas.commands import COMMANDS
from speechtrain.config.schemas.node import Node
from speechtrain.config.schemas.sweeps import REPLACED
from speechtrain.errors import ConfigError, Problem, did_you_mean, first_line
from speechtrain.files import is_file, user_path

C = TypeVar("C", bound=Node)

_PACKAGED = Path(__file__).resolve().parents[1] / "conf"
CONF_DIR = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).resolve().parents[2] / "conf"
"""The config directory: inside the package when installed from a wheel, beside it in a checkout."""

schema.register()

REFUSED = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, OverflowError)
"""What Hydra and OmegaConf raise for a value; the last two for numbers of hundreds and of thousands of figures."""
_SCHEMA_OF = re.compile(r"In 'schema/(\w+)/")
_GROUP_CHOICE = re.compile(rf"^({'|'.join(schema.SCHEMAS)}|experiment)=")


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
        cfg = _compose(with_folder)
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
            raise ConfigError([_command_problem(error, with_lists, defaults)]) from None
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


def _command_problem(error: Exception, overrides: Sequence[str], known: DictConfig) -> Problem:
    names = ["from" if name == "source" else str(name) for name in known]
    for item in overrides:
        key = item.partition("=")[0]
        if key.partition(".")[0] not in (*names, "source"):
            return Problem(key, "there is no such key", did_you_mean(key, names))
    links = list(_chain(error))
    culprit = _culprit(overrides, error)
    key = (culprit or "command line").partition("=")[0]
    shown = "from" if key == "source" else key
    for link in links:
        if isinstance(link, ValidationError) and (expected := expected_type(link)) is not None:
            return Problem(shown, f"must be {expected}, received {link.value!r}", f"for example {shown}={override_text(known.get(key))}")
    text = next((line for line in str(links[-1]).splitlines() if line.strip()), type(error).__name__)
    return Problem(shown, text, "write key=value")


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
    _settle_folder(cfg)
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


def explain(overrides: Sequence[str], error: Exception, config_dir: str | None = None, *, sweep: bool = False) -> ConfigError:
    """Return all problems of overrides that failed to compose with `error`.

    Hydra stops at the first one. Here each override that is at fault is set aside and the rest composed again, until what is left
    composes; then that is checked as well. The overrides of a sweep hold several values each and are not composed again.
    """
    if config_dir is not None and (broken := broken_files(config_dir)):
        return ConfigError(broken)
    remaining = list(overrides)
    problems = []
    while (culprit := _culprit(remaining, error)) is not None and not sweep:
        rest = list(remaining)
        rest.remove(culprit)
        try:
            cfg = _compose(rest, config_dir)
        except REFUSED as next_error:
            problems.append(_describe(error, culprit, remaining))
            remaining, error = rest, next_error
            continue
        return ConfigError([*problems, _describe(error, culprit, remaining, cfg), *find_problems(cfg)])
    return ConfigError([*problems, _describe(error, culprit, remaining)])


def explain_job(overrides: Sequence[str], error: Exception, compose_others: Callable[[Sequence[str]], DictConfig]) -> Problem:
    """Return what is wrong with the overrides of a job of another Hydra program, which failed to compose with `error`.

    Args:
        overrides: all overrides of the job.
        error: what Hydra raised.
        compose_others: composes overrides of that program, to name the keys that there are.
    """
    culprit = _culprit(overrides, error)
    others = OmegaConf.create()
    if culprit is not None:
        with contextlib.suppress(*REFUSED):
            others = compose_others([item for item in overrides if item != culprit])
    return _describe(error, culprit, overrides, others)


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
        cfg = _compose([*chosen, *(item for item in overrides if item.startswith("hydra.searchpath="))], config_dir, with_hydra=True)
    except REFUSED:  # which Hydra will tell
        return {}
    sweeper: Any = OmegaConf.to_container(cfg.hydra.sweeper, resolve=False)
    return {str(key): value for key, value in (sweeper.get("params") or {}).items()}


_PRESETS = ("sweep=", "experiment=")


def broken_files(folder: str) -> list[Problem]:
    """Return what is wrong with the YAML files of a user's own folder of configs, by file and line."""
    return [problem for path in sorted(Path(folder).rglob("*.yaml")) if is_file(path) for problem in _file_problems(path)]


def _file_problems(path: Path) -> Iterator[Problem]:
    fix = "mend the file"
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else 1
        yield Problem(f"{path}:{line}", f"is no YAML ({error.problem or first_line(error)})", fix)
    except (yaml.YAMLError, OmegaConfBaseException, OSError, ValueError, RecursionError) as error:
        yield Problem(str(path), f"cannot be read ({first_line(error)})", fix)
    else:
        defaults = content.get("defaults", []) if isinstance(content, dict) else []
        if not isinstance(content, dict):
            yield Problem(str(path), f"must hold keys with values, received a {type(content).__name__}", fix)
        elif not isinstance(defaults, list) or not all(_is_default(each) for each in defaults):
            yield Problem(
                str(path), f"'defaults' must be a list of options, received {defaults!r:.80}", "for example defaults: [model: tdnn]"
            )


def _is_default(item: Any) -> bool:
    options = item.values() if isinstance(item, dict) else [item]
    return all(each is None or isinstance(each, str) or (isinstance(each, list) and set(map(type, each)) <= {str}) for each in options)


def _compose(overrides: Sequence[str], config_dir: str | None = None, *, with_hydra: bool = False) -> DictConfig:
    if GlobalHydra.instance().is_initialized():
        GlobalHydra.instance().clear()
    all_overrides = list(overrides)
    if config_dir is not None:
        all_overrides.append(f"hydra.searchpath=[file://{Path(config_dir).absolute()}]")
    with initialize_config_dir(config_dir=str(CONF_DIR), version_base="1.3"):
        cfg = hydra_compose("config", overrides=all_overrides, return_hydra_config=with_hydra)
    _settle_folder(cfg)
    return cfg


def _settle_folder(cfg: DictConfig) -> None:
    """Set the folder of a config outside of a run, to which Hydra gives none."""
    with open_dict(cfg):
        unresolved = OmegaConf.to_container(OmegaConf.masked_copy(cfg, ["output_dir"]), resolve=False)
        assert isinstance(unresolved, dict)
        if "hydra:runtime" in str(unresolved["output_dir"]):
            cfg.output_dir = str(Path("outputs").absolute())


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or _met_in_a_file(error)


def _met_in_a_file(error: BaseException) -> OmegaConfBaseException | None:
    """Return what OmegaConf refused in the file of an option, which Hydra does not make the cause of its own error."""
    of_hydra = isinstance(error, ConfigCompositionException) and error.__cause__ is None
    return error.__context__ if of_hydra and isinstance(error.__context__, OmegaConfBaseException) else None


def _place(error: Exception) -> str:
    """Return the file of the option in which a value was refused, as `, in 'model/mine'`; empty: it was on the command line."""
    for link in _chain(error):
        if _met_in_a_file(link) is not None:
            return f", i{str(link).partition(':')[0][1:]}"  # Hydra begins with In 'model/mine':
    return ""


def _culprit(overrides: Sequence[str], error: Exception) -> str | None:
    """Return the override that an error of Hydra or OmegaConf is about, by what the error knows; None: it cannot be told."""
    text = "\n".join(str(link) for link in _chain(error))
    tests: list[Callable[[str, str], bool]] = [_is_about(link) for link in _chain(error)]
    tests.append(lambda key, _: f"'{key}'" in text)
    for is_about in tests:
        parts = {item: item.lstrip("+~").partition("=") for item in overrides}
        matches = [item for item, (key, _, value) in parts.items() if is_about(key, value) or getattr(error, "override", None) == item]
        if matches:
            return max(matches, key=lambda item: len(parts[item][0]))  # `data.weights.b=1` rather than `data=mix`
    return None


def _is_about(error: BaseException) -> Callable[[str, str], bool]:
    """Return whether an error is about an override, given its key and its value."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file is not None:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return lambda key, value: key.partition("@")[0] == group and option in [part.strip() for part in value.strip("[]").split(",")]
    if _met_in_a_file(error) is not None and (schema_of := _SCHEMA_OF.match(str(error))):  # of a second option beside the first
        return lambda key, value: key == schema_of[1] and value.startswith("[")
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        full_key = error.full_key
        return lambda key, _: key == full_key or full_key.startswith((f"{key}.", f"{key}[")) or key.startswith(f"{full_key}.")
    return lambda *_: False


def _describe(error: Exception, override: str | None, overrides: Sequence[str], others: DictConfig | None = None) -> Problem:
    """Say in words of ours what an error of Hydra or OmegaConf means.

    Args:
        error: the error.
        override: the override that is at fault; None: it cannot be told.
        overrides: all overrides.
        others: what the other overrides compose to, if they do.
    """
    if isinstance(error, OverrideParseException):
        fix = "write key=value; quote a value with spaces or brackets for the shell"
        return Problem("command line", f"'{error.override}' cannot be read", fix)
    key = (override or "").lstrip("+~").partition("=")[0]
    place = _place(error)
    for link in _chain(error):
        if isinstance(link, MissingConfigException) and link.missing_cfg_file is not None:
            return _missing_option(link.missing_cfg_file, link.options)
        if isinstance(link, (ConfigKeyError, ConfigAttributeError)):
            if place and isinstance(link.parent_node, DictConfig):
                names = {str(name) for name in link.parent_node} - {"_target_"}
                path = str(link.full_key)
                return Problem(path, f"there is no such key{place}", did_you_mean(str(link.key), names, path.rpartition(".")[0]))
            return _unknown_key(link.full_key or key, overrides, others)
        if isinstance(link, ValidationError) and link.full_key and (expected := expected_type(link)) is not None:
            if key.startswith(f"{link.full_key}."):
                return Problem(key, f"there is no such key: {link.full_key} is {expected}{place}", _example(link.full_key, others))
            example = _example(link.full_key, others, link.value)
            return Problem(link.full_key, f"must be {expected}, received {link.value!r}{place}", example)
        if isinstance(link, ConfigTypeError) and override is not None and override.startswith("~"):
            return Problem(key, "cannot be taken out", _example(key, others))
    if (problem := _of_wrong_kind([override] if override is not None else overrides, others)) is not None:
        return problem
    last = list(_chain(error))[-1]
    first_line = next((line for line in str(last).splitlines() if line.strip()), type(last).__name__)
    path = getattr(last, "full_key", None) or key or "config"
    return Problem(path, first_line.strip(), f"received {override!r}" if override else "")


def _of_wrong_kind(overrides: Sequence[str], others: DictConfig | None) -> Problem | None:
    """Return what is wrong with the first override that gives a group no option, a list no list, or a node with keys no keys.

    Args:
        overrides: those that may be at fault.
        others: what the other overrides compose to, if they do.
    """
    for override in parsed(overrides):
        key, value = override.key_or_group, override.value()
        if override.is_sweep_override() or override.is_delete() or (isinstance(value, str) and "${" in value):  # unknown, or no value
            continue
        of_hydra = key.startswith("hydra.")
        cfg = _compose([], with_hydra=of_hydra) if others is None or of_hydra else others
        if key in schema.SCHEMAS and not isinstance(value, (str, list, dict)):
            return Problem(key, f"must be an option of the group, received {value}", f"there is: {', '.join(_options(key))}")
        if key in schema.SCHEMAS and isinstance(value, list) and len(value) > 1 and len(overrides) == 1:
            names = [str(each) for each in value]
            return Problem(key, f"takes one option, received {value}", f"give {key}={names[0]}, or -m {key}={','.join(names)} to try each")
        node: Any = cfg
        for part in key.split("."):
            node = node.get(part) if isinstance(node, DictConfig) and part in node else None
        if value is None and isinstance(node, (ListConfig, DictConfig)) and node._is_optional():
            continue
        if isinstance(node, ListConfig) and not isinstance(value, list):
            return Problem(key, f"must be a list, received {value}", _example(key, cfg))
        if isinstance(node, DictConfig) and not isinstance(value, (dict, str)):
            names = [str(name) for name in node if name != "_target_"]
            fix = f"give names with values, for example '{key}={{name: value}}'"
            if names:
                fix = f"set them one by one, for example {key}.{names[0]}=... (there is: {', '.join(names)})"
            return Problem(key, f"has keys of its own, received {value}", fix)
    return None


def _missing_option(name: str, options: Sequence[str] | None) -> Problem:
    group, _, option = name.rpartition("/")
    if not group:
        return Problem(name, "no such config", "python -m speechtrain --help lists what there is")
    if group == "hydra/launcher" and option in LAUNCHERS:
        return Problem(group, f"{option} is not installed", f"pip install 'speechtrain[{LAUNCHERS[option]}]'")
    if group == "hydra/sweeper/sampler" and option in REPLACED:
        return Problem(group, f"there is no '{option}' any more", REPLACED[option])
    return Problem(group, f"there is no '{option}'", did_you_mean(option, options or _options(group)))


def _unknown_key(path: str, overrides: Sequence[str], others: DictConfig | None) -> Problem:
    parent, _, name = path.rpartition(".")
    if parent == "hydra.sweeper" and name in REPLACED:
        return Problem(path, "there is no such key", REPLACED[name])
    return Problem(path, "there is no such key", did_you_mean(name, _siblings(path, overrides, others), prefix=parent))


def expected_type(error: ValidationError) -> str | None:
    """Return what the value of a key must be, by the type that it has in the schema; None: of no simple type."""
    for node, words in _NODE_WORDS.items():
        if isinstance(error.child_node, node):
            return words
    elements = get_args(error.ref_type) if isinstance(error.parent_node, ListConfig) else ()
    return _ELEMENT_WORDS.get(elements[0]) if elements else None


_ELEMENT_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
_NODE_WORDS: dict[type[Any], str] = {
    IntegerNode: _ELEMENT_WORDS[int],
    FloatNode: _ELEMENT_WORDS[float],
    BooleanNode: _ELEMENT_WORDS[bool],
    StringNode: _ELEMENT_WORDS[str],
    ListConfig: "a list",
}


def _options(group: str) -> list[str]:
    folder = CONF_DIR / group
    return sorted(path.stem for path in folder.glob("*.yaml")) if folder.is_dir() else []


def _siblings(path: str, overrides: Sequence[str], others: DictConfig | None) -> list[str]:
    """Return the names beside a dotted path, in the options that are chosen; for a key of the root the groups too."""
    parent = path.rpartition(".")[0]
    cfg: Any = None if path.startswith("hydra.") else others
    if cfg is None:
        choices = [item for item in overrides if _GROUP_CHOICE.match(item)]
        try:
            cfg = _compose(choices, with_hydra=path.startswith("hydra."))
        except REFUSED:
            cfg = _compose([])
    own_root = ["experiment"] if not parent and OmegaConf.get_type(cfg) is schema.Config else []
    for part in filter(None, parent.split(".")):
        cfg = cfg.get(part) if isinstance(cfg, DictConfig) and part in cfg else None
    names = [str(name) for name in cfg] if isinstance(cfg, DictConfig) else []
    return sorted({*names, *own_root} - {"_target_"})


def _example(path: str, others: DictConfig | None, received: object = None) -> str:
    """Return what could be given for a key: its value, or what was received in a list where the key takes one and has none."""
    node: Any = _compose([]) if others is None else others
    for part in path.split("."):
        node = node.get(part) if isinstance(node, DictConfig) and part in node else None
    if isinstance(node, ListConfig) and not node and isinstance(received, str):
        return f"for example {path}=[{override_text(received)}]"
    return f"for example {path}={node}" if node is not None and not isinstance(node, DictConfig) else ""
