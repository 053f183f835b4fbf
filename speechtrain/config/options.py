"""The options of every group with their keys: what each means, its type and range, its default, and where that is written.

Meanings and defaults are those of the files in `conf/` (`config.comments`), types and ranges those of the schemas. `--explain` and the
reference in `docs/reference` both read them here.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from speechtrain.config.comments import Entry, content_of, entries_of, summary_of
from speechtrain.config.composition import CONF_DIR
from speechtrain.config.node_checks import BOUND_WORDS
from speechtrain.config.schema import SCHEMAS, Config
from speechtrain.config.schemas.commands import COMMANDS
from speechtrain.config.schemas.data import Loading
from speechtrain.config.schemas.node import SIZES, Node
from speechtrain.config.targets import UnknownTargetError, signature

WITHOUT_KEYS = ("experiment", "sweep")
"""The groups whose options set keys of other groups, and have none of their own."""
_HIDDEN = ("schema", "hydra_logging", "job_logging")
_NOT_TYPED = ("_target_", "_recursive_")


@dataclass(frozen=True)
class Key:
    """Describes a key of an option.

    Attributes:
        name: its dotted path inside the option.
        entry: what the config files of the option say of it.
        schema: the class that declares it; None: the option has no schema.
        hint: its type; `inspect.Parameter.empty`: not known.
        limits: bounds or choices, as `schemas.node.number` and `choice` declare them.
    """

    name: str
    entry: Entry
    schema: type[Node] | None = None
    hint: Any = inspect.Parameter.empty
    limits: Mapping[str, Any] = field(default_factory=dict)

    @property
    def default(self) -> str:
        """Return the default in words: the value as it is written, or the values of each size of a model."""
        if self.entry.text == "???":
            return "none: it must be given"
        if by_size := re.fullmatch(r"\$\{by_size:(.*)\}", self.entry.text):
            values = _split(by_size[1])
            return ", ".join(f"{value} ({size})" for value, size in zip(values, SIZES, strict=False))
        return self.entry.text

    @property
    def kind(self) -> str:
        """Return type and range in words."""
        words = type_in_words(self.hint, self.limits)
        return words or _type_of_default(self.entry.text)


@dataclass(frozen=True)
class Option:
    """Describes an option of a group.

    Attributes:
        group: the group, such as `model` or `hydra/sweeper`.
        name: the option, such as `conformer`.
        file: its config file.
        summary: the first comment of the file.
        keys: its keys by their dotted paths inside it, those of the options it derives from included.
    """

    group: str
    name: str
    file: Path
    summary: str
    keys: dict[str, Key]

    @property
    def package(self) -> str:
        """Return the dotted key under which the option's keys stand in a config; empty: the root."""
        first = self.file.read_text(encoding="utf-8").partition("\n")[0]
        if named := re.match(r"#\s*@package\s+(\S+)", first):
            return "" if named[1] == "_global_" else named[1]
        return self.group.replace("/", ".")


def groups(folders: Sequence[Path]) -> list[str]:
    """Return the groups that have options in the folders, those of a training first."""
    found = {path.parent.relative_to(folder).as_posix() for folder in folders for path in folder.rglob("*.yaml") if path.parent != folder}
    return sorted((name for name in found if not set(name.split("/")) & set(_HIDDEN)), key=lambda name: (name.startswith("hydra"), name))


def option_files(group: str, folders: Sequence[Path]) -> dict[str, Path]:
    """Return the files of a group's options by name; where folders have one of the same name, the first one."""
    return {path.stem: path for folder in reversed(folders) for path in sorted((folder / group).glob("*.yaml"))}


def read_option(group: str, name: str, folders: Sequence[Path]) -> Option:
    """Return an option with its keys.

    Raises:
        FileNotFoundError: no folder has such an option.
        yaml.YAMLError: its file is no YAML.
    """
    files = option_files(group, folders)
    if name not in files:
        raise FileNotFoundError(f"{group}/{name}.yaml")
    entries, schema = _merged(files[name], group, folders, frozenset())
    if group in WITHOUT_KEYS:
        entries = {}
    return Option(group, name, files[name], summary_of(files[name]), _keys(entries, schema))


def options_of(group: str, folders: Sequence[Path]) -> list[Option]:
    """Return all options of a group, by name."""
    return [read_option(group, name, folders) for name in sorted(option_files(group, folders))]


def root_keys() -> dict[str, Key]:
    """Return the keys that belong to the run as a whole, and those of Hydra that `conf/config.yaml` sets."""
    return _keys(entries_of(CONF_DIR / "config.yaml"), Config)


def command_keys(name: str) -> dict[str, Key]:
    """Return the keys of a command beside training; `source` is named `from`, as it is typed."""
    keys = _keys(entries_of(CONF_DIR / f"{name}.yaml"), COMMANDS[name])
    return {("from" if key == "source" else key): each for key, each in keys.items()}


def _merged(path: Path, group: str, folders: Sequence[Path], seen: frozenset[Path]) -> tuple[dict[str, Entry], type[Node] | None]:
    """Return the entries of an option's file, and of those its defaults list names, and its schema."""
    content = content_of(path) or {}
    defaults = content.get("defaults", []) if isinstance(content, dict) else []
    entries: dict[str, Entry] = {}
    schema: type[Node] | None = None
    for item in defaults if "_self_" in defaults else ["_self_", *defaults]:
        if item == "_self_":
            _add(entries, entries_of(path))
        elif isinstance(item, str) and item.startswith("/schema/"):
            parts = item.removeprefix("/schema/").partition("@")[0].split("/")
            if len(parts) == 2:
                schema = SCHEMAS[parts[0]][parts[1]]
            else:
                _add(entries, entries_of(CONF_DIR / "schema" / f"{parts[0]}.yaml"))
                schema = schema or Loading
        elif isinstance(item, str) and "@" not in item:
            of_group, _, name = item.removeprefix("/").rpartition("/")
            base = option_files(of_group if item.startswith("/") else group, folders).get(name)
            if base is not None and base not in seen:
                more, base_schema = _merged(base, group, folders, seen | {path})
                _add(entries, more)
                schema = base_schema or schema
    return entries, schema


