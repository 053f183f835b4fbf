"""Checks a typed node, and the nodes inside it, by its schema: missing values, ranges, and its own rules."""

from __future__ import annotations

import dataclasses
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, get_args, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from speechtrain.config.schemas.node import MOST, Node
from speechtrain.errors import Problem, did_you_mean

NO_VALUE = "has no value"
NOT_CHOSEN = "is not chosen"
"""The messages of a key and of a group that are missing."""


def find_node_problems(node: Any, path: str, *, with_rules: bool = True) -> list[Problem]:
    """Return the problems of one typed node: missing values, ranges and, unless they are left out, its own rules."""
    return list(_walk(node, path, with_rules=with_rules))


def _walk(node: Any, path: str, *, with_rules: bool = True) -> Iterator[Problem]:
    """Yield missing values, values out of range and what breaks a node's own rules, from the leaves up."""
    clean = True
    for problem in _values(node, path):
        clean = False
        yield problem
    for key, child in child_nodes(node):
        for problem in _walk(child, f"{path}.{key}" if path else key, with_rules=with_rules):
            clean = False
            yield problem
    kind = OmegaConf.get_type(node)
    schemas = [each for each in getattr(kind, "__mro__", ()) if issubclass(each, Node) and each is not Node and "rules" in vars(each)]
    clean = clean and with_rules
    typed: Any = OmegaConf.to_object(node) if clean and schemas else None
    for schema in schemas if clean else []:
        for key, message, fix in schema.rules(typed):
            yield Problem(".".join(part for part in (path, key) if part), message, fix)


def child_nodes(node: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """Yield the groups and options inside a node that are nodes themselves, by their keys."""
    keys: list[Any] = list(node)
    for key in keys:
        if not OmegaConf.is_interpolation(node, key) and not OmegaConf.is_missing(node, key) and isinstance(node[key], DictConfig):
            yield str(key), node[key]


def _values(node: DictConfig, path: str) -> Iterator[Problem]:
    kind = OmegaConf.get_type(node)
    fields = {field.name: field for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else {}
    for key in node:
        dotted = f"{path}.{key!s}" if path else str(key)
        if OmegaConf.is_missing(node, key):
            yield Problem(dotted, NO_VALUE, f"set it: {dotted}=...") if path else Problem(dotted, NOT_CHOSEN, f"set it: {dotted}=OPTION")
            continue
        try:
            value = node[key]
        except OmegaConfBaseException as error:
            yield Problem(dotted, re.sub(r"^\w+ raised while resolving interpolation: ", "", str(error).splitlines()[0]), "")
            continue
        if fields and "_target_" not in fields and key not in fields:  # added with `+`; a target says itself what it takes
            yield Problem(dotted, "there is no such key", did_you_mean(str(key), fields, prefix=path))
            continue
        if str(key) not in fields:
            continue  # of a target of the user's own
        limits = fields[str(key)].metadata
        if _has_nested_items(value, kind, str(key)):
            yield Problem(dotted, f"must hold single values, received {OmegaConf.to_container(value)!s:.80}")
            continue
        for item in _items(value):
            if (message := _outside(item, limits)) is not None:
                shown = list(value) if isinstance(value, (ListConfig, list)) else value
                fix = did_you_mean(str(item), limits["choices"]) if limits.get("choices") else ""
                yield Problem(dotted, f"{message}, received {shown!r:.80}", fix)
                break


def _has_nested_items(value: object, kind: Any, key: str) -> bool:
    """Return whether a list or mapping of single values holds lists or mappings, which OmegaConf takes for them."""
    if not isinstance(value, (ListConfig, DictConfig)):
        return False
    hint = _type_hints(kind)[key]
    wanted = {get_args(each)[-1] for each in (hint, *get_args(hint)) if get_args(each)}
    items = value if isinstance(value, ListConfig) else value.values()
    return bool(wanted & {int, float, str, bool}) and any(isinstance(item, (ListConfig, DictConfig)) for item in items)


_type_hints = lru_cache(get_type_hints)


def _items(value: Any) -> Iterator[Any]:
    """Yield the values inside lists, and in mappings that have no schema of their own."""
    if isinstance(value, (ListConfig, list)):
        for item in value:
            yield from _items(item)
    elif isinstance(value, DictConfig):
        keys: list[Any] = list(value) if OmegaConf.get_type(value) is dict else []
        for key in keys:
            if not OmegaConf.is_missing(value, key) and not OmegaConf.is_interpolation(value, key):
                yield from _items(value[key])
    else:
        yield value


def _outside(value: Any, limits: Mapping[str, Any]) -> str | None:
    if value is None:
        return None
    if "choices" in limits:
        return None if value in limits["choices"] else f"must be one of {', '.join(limits['choices'])}"
    if not isinstance(value, (int, float)):
        return None
    bounds = {name: limits[name] for name in _BOUNDS if limits.get(name) is not None}
    if not all(_BOUNDS[name][0](value, bound) for name, bound in bounds.items()):
        return "must be " + " and ".join(f"{_BOUNDS[name][1]} {bound}" for name, bound in bounds.items())
    if value != value:
        return "must be a number"
    most = limits.get("most", MOST)
    if -most <= value <= most:
        return None
    bound = most if value > 0 else -most
    return f"must be {'at most' if value > 0 else 'at least'} {f'{bound:,.0f}' if most < 1e15 else f'{bound:g}'}"


BOUND_WORDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
"""The bounds of a number in words."""
_BOUNDS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "ge": (operator.ge, BOUND_WORDS["ge"]),
    "gt": (operator.gt, BOUND_WORDS["gt"]),
    "le": (operator.le, BOUND_WORDS["le"]),
    "lt": (operator.lt, BOUND_WORDS["lt"]),
}
