"""Reads the Dockerfile and compose.yaml as far as they use their languages."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass
class Stage:
    """A stage of the Dockerfile: its instructions in order, those of the stages that it is built from included."""

    name: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        return [arguments for name, arguments in self.instructions if name == instruction]

    def last(self, instruction: str) -> str:
        return self.all(instruction)[-1]

    @property
    def command(self) -> list[str]:
        return list(json.loads(self.last("CMD")))

    @property
    def health_check(self) -> list[str]:
        return list(json.loads(self.last("HEALTHCHECK").partition("CMD ")[2]))

    @property
    def commands(self) -> list[list[str]]:
        """The commands of its RUN instructions, without the instructions' own options."""
        words = [[word for word in shlex.split(run) if not word.startswith("--mount=")] for run in self.all("RUN")]
        return [part.split("\0") for run in words for part in "\0".join(run).split("\0&&\0")]


def stages() -> dict[str, Stage]:
    """The stages of the Dockerfile by name."""
    text = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
    lines = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    found: dict[str, Stage] = {}
    current = Stage("")
    for line in filter(str.strip, lines):
        instruction, _, arguments = line.partition(" ")
        if instruction == "FROM":
            origin, _, name = arguments.partition(" AS ")
            parent = found.get(origin, Stage(""))
            current = found[name] = Stage(name, [*parent.instructions, (instruction, origin)])
        else:
            current.instructions.append((instruction, " ".join(arguments.split())))
    return found


def compose(environment: Mapping[str, str]) -> dict[str, Any]:
    """What compose.yaml says with these variables set.

    Raises:
        KeyError: a variable that it asks for is missing; the message is the file's.
    """

    def value(match: re.Match[str]) -> str:
        name, kind, text = match["name"], match["kind"], match["text"]
        if environment.get(name):
            return environment[name]
        if kind == ":?":
            raise KeyError(text)
        return text or ""

    text = (REPOSITORY / "compose.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(re.sub(r"\$\{(?P<name>\w+)(?:(?P<kind>:[?-])(?P<text>[^}]*))?\}", value, text)))