def _add(entries: dict[str, Entry], more: Mapping[str, Entry]) -> None:
    """Add entries whose values win; a key without a comment keeps the one that it has."""
    for name, entry in more.items():
        comment = entry.comment or (entries[name].comment if name in entries else "")
        entries[name] = dataclasses.replace(entry, comment=comment)


def _keys(entries: Mapping[str, Entry], schema: type[Node] | None) -> dict[str, Key]:
    """Return the keys of entries with their types; nodes stand before what they hold, and free mappings are not entered."""
    arguments = _annotations(entries) if schema is None else {}
    keys: dict[str, Key] = {}
    for name, entry in entries.items():
        if name.rpartition(".")[2] in _NOT_TYPED:
            continue
        declared, hint, limits = _declared(schema, name.split("."))
        keys[name] = Key(name, entry, declared, arguments.get(name, hint), limits)
    return keys


def _declared(schema: type[Node] | None, path: Sequence[str]) -> tuple[type[Node] | None, Any, Mapping[str, Any]]:
    """Return the schema that declares a key, its type and its limits; None and no type where there is no schema."""
    for position, part in enumerate(path):
        if schema is None or part not in (hints := _hints(schema)):
            break
        hint = hints[part]
        if position == len(path) - 1:
            limits = next(each.metadata for each in dataclasses.fields(schema) if each.name == part)
            return _owner(schema, part), hint, limits
        schema = hint if isinstance(hint, type) and issubclass(hint, Node) else None
    return None, inspect.Parameter.empty, {}


_hints: Callable[[Any], dict[str, Any]] = lru_cache(get_type_hints)  # mypy takes a class for nothing that can be hashed


def _owner(schema: type[Node], name: str) -> type[Node]:
    """Return the class of a schema or of those it derives from that declares a field."""
    return next(each for each in schema.__mro__ if name in vars(each).get("__annotations__", {}))


def _annotations(entries: Mapping[str, Entry]) -> dict[str, Any]:
    """Return the types of the arguments of an option's `_target_`, read from its source; none where there are interpolations in it."""
    target = entries["_target_"].text if "_target_" in entries else ""
    try:
        found = signature(target) if target and not target.startswith(("null", "???")) and "${" not in target else None
    except UnknownTargetError:
        found = None
    names: dict[str, Any] = {"int": int, "float": float, "str": str, "bool": bool, "None": type(None)}
    hints: dict[str, Any] = {}
    for name, annotation in (found.annotations if found else {}).items():
        words = [each.strip() for each in ast.unparse(annotation).split("|")]
        if all(each in names for each in words):
            hints[name] = Union[tuple(names[each] for each in words)]  # noqa: UP007 # made at run time
    return hints


_PLAIN = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
_PLURAL = {int: "whole numbers", float: "numbers", str: "texts", bool: "truth values"}


def type_in_words(hint: Any, limits: Mapping[str, Any]) -> str:
    """Return a type and its limits in words; empty: nothing is known of it.

    Args:
        hint: as a schema annotates the key.
        limits: bounds or choices.
    """
    of = [each for each in get_args(hint) if each is not type(None)] if get_origin(hint) in (types.UnionType, Union) else [hint]
    words = " or ".join(filter(None, (_one_type(each, limits) for each in of)))
    return f"{words}, or null" if words and type(None) in get_args(hint) else words


def _one_type(hint: Any, limits: Mapping[str, Any]) -> str:
    choices = limits.get("choices")
    if choices:
        each = f"one of {', '.join(choices)}"
        return f"a list, each {each}" if get_origin(hint) is list else each
    bounds = " and ".join(f"{words} {limits[name]:,}" for name, words in BOUND_WORDS.items() if limits.get(name) is not None)
    if get_origin(hint) is list:
        items = get_args(hint)[0]
        return f"a list of {_PLURAL.get(items, 'values')}{f', each {bounds}' if bounds else ''}"
    if get_origin(hint) is dict:
        return "a mapping"
    if hint in _PLAIN:
        return f"{_PLAIN[hint]}{f', {bounds}' if bounds and hint is not bool else ''}"
    return ""


def _type_of_default(text: str) -> str:
    """Return the type of a value as it is written, in words; empty where it may be anything."""
    value = yaml.safe_load(text) if text and "${" not in text and text != "???" else None
    for kind, words in (
        (bool, _PLAIN[bool]),
        (int, _PLAIN[int]),
        (float, _PLAIN[float]),
        (list, "a list"),
        (dict, "a mapping"),
        (str, _PLAIN[str]),
    ):
        if isinstance(value, kind):
            return words
    return ""


def _split(text: str) -> Iterable[str]:
    """Split at commas that stand outside of brackets."""
    depth, start = 0, 0
    for position, letter in enumerate(text):
        depth += (letter in "[{(") - (letter in ")}]")
        if letter == "," and depth == 0:
            yield text[start:position]
            start = position + 1
    yield text[start:]
