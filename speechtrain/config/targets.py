"""What a `_target_` accepts, read from its source text: nothing is imported, so that a wrong config answers at once.

Only classes and functions written in Python can be read this way. For others (compiled, or made at run time) nothing is known here
and Python itself complains when the target is built.
"""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

Direction = Literal["minimize", "maximize"]
"""Which way a metric is better."""


class UnknownTargetError(Exception):
    """Nothing of that name; `nearest` are names that exist where it was looked for."""

    def __init__(self, message: str, nearest: list[str]) -> None:
        super().__init__(message)
        self.nearest = nearest


@dataclass
class Signature:
    """Parameters of a target, without `self`.

    Attributes:
        names: parameters that can be given by name.
        required: those without a default.
        open: takes any name (`**kwargs`).
    """

    names: list[str] = field(default_factory=list)
    required: list[str] = field(default_factory=list)
    open: bool = False


@dataclass(frozen=True)
class _Module:
    name: str
    origin: str | None
    is_package: bool


def signature(target: str) -> Signature | None:
    """The signature of a dotted path; None if it exists but cannot be read.

    Raises:
        UnknownTargetError: there is no such module, class or function.
    """
    return _resolve(target, depth=0)


def _resolve(target: str, depth: int) -> Signature | None:
    parts = target.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise UnknownTargetError(f"'{target}' is not a dotted path like package.module.Name", [])
    spec: _Module | None = None
    rest = parts
    for count in range(1, len(parts) + 1):
        found = _find_module(".".join(parts[:count]))
        if found is None:
            break
        spec, rest = found, parts[count:]
    if spec is None:
        raise UnknownTargetError(f"there is no module '{parts[0]}' to import from {_where()}", [])
    if not rest:
        raise UnknownTargetError(f"'{target}' is a module, not a class or function", _definitions(spec))
    if spec.origin is None or not spec.origin.endswith(".py"):
        return None
    if len(rest) > 1:
        return None if rest[0] in _definitions(spec) else _unknown(rest[0], spec)
    return _lookup(rest[0], spec, depth)


def _where() -> str:
    return f"this folder ({Path.cwd()}) or the installed packages"


def _unknown(name: str, spec: _Module) -> Signature | None:
    raise UnknownTargetError(f"module '{spec.name}' has no '{name}'", [f"{spec.name}.{known}" for known in _definitions(spec)])


def _lookup(name: str, spec: _Module, depth: int) -> Signature | None:
    if depth > 8:
        return None
    tree = _parse(str(spec.origin))
    for node in _statements(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == name:
            return _of_function(node, skip_first=False)
        if isinstance(node, ast.ClassDef) and node.name == name:
            return _of_class(node, spec, depth)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _resolve(f"{_imported_module(node, spec)}.{alias.name}", depth + 1)
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(item, ast.Name) and item.id == name for item in targets):
                return None
    if any(isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in tree.body) or _has(tree, "__getattr__"):
        return None
    return _unknown(name, spec)


def _imported_module(node: ast.ImportFrom, spec: _Module) -> str:
    if not node.level:
        return node.module or ""
    package = spec.name if spec.is_package else spec.name.rpartition(".")[0]
    for _ in range(node.level - 1):
        package = package.rpartition(".")[0]
    return f"{package}.{node.module}" if node.module else package


def _of_class(node: ast.ClassDef, spec: _Module, depth: int) -> Signature | None:
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name in ("__init__", "__new__"):
            return _of_function(item, skip_first=True)
    own = Signature()
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and "ClassVar" not in ast.unparse(item.annotation):
                own.names.append(item.target.id)
                if item.value is None:
                    own.required.append(item.target.id)
    for base in node.bases:
        if isinstance(base, ast.Subscript):
            base = base.value
        if not isinstance(base, ast.Name):
            return None
        if base.id in ("object", "ABC", "Protocol", "Generic"):
            continue
        try:
            inherited = _lookup(base.id, spec, depth + 1)
        except UnknownTargetError:
            return None
        if inherited is None:
            return None
        own = Signature(inherited.names + own.names, inherited.required + own.required, inherited.open)
    return own


def _of_function(node: ast.FunctionDef | ast.AsyncFunctionDef, *, skip_first: bool) -> Signature:
    positional = [*node.args.posonlyargs, *node.args.args]
    without_default = positional[: len(positional) - len(node.args.defaults)]
    names = [arg.arg for arg in positional[skip_first:]] + [arg.arg for arg in node.args.kwonlyargs]
    required = [arg.arg for arg in without_default[skip_first:]]
    required += [arg.arg for arg, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True) if default is None]
    return Signature(names, required, node.args.kwarg is not None)


def _find_module(name: str) -> _Module | None:
    """Like `importlib.util.find_spec`, but without importing the parent packages."""
    path: list[str] | None = None
    module: _Module | None = None
    for part in name.split("."):
        found = importlib.machinery.PathFinder.find_spec(part, path)
        if found is None and path is None:
            found = importlib.util.find_spec(part) or importlib.machinery.PathFinder.find_spec(part, [str(Path.cwd())])
        if found is None:
            return None
        path = None if found.submodule_search_locations is None else list(found.submodule_search_locations)
        module = _Module(f"{module.name}.{part}" if module else part, found.origin, path is not None)
        path = path or []
    return module


@lru_cache
def _parse(origin: str) -> ast.Module:
    return ast.parse(Path(origin).read_text(encoding="utf-8"))


def _statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """Top-level statements, those inside `if` and `try` included."""
    for node in tree.body:
        yield node
        for block in ("body", "orelse", "finalbody"):
            if isinstance(node, (ast.If, ast.Try)):
                yield from getattr(node, block, [])


def _has(tree: ast.Module, name: str) -> bool:
    return any(isinstance(node, ast.FunctionDef) and node.name == name for node in tree.body)


def _definitions(spec: _Module) -> list[str]:
    if spec.origin is None or not spec.origin.endswith(".py"):
        return []
    names = []
    for node in _statements(_parse(spec.origin)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.append(node.name)
        elif isinstance(node, ast.ImportFrom):
            names += [alias.asname or alias.name for alias in node.names]
    return [name for name in names if not name.startswith("_")]


def class_constant(target: str, name: str) -> object:
    """A literal that a class of this package assigns to a name in its body, read without importing; None if there is none."""
    module, _, wanted = target.rpartition(".")
    spec = _find_module(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    for node in _statements(_parse(spec.origin)):
        if isinstance(node, ast.ClassDef) and node.name == wanted:
            for item in node.body:
                given = [item.target] if isinstance(item, ast.AnnAssign) else item.targets if isinstance(item, ast.Assign) else []
                if any(isinstance(each, ast.Name) and each.id == name for each in given) and getattr(item, "value", None) is not None:
                    return _literal(item.value)  # type: ignore[attr-defined]
    return None


def task_directions(target: str) -> dict[str, Any]:
    """Which way each metric of a task is better, read from its source without importing it; empty if that cannot be told."""
    found = class_constant(target, "directions") if "." in target else None
    return found if isinstance(found, dict) else {}


def _literal(node: ast.expr) -> object:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None
