"""Which arguments a `_target_` accepts, read from its source text: nothing is imported, so a wrong config is refused at once.

Only classes and functions written in Python can be read this way. Of others (compiled, or made at run time) the signature is unknown
here, and Python itself raises when the target is built.
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
    """A `_target_` names nothing that exists; `nearest` are the names in the module where it was looked for."""

    def __init__(self, message: str, nearest: list[str]) -> None:
        super().__init__(message)
        self.nearest = nearest


@dataclass
class Signature:
    """The parameters that a target accepts, without `self`.

    Attributes:
        names: all parameters, in order.
        required: the parameters without a default.
        open: whether any other name is accepted too (`**kwargs`).
        annotations: types of parameters, as far as they are written.
    """

    names: list[str] = field(default_factory=list)
    required: list[str] = field(default_factory=list)
    open: bool = False
    annotations: dict[str, ast.expr] = field(default_factory=dict)


@dataclass(frozen=True)
class _Module:
    name: str
    origin: str | None
    is_package: bool


def signature(target: str) -> Signature | None:
    """Return the signature of a dotted path; None if it exists but cannot be read.

    Raises:
        UnknownTargetError: there is no such module, class or function.
    """
    return _resolve(target, depth=0)


def _resolve(target: str, depth: int) -> Signature | None:
    parts = target.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise UnknownTargetError(f"'{target}' is not a dotted path like package.module.Name", [])
    module: _Module | None = None
    rest = parts
    for count in range(1, len(parts) + 1):
        deeper = _find_module(".".join(parts[:count]))
        if deeper is None:
            break
        module, rest = deeper, parts[count:]
    if module is None:
        raise UnknownTargetError(f"there is no module '{parts[0]}' to import from {_where()}", [])
    if not rest:
        raise UnknownTargetError(f"'{target}' is a module, not a class or function", _definitions(module))
    if module.origin is None or not module.origin.endswith(".py"):
        return None
    if len(rest) > 1:
        if (renamed := _module_under_another_name(rest[0], module)) is not None and depth < _MAX_DEPTH:
            return _resolve(".".join((renamed, *rest[1:])), depth + 1)
        if rest[0] not in _definitions(module):
            raise _unknown(rest[0], module)
        return None
    return _lookup(rest[0], module, depth)


def _module_under_another_name(name: str, module: _Module) -> str | None:
    """Return the module that another one imports under a name, as `os` does `posixpath` under `path`; None: it imports none so."""
    imports = (node for node in _statements(_parse(str(module.origin))) if isinstance(node, ast.Import))
    return next((alias.name for node in imports for alias in node.names if alias.asname == name), None)


def _where() -> str:
    return f"this folder ({Path.cwd()}) or the installed packages"


def _unknown(name: str, module: _Module) -> UnknownTargetError:
    return UnknownTargetError(f"module '{module.name}' has no '{name}'", [f"{module.name}.{known}" for known in _definitions(module)])


def _lookup(name: str, module: _Module, depth: int) -> Signature | None:
    """Return the signature of a name at the top of a module; None if it cannot be read.

    Raises:
        UnknownTargetError: the module has no such name.
    """
    if depth > _MAX_DEPTH:
        return None
    tree = _parse(str(module.origin))
    for node in _statements(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == name:
            return _signature_of_function(node, skip_first=False)
        if isinstance(node, ast.ClassDef) and node.name == name:
            return _signature_of_class(node, module, depth)
        if isinstance(node, ast.ImportFrom) and (origin := _name_at_origin(node, name)) is not None:
            return _resolve(f"{_imported_module(node, module)}.{origin}", depth + 1)
        if _assigns(node, name):
            return None
    if any(isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in tree.body) or _has(tree, "__getattr__"):
        return None
    raise _unknown(name, module)


_MAX_DEPTH = 8
"""Imports and base classes that are followed at most: they may go in a circle."""


def _name_at_origin(node: ast.ImportFrom, name: str) -> str | None:
    """Return what an imported name is called where it comes from; None if the statement does not import it."""
    return next((alias.name for alias in node.names if (alias.asname or alias.name) == name), None)


def _assigns(node: ast.stmt, name: str) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return any(isinstance(item, ast.Name) and item.id == name for item in targets)


def _imported_module(node: ast.ImportFrom, module: _Module) -> str:
    if not node.level:
        return node.module or ""
    package = module.name if module.is_package else module.name.rpartition(".")[0]
    for _ in range(node.level - 1):
        package = package.rpartition(".")[0]
    return f"{package}.{node.module}" if node.module else package


def _signature_of_class(node: ast.ClassDef, module: _Module, depth: int) -> Signature | None:
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name in ("__init__", "__new__"):
            return _signature_of_function(item, skip_first=True)
    signature = _dataclass_fields(node)
    for base in node.bases:
        inherited = _signature_of_base(base.value if isinstance(base, ast.Subscript) else base, module, depth)
        if inherited is None:
            return None
        names, required = inherited.names + signature.names, inherited.required + signature.required
        annotations = {**inherited.annotations, **signature.annotations}
        signature = Signature(names, required, inherited.open or signature.open, annotations)
    return signature


def _dataclass_fields(node: ast.ClassDef) -> Signature:
    """Return the arguments that a dataclass takes for its own fields; none for another class."""
    signature = Signature()
    if not any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return signature
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and "ClassVar" not in ast.unparse(item.annotation):
            signature.names.append(item.target.id)
            signature.annotations[item.target.id] = item.annotation
            if item.value is None:
                signature.required.append(item.target.id)
    return signature


def _signature_of_base(base: ast.expr, module: _Module, depth: int) -> Signature | None:
    """Return the signature of a base class; None if it cannot be read."""
    if not isinstance(base, ast.Name):
        return None
    if base.id in ("object", "ABC", "Protocol", "Generic"):
        return Signature()
    try:
        return _lookup(base.id, module, depth + 1)
    except UnknownTargetError:
        return None


def _signature_of_function(node: ast.FunctionDef | ast.AsyncFunctionDef, *, skip_first: bool) -> Signature:
    positional = [*node.args.posonlyargs, *node.args.args]
    without_default = positional[: len(positional) - len(node.args.defaults)]
    names = [arg.arg for arg in positional[skip_first:]] + [arg.arg for arg in node.args.kwonlyargs]
    required = [arg.arg for arg in without_default[skip_first:]]
    required += [arg.arg for arg, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True) if default is None]
    annotations = {arg.arg: arg.annotation for arg in (*positional, *node.args.kwonlyargs) if arg.annotation is not None}
    return Signature(names, required, node.args.kwarg is not None, annotations)


_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "str": ((str,), "a text"),
    "None": ((type(None),), "null"),
}


def type_mismatch(value: object, annotation: ast.expr) -> str | None:
    """Return in words what a value must be by the annotation of its parameter; None: it fits, or the annotation is not a simple one."""
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        left, right = type_mismatch(value, annotation.left), type_mismatch(value, annotation.right)
        return f"{left} or {right}" if left is not None and right is not None else None
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) in ("list", "Sequence"):
        if not isinstance(value, list):
            return "a list"
        return next((f"a list, each item {wanted}" for item in value if (wanted := type_mismatch(item, annotation.slice))), None)
    name = ast.unparse(annotation)
    if name not in _TYPES or (name == "int" and isinstance(value, float) and value.is_integer()):
        return None
    kinds, words = _TYPES[name]
    return None if isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool)) else words


def _find_module(name: str) -> _Module | None:
    """Find a module as `importlib.util.find_spec` does, but without importing its parent packages."""
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
    """Yield the top-level statements, those inside `if` and `try` included."""
    for node in tree.body:
        yield node
        for block in ("body", "orelse", "finalbody"):
            if isinstance(node, (ast.If, ast.Try)):
                yield from getattr(node, block, [])


def _has(tree: ast.Module, name: str) -> bool:
    return any(isinstance(node, ast.FunctionDef) and node.name == name for node in tree.body)


def _definitions(module: _Module) -> list[str]:
    if module.origin is None or not module.origin.endswith(".py"):
        return []
    names = []
    for node in _statements(_parse(module.origin)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.append(node.name)
        elif isinstance(node, ast.ImportFrom):
            names += [alias.asname or alias.name for alias in node.names]
    return [name for name in names if not name.startswith("_")]


def class_constant(target: str, name: str) -> object:
    """Return the literal that a class assigns to a name in its body, read without importing; None if there is none."""
    path, _, wanted = target.rpartition(".")
    module = _find_module(path)
    if module is None or module.origin is None or not module.origin.endswith(".py"):
        return None
    for node in _statements(_parse(module.origin)):
        if isinstance(node, ast.ClassDef) and node.name == wanted:
            for item in node.body:
                if isinstance(item, (ast.Assign, ast.AnnAssign)) and _assigns(item, name) and item.value is not None:
                    return _literal(item.value)
    return None


def task_directions(target: str) -> dict[str, Any]:
    """Return which way each metric of a task is better, read from its source without importing it; empty if it cannot be read."""
    directions = class_constant(target, "directions") if "." in target else None
    return directions if isinstance(directions, dict) else {}


def _literal(node: ast.expr) -> object:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None
