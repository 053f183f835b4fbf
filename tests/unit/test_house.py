"""The order of the house: what may lie at the roots of repository and package, and how docstrings read."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import speechtrain
from speechtrain.app import commands

PACKAGE = Path(speechtrain.__file__).parent
COMMANDS = {commands.TRAIN, *(name for name in commands.COMMANDS if not (PACKAGE / name).is_dir())}
"""The commands that are files; the others are the `__main__.py` of a room."""
SHARED = {"errors", "console", "files", "addresses"}
ROOMS = {
    *("app", "sweep", "training", "inference", "report", "tracking", "backends", "tasks", "decode", "data", "config", "processes"),
    *(["conf"] if (PACKAGE / "conf").is_dir() else []),  # in a wheel
}
CLEAN = [
    *(f"{name}.py" for name in sorted({"__init__", "__main__"} | COMMANDS | SHARED)),
    "app",
    "sweep",
    "config",
    "processes",
    "report",
    "tracking",
    "training",
    "backends/base.py",
    "backends/callbacks.py",
    "backends/failures.py",
    "backends/schedules.py",
    "backends/checkpoint_files.py",
    "backends/torch",
    "backends/keras",
    "inference",
    "tasks",
    "decode",
    "data",
]
"""Files and folders whose docstrings are sentences; whoever goes through a room adds it."""
LEAST_WORDS = 5
TOP = {
    *("README.md", "CONTRIBUTING.md", "CODE_OF_CONDUCT.md", "SECURITY.md", "CHANGELOG.md", "CITATION.cff", "LICENSE"),
    *("pyproject.toml", "requirements.lock", "Makefile"),
    *("Dockerfile", ".dockerignore", "compose.yaml"),
    *(".ci", ".github", ".gitignore", ".pre-commit-config.yaml"),
    *("speechtrain", "hydra_plugins", "conf", "tests", "benchmarks", "docs", "multirun", "packages"),
}
"""What is tracked at the repository's root: what people or tools look for there by name, and folders."""


def test_the_repository_has_at_its_root_only_what_is_looked_for_there() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("the tests do not lie in a git repository")
    assert {line.partition("/")[0] for line in listed.stdout.splitlines()} == TOP


def test_the_root_holds_what_a_user_types_and_what_every_room_may_use() -> None:
    modules = {path.stem for path in PACKAGE.glob("*.py")}
    assert modules == {"__init__", "__main__"} | COMMANDS | SHARED, "another module belongs in the room whose work it does"
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == ROOMS


def test_a_command_is_a_file_that_parses_calls_and_prints() -> None:
    lengths = {name: len((PACKAGE / f"{name}.py").read_text(encoding="utf-8").splitlines()) for name in sorted(COMMANDS)}
    assert {name: length for name, length in lengths.items() if length > 210} == {}, "the work of a command belongs in a room"


@pytest.mark.parametrize("room", CLEAN)
def test_a_docstring_is_a_sentence(room: str) -> None:
    place = PACKAGE / room
    assert place.exists(), f"{room} in CLEAN is no file or folder of the package"
    methods = methods_by_class()
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place]
    assert [problem for file in files for problem in problems_of(file, methods)] == []


def problems_of(file: Path, methods: dict[str, tuple[set[str], set[str]]]) -> Iterator[str]:
    """Yield `FILE:LINE NAME: DOCSTRING` of the docstrings of public names that are too short for a sentence or have no full stop."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for name, node in documented(tree, file.stem, methods):
        text = ast.get_docstring(node)
        if text is None:
            continue  # which ruff asks for where it is needed
        first = " ".join(text.partition("\n\n")[0].split())
        if len(first.split()) < LEAST_WORDS or not first.endswith((".", ".)", ".`", ":")):
            yield f"{file.relative_to(PACKAGE)}:{getattr(node, 'lineno', 1)} {name}: {first!r}"


def documented(
    tree: ast.Module, name: str, methods: dict[str, tuple[set[str], set[str]]]
) -> Iterator[tuple[str, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield the module, its public classes and functions, and the public methods that are neither properties nor overrides."""
    yield name, tree
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("_"):
            yield node.name, node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node
            inherited = set().union(*(names_in(base, methods) for base in bases_of(node)))
            for each in node.body:
                if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef)) and not each.name.startswith("_"):
                    decorators = {ast.unparse(decorator) for decorator in each.decorator_list}
                    if each.name not in inherited and not decorators & {"property", "cached_property", "override"}:
                        yield f"{node.name}.{each.name}", each


def bases_of(node: ast.ClassDef) -> set[str]:
    return {ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in node.bases}


def names_in(name: str, methods: dict[str, tuple[set[str], set[str]]]) -> set[str]:
    bases, names = methods.get(name, (set(), set()))
    return names.union(*(names_in(base, methods) for base in bases - {name}))


@cache
def methods_by_class() -> dict[str, tuple[set[str], set[str]]]:
    """Bases and methods of every class of the package, by the class's name."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                names = {each.name for each in node.body if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef))}
                bases, known = found.get(node.name, (set(), set()))
                found[node.name] = (bases | bases_of(node), known | names)
    return found
