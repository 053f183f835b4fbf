"""The page of the Python API in the reference: signatures and docstrings, read from the source without importing it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_DOCUMENTED = (
    ("speechtrain.compose", "config/compose.py", ()),
    ("speechtrain.train", "train.py", ()),
    ("speechtrain.Result", "training/result.py", ()),
    ("speechtrain.load", "__init__.py", ()),
    ("speechtrain.inference.recognizer.Recognizer", "inference/recognizer.py", ("transcribe", "transcribe_all", "log_probs", "align")),
    ("speechtrain.tasks.base.Transcription", "tasks/base.py", ()),
    ("speechtrain.inference.alignment.Alignment", "inference/alignment.py", ()),
    ("speechtrain.backends.torch.encoder.Encoder", "backends/torch/encoder.py", ("forward", "output_lengths")),
    ("speechtrain.backends.callbacks.Callback", "backends/callbacks.py", None),
    ("speechtrain.sweep.report", "sweep/trial/report.py", ()),
)
"""What is documented: dotted name, file, and which methods of a class; None: all public ones."""
_SECTION = re.compile(r"^(Args|Returns|Raises|Attributes|Yields):$")


def python_page() -> str:
    """Return the page on the Python API."""
    lines = [
        "# The Python API\n",
        "`import speechtrain` has `compose`, `train`, `load` and `Result`; the rest is what you get from them or derive from.\n",
    ]
    for name, file, methods in _DOCUMENTED:
        lines += _described(name, _PACKAGE / file, methods)
    return "\n".join(lines)


def _described(name: str, file: Path, methods: tuple[str, ...] | None) -> Iterator[str]:
    short = name.rpartition(".")[2]
    nodes = ast.parse(file.read_text(encoding="utf-8")).body
    node = next(each for each in nodes if isinstance(each, (ast.FunctionDef, ast.ClassDef)) and each.name == short)
    yield f"## `{name}`\n"
    if isinstance(node, ast.FunctionDef):
        yield from _function(node)
        return
    yield from _docstring(node)
    for each in node.body:
        if isinstance(each, ast.FunctionDef) and (each.name in methods if methods is not None else not each.name.startswith("_")):
            yield f"### `{short}.{each.name}`\n"
            yield from _function(each)


def _function(node: ast.FunctionDef) -> Iterator[str]:
    returned = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
    arguments = [text for text in _arguments(node.args) if text not in ("self", "cls")]
    line = f"{node.name}({', '.join(arguments)}){returned}"
    if len(line) > _WIDEST:
        line = f"{node.name}(\n    " + ",\n    ".join(arguments) + f",\n){returned}"
    yield f"```text\n{line}\n```\n"
    yield from _docstring(node)


_WIDEST = 100


def _arguments(arguments: ast.arguments) -> list[str]:
    """Return the parameters of a function, each as it is written."""
    positional = [*arguments.posonlyargs, *arguments.args]
    without = len(positional) - len(arguments.defaults)
    parts = [_argument(each, arguments.defaults[index - without] if index >= without else None) for index, each in enumerate(positional)]
    if arguments.vararg is not None:
        parts.append(f"*{_argument(arguments.vararg, None)}")
    elif arguments.kwonlyargs:
        parts.append("*")
    parts += [_argument(each, default) for each, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    return parts


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    hint = f": {ast.unparse(argument.annotation)}" if argument.annotation is not None else ""
    if default is None:
        return f"{argument.arg}{hint}"
    return f"{argument.arg}{hint}{' = ' if hint else '='}{ast.unparse(default)}"


def _docstring(node: ast.FunctionDef | ast.ClassDef) -> Iterator[str]:
    """Yield a docstring as Markdown: its sections as lists."""
    section = ""
    for line in (ast.get_docstring(node) or "").splitlines():
        if (begun := _SECTION.match(line)) is not None:
            section = begun[1]
            yield f"**{section}**\n"
        elif not section:
            yield line
        elif (entry := re.match(r"^    ([\w*, ]+): (.*)$", line)) is not None:
            yield f"- `{entry[1]}`: {entry[2]}"
        else:
            yield f"  {line.strip()}" if line.strip() else ""
    yield ""
