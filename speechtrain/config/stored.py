"""Checks a config that was stored in a file, which a stranger may have written: plain values, known classes, known keys, nothing resolved.

Which classes may be built follows from the options of `conf/`; classes of other packages need `trust=true`.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping
from functools import lru_cache
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

from speechtrain.addresses import whole_values
from speechtrain.config.comments import content_of
from speechtrain.config.components import MIXES
from speechtrain.config.composition import CONF_DIR
from speechtrain.config.explain import expected_type
from speechtrain.config.moved import renamed
from speechtrain.config.node_checks import NO_VALUE, NOT_CHOSEN, find_node_problems
from speechtrain.config.plain import is_printable, plain_mapping, shown
from speechtrain.config.schema import SCHEMAS, Config
from speechtrain.config.schemas.node import Node
from speechtrain.config.target_checks import target_problems
from speechtrain.errors import ConfigError, Problem, UserError, did_you_mean, first_line

Typed = Generator[Problem, None, dict[str, Any]]
"""Yields what is wrong with a node, and returns its typed values."""

COMPONENTS = ("features", "tokenizer", "augment", "model", "optimizer", "scheduler", "backend", "task", "decoder")
"""The groups with a `_target_`, beside the corpus and the trackers."""

_MOST_YAML = 1_000_000
_SHOWN_PROBLEMS = 10
_FIX = "\n    -> give a checkpoint, an archive or a run that speechtrain wrote, of this version or an earlier one"
_ELSEWHERE = ("data", "augment")
"""Groups whose own rules ask for files and folders of the machine that a model was trained on."""


def stored_values(values: object, place: str, *, trust: bool) -> dict[str, Any]:
    """Return the keys of a stored config with their present names and types; in one that is trusted, with what was masked in it.

    Args:
        values: what a file holds, resolved.
        place: the file or run, for messages.
        trust: whether classes of other packages may be named, which are run when they are built.

    Raises:
        ConfigError: classes of other packages are named, and the place is not trusted.
        UserError: this is not the config of a run.
    """
    content: dict[str, Any] = renamed(plain_mapping(values, f"{place}: its config", fix=_FIX))
    # the trackers and callbacks of a stored config are not built; `rerun=`, which builds callbacks, checks them itself
    built = {key: value for key, value in content.items() if key not in ("tracking", "callbacks")}
    if not trust and (foreign := foreign_targets(built)):
        fix = "trust=true runs it, if you trust the file"
        named = foreign[:_SHOWN_PROBLEMS]
        raise ConfigError([Problem(key, f"in {place} is {target}, which is not of this package", fix) for key, target in named])
    typed = dict(content)
    problems = list(_type_all(content, typed))
    if problems:
        raise UserError("\n".join([f"{place}: its config cannot be read", *(f"  {each}" for each in problems[:_SHOWN_PROBLEMS])]) + _FIX)
    return dict(whole_values(typed)) if trust else typed


def read_yaml(text: str, place: str) -> object:
    """Return the plain values of a YAML text that a run wrote.

    Raises:
        UserError: it is no YAML, or has aliases, of which a short text can make a value of any size.
    """
    try:
        if len(text) > _MOST_YAML:
            raise yaml.YAMLError(f"it has more than {_MOST_YAML:,} letters")
        return yaml.load(text, _PlainLoader)  # noqa: S506 # derived from the safe loader
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{place} cannot be read ({first_line(error, most=120)}){_FIX}") from error


class _PlainLoader(yaml.SafeLoader):
    """Reads YAML as OmegaConf writes it: no aliases, and no dates."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose the next node, unless it is an alias."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has aliases, which no run writes")
        node: yaml.Node | None = super().compose_node(parent, index)
        return node


_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@lru_cache
def known_targets(group: str) -> Mapping[str, type[Node] | None]:
    """Return the classes that the options of a group in `conf/` name, each with its schema if it has one."""
    known: dict[str, type[Node] | None] = {}
    for file in (CONF_DIR / group).glob("*.yaml"):
        target = str(_option(group, file.stem).get("_target_", "???"))
        for backend in ("torch", "keras") if target != "???" else ():
            known[target.replace("${backend.name}", backend)] = _schema_of(group, file.stem)
    return known


@lru_cache
def _option(group: str, name: str) -> Mapping[str, Any]:
    """Return the content of the file of an option."""
    return content_of(CONF_DIR / group / f"{name}.yaml") or {}


def _schema_of(group: str, name: str) -> type[Node] | None:
    """Return the schema that an option, or the one that it is made of, has in its defaults list; None: it has none."""
    for item in map(str, _option(group, name).get("defaults", [])):
        if (found := re.fullmatch(rf"/schema/{group}/(\w+)@_here_", item)) is not None:
            return SCHEMAS[group][found[1]]
        if (CONF_DIR / group / f"{item}.yaml").is_file():
            return _schema_of(group, item)
    return None


