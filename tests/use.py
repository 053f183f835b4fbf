"""Calls a command in this process, and makes a manifest of recordings for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import soundfile


def here(module: str, *arguments: str) -> int:
    """Run `python -m speechtrain.MODULE ARGUMENTS` in this process, which has imported everything, and return the exit code."""
    import importlib

    code: int = importlib.import_module(f"speechtrain.{module}").run(list(arguments))
    return code


def manifest(folder: Path, spoken: dict[str, str], change: Callable[[str], str] = str) -> Path:
    lines = [
        json.dumps({"audio_filepath": path, "duration": soundfile.info(path).duration, "text": change(text)})
        for path, text in spoken.items()
    ]
    folder.mkdir(exist_ok=True)
    for path in spoken:
        (folder / Path(path).name).write_bytes(Path(path).read_bytes())
    text = "\n".join(lines).replace(str(Path(next(iter(spoken))).parent) + "/", "")
    (folder / "all.jsonl").write_text(text + "\n")
    return folder
