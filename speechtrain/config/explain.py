"""Says in words of ours why overrides do not compose: which one is at fault, what is wrong with it, and what to type."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from omegaconf import BooleanNode, DictConfig, FloatNode, IntegerNode, ListConfig, OmegaConf, StringNode
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, ConfigTypeError, OmegaConfBaseException, ValidationError

from speechtrain.config import schema
from speechtrain.config.checks import find_problems
from speechtrain.config.composition import CONF_DIR, REFUSED, compose_groups
from speechtrain.config.extras import LAUNCHERS
from speechtrain.config.overrides import override_text, parsed
from speechtrain.config.schemas.sweeps import REPLACED
from speechtrain.errors import ConfigError, Problem, did_you_mean, first_line
from speechtrain.files import is_file

_SCHEMA_OF = re.compile(r"In 'schema/(\w+)/")
_GROUP_CHOICE = re.compile(rf"^({'|'.join(schema.SCHEMAS)}|experiment)=")


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
            cfg = compose_groups(rest, config_dir)
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
        cfg = compose_groups([], with_hydra=of_hydra) if others is None or of_hydra else others
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
            cfg = compose_groups(choices, with_hydra=path.startswith("hydra."))
        except REFUSED:
            cfg = compose_groups([])
    own_root = ["experiment"] if not parent and OmegaConf.get_type(cfg) is schema.Config else []
    for part in filter(None, parent.split(".")):
        cfg = cfg.get(part) if isinstance(cfg, DictConfig) and part in cfg else None
    names = [str(name) for name in cfg] if isinstance(cfg, DictConfig) else []
    return sorted({*names, *own_root} - {"_target_"})


def _example(path: str, others: DictConfig | None, received: object = None) -> str:
    """Return what could be given for a key: its value, or what was received in a list where the key takes one and has none."""
    node: Any = compose_groups([]) if others is None else others
    for part in path.split("."):
        node = node.get(part) if isinstance(node, DictConfig) and part in node else None
    if isinstance(node, ListConfig) and not node and isinstance(received, str):
        return f"for example {path}=[{override_text(received)}]"
    return f"for example {path}={node}" if node is not None and not isinstance(node, DictConfig) else ""


def explain_command(error: Exception, overrides: Sequence[str], known: DictConfig) -> Problem:
    """Return what is wrong with the arguments of another command than training, which failed to compose with `error`.

    Args:
        error: what Hydra raised.
        overrides: the arguments.
        known: the command's config with its defaults.
    """
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