def foreign_targets(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (dotted path, target) of what values name that no option of its group names, at any depth, or where nothing is built."""
    return list(_foreign(content, "", ""))


def _foreign(value: object, path: str, group: str) -> Iterator[tuple[str, str]]:
    """Yield the foreign targets inside a plain value.

    Args:
        value: the value.
        path: its dotted path.
        group: the group of which a class may be named here; empty: none may.
    """
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        dotted = f"{path}.{key}" if path else str(key)
        if key == "_target_":
            if not group or not isinstance(item, str) or item not in known_targets(group):
                yield dotted, item if isinstance(item, str) else shown(item)
        elif path == "callbacks" and isinstance(item, str):
            yield dotted, item
        else:
            yield from _foreign(item, dotted, _group_at(dotted, group, value))


def _group_at(path: str, above: str, node: object) -> str:
    """Return the group of which a class may be named at a dotted path; empty if none may.

    Args:
        path: the path.
        above: the group of the node that it is in.
        node: that node.
    """
    if "." not in path:
        return "trackers" if path == "tracking" else path if path in (*COMPONENTS, "data") else ""
    if above == "data" and isinstance(node, dict) and node.get("_target_") in MIXES and path.endswith(".corpora"):
        return "corpora"  # in which each key is a corpus
    return {"corpora": "data", "trackers": "tracking"}.get(above, "")


def component_problems(group: str, node: Any) -> list[Problem]:
    """Return what is wrong with a component of a stored config whose keys were changed, by its schema."""
    return list(_component(group, node, group))


def _type_all(content: Mapping[str, Any], typed: dict[str, Any]) -> Iterator[Problem]:
    """Put the typed values of each group into `typed`, and yield what is wrong with them."""
    groups = {*COMPONENTS, "data", "trainer", "tracking"}
    for group in (*COMPONENTS, "data", "trainer"):
        node = content.get(group)
        if not isinstance(node, dict):
            yield Problem(group, f"must be a group of keys, received {shown(node)}" if group in content else "is missing")
        elif group == "trainer":
            typed[group] = yield from _typed(SCHEMAS["trainer"]["trainer"], node, group)
        else:
            typed[group] = yield from _component(group, node, group)
    yield from _tracker_problems(content.get("tracking", {}))
    root = {key: value for key, value in content.items() if key not in groups}
    typed |= yield from _typed(Config, root, "")


def _component(group: str, node: Mapping[str, Any], path: str) -> Typed:
    """Yield what is wrong with a component, and return its typed values; those of a class of another package stay as they are."""
    target = node.get("_target_")
    if not isinstance(target, str):
        yield Problem(f"{path}._target_", "is missing" if target is None else f"must be the path of a class, received {shown(target)}")
        return dict(node)
    values = dict(node)
    if target in known_targets(group):
        schema = known_targets(group)[target]
        if schema is None:  # the arguments of the class are its keys
            yield from target_problems(path, OmegaConf.create(values))
        else:
            values = yield from _typed(schema, node, path, with_rules=group not in _ELSEWHERE)
    if group == "data" and target in MIXES:
        corpora = node.get("corpora")
        for name, corpus in corpora.items() if isinstance(corpora, dict) else ():
            yield from _component("data", corpus if isinstance(corpus, dict) else {}, f"{path}.corpora.{name}")
    return values


def _typed(schema: type[Node], values: Mapping[str, Any], path: str, *, with_rules: bool = True) -> Typed:
    """Yield what is wrong with values, and return them with the types of a schema; keys that they lack are no problem."""
    try:
        node = OmegaConf.merge(OmegaConf.structured(schema), dict(values))
    except OmegaConfBaseException as error:
        yield _explained(error, path, schema)
        return dict(values)
    for problem in find_node_problems(node, path, with_rules=with_rules):
        if problem.message not in (NO_VALUE, NOT_CHOSEN):
            yield problem
    typed: dict[str, Any] = _of_keys(OmegaConf.to_container(node), values)
    return typed


def _of_keys(typed: Any, values: object) -> Any:
    """Return those typed values whose keys were stored, at any depth."""
    if not isinstance(typed, dict) or not isinstance(values, Mapping):
        return typed
    return {key: _of_keys(item, values[key]) for key, item in typed.items() if key in values}


def _explained(error: OmegaConfBaseException, path: str, schema: type[Node]) -> Problem:
    """Return what an error of OmegaConf says of a stored value."""
    inside = error.full_key or ""
    dotted = ".".join(part for part in (path, inside) if part)
    if isinstance(error, (ConfigKeyError, ConfigAttributeError)):
        names = [] if "." in inside else [name for name in schema.__dataclass_fields__ if not name.startswith("_")]
        return Problem(dotted, "there is no such key in this version", did_you_mean(inside, names))
    if isinstance(error, ValidationError) and (expected := expected_type(error)) is not None:
        return Problem(dotted, f"must be {expected}, received {shown(error.value)}")
    return Problem(dotted or "config", first_line(error, most=160))


def _tracker_problems(tracking: object) -> Iterator[Problem]:
    """Yield what keeps trackers from being compared and listed; they are not built."""
    if not isinstance(tracking, dict):
        yield Problem("tracking", f"must be trackers by name, received {shown(tracking)}")
        return
    for name, node in tracking.items():
        if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
            yield Problem(f"tracking.{name}", f"must be a tracker, received {shown(node)}")


def stored_vocabulary(values: object, place: str) -> list[str]:
    """Return the tokens that a model was trained with.

    Raises:
        UserError: they are no list of texts, or one stands there twice.
    """
    if not isinstance(values, (list, tuple)) or not all(isinstance(token, str) and is_printable(token) for token in values):
        raise UserError(f"{place}: its vocabulary cannot be read; it must be a list of texts, received {shown(values)}{_FIX}")
    first: dict[str, int] = {}
    for number, token in enumerate(values):
        if (other := first.setdefault(token, number)) != number:
            raise UserError(f"{place}: its vocabulary cannot be read; tokens {other} and {number} are both {shown(token)}{_FIX}")
    return list(values)
