"""What an archive holds, as lines for people: training, evaluations, and each export with what was measured of it."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from speechtrain.backends import zip_files
from speechtrain.console import format_metric
from speechtrain.data.text.normalize import visible
from speechtrain.errors import UserError, first_line, printable, shortened
from speechtrain.inference.archive import read_index

_EXPORT = "python -m speechtrain.export"
_HISTORY, _RUN, _EVALUATION = "history.jsonl", "run.json", "evaluation.json"


def archive_lines(path: Path) -> Iterator[str]:
    """Yield what an archive holds; characters that are not seen, such as escapes that change a terminal, by their names.

    Raises:
        UserError: the file is no archive, or is damaged, or a file in it is not what it should be.
    """
    index = read_index(path)
    try:
        for line in _lines(path, index):
            yield visible(shortened(printable(line)))
    except (*zip_files.UNREADABLE, OverflowError) as error:
        reason = visible(printable(first_line(error)))
        raise UserError(f"{path}: what is in the archive cannot be told ({reason})\n    -> write it again with {_EXPORT}") from error


def _lines(path: Path, index: Mapping[str, Any]) -> Iterator[str]:
    names = sorted(index["files"])
    with zip_files.opened(path) as archive:
        yield f"archive     {path}: {len(names)} files, {path.stat().st_size / 1e6:.2f} MB, backend={index.get('backend', '?')}"
        run = _mapping(archive, _RUN, names)
        if tested := _named(run.get("metrics"), "test/"):
            yield f"tested      {_listed(tested)}"
        yield from _history(archive, names)
        for name in names:
            place = PurePosixPath(name)
            if place.name == _EVALUATION:
                yield f"evaluation  {place.parent}: {_listed(_numbers(_mapping(archive, name, names)))}"
            elif place.parts[0] == "exports" and place.suffix == ".json":
                yield from _export(place, _mapping(archive, name, names))


def _history(archive: zipfile.ZipFile, names: list[str]) -> Iterator[str]:
    if _HISTORY not in names:
        return
    epochs = [json.loads(line) for line in zip_files.read_text(archive, _HISTORY).splitlines() if line.strip()]
    for title, epoch in (("first", epochs[:1]), ("last", epochs[-1:])):
        for values in epoch:
            shown = {name: value for name, value in _numbers(values).items() if name.startswith(("train/loss", "val/"))}
            yield f"history     {title} of {len(epochs)} epochs: {_listed(shown)}"


def _export(place: PurePosixPath, facts: Mapping[str, Any]) -> Iterator[str]:
    kind = facts.get("format", place.stem)
    yield f"export      {kind}: {_listed(_numbers(facts) | _named(facts.get('metrics'), ''))}"
    if isinstance(facts.get("operators"), dict):
        yield f"operators   {', '.join(f'{name} {count}' for name, count in facts['operators'].items())}"


def _mapping(archive: zipfile.ZipFile, name: str, names: list[str]) -> dict[str, Any]:
    if name not in names:
        return {}
    values = json.loads(zip_files.read_text(archive, name))
    return values if isinstance(values, dict) else {}


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in values.items() if isinstance(value, (int, float)) and not isinstance(value, bool)}


def _named(values: Any, stage: str) -> dict[str, float]:
    return {name: value for name, value in _numbers(values if isinstance(values, dict) else {}).items() if name.startswith(stage)}


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(
        f"{name} {value:,}" if isinstance(value, int) else f"{name} {format_metric(name, value)}" for name, value in values.items()
    )
