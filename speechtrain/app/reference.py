"""Writes the reference of every config key, and JSON schemas of config files for editors: `python -m speechtrain.app.reference FOLDER`.

Both come from what `--explain` shows (`config.options`). `make reference` writes `docs/reference`; a test says when that is out of date.
"""

from __future__ import annotations

import json
import re
import sys
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from speechtrain.app.commands import COMMANDS, command_help, summary
from speechtrain.app.python_reference import python_page
from speechtrain.config.composition import CONF_DIR
from speechtrain.config.options import WITHOUT_KEYS, Key, Option, command_keys, groups, options_of, root_keys
from speechtrain.config.schemas import commands as command_schemas
from speechtrain.config.schemas.node import MOST
from speechtrain.files import write_text

SWEEPING = ("hydra/sweeper", "hydra/sweeper/sampler", "hydra/sweeper/pruner", "hydra/launcher")
"""The groups of a sweep, which share a page."""
_GENERATED = "<!-- Written by `make reference` from the comments of conf/ and the schemas: change those. -->\n"


def reference() -> dict[str, str]:
    """Return the files of the reference by their paths inside its folder."""
    by_group = {group: options_of(group, [CONF_DIR]) for group in groups([CONF_DIR])}
    files = {"config.md": _index(by_group), "commands.md": _commands(), "sweep.md": _sweep_page(by_group)}
    files["python.md"] = _GENERATED.replace("the comments of conf/ and the schemas", "docstrings") + "\n" + python_page()
    for group, options in by_group.items():
        if group not in (*SWEEPING, *WITHOUT_KEYS):
            files[f"{group}.md"] = _group_page(group, options)
            files[f"schema/{group}.json"] = _dump(_group_schema(options))
    files["schema/experiment.json"] = _dump(_experiment_schema([group for group in by_group if group not in (*SWEEPING, *WITHOUT_KEYS)]))
    return files


# Pages.


def _index(by_group: Mapping[str, list[Option]]) -> str:
    lines = [
        _GENERATED,
        "# Every config key\n",
        "A training is composed of one option of each group and of the keys below. `python -m speechtrain --explain KEY` prints what stands"
        " here in the terminal, for your own groups as well (`--config-dir`), and says which file or word sets a key now.\n",
        "| group | by default | what it chooses |\n|---|---|---|",
    ]
    for group, words in _GROUPS.items():
        page = "sweep.md" if group in SWEEPING else f"{group}.md"
        name = f"`{group}`" if group in WITHOUT_KEYS else f"[`{group}`]({page})"
        lines.append(f"| {name} | {_DEFAULTS.get(group, '')} | {words} |")
    missing = set(by_group) - set(_GROUPS)
    assert not missing, f"describe {sorted(missing)} in {__name__}._GROUPS"
    lines += ["\nThe options of `experiment` are in [the table of recipes](../recipes.md), those of `sweep` in [Sweeps](../sweeps.md)."]
    run = {name: key for name, key in root_keys().items() if name.partition(".")[0] != "hydra"}
    lines += ["\n## Keys of the run as a whole\n", *_table(run.items()), "\n## Hydra's own\n"]
    lines += _table((name, key) for name, key in root_keys().items() if name.startswith("hydra."))
    lines += [
        "\n## In your editor\n",
        "`docs/reference/schema` has a JSON schema for the files of each group, and `experiment.json` for experiments. Editors that use the"
        " YAML language server complete keys, show their meaning and mark what is wrong if the first line of your file names it:\n",
        "```yaml\n# yaml-language-server: $schema=../../docs/reference/schema/experiment.json\n```\n",
        "An installed package writes them into a folder of yours: `python -m speechtrain.app.reference FOLDER`.",
    ]
    return "\n".join(lines) + "\n"


_GROUPS = {
    "model": "the encoder and its size",
    "data": "the corpus, how it is checked, split and batched",
    "features": "what the model takes: mel energies, samples, features of another program",
    "augment": "what is done to training utterances",
    "tokenizer": "what is predicted: letters, pieces of words, words, phonemes, classes",
    "task": "text, classes or signals, with loss and scores",
    "optimizer": "how weights change in a step",
    "scheduler": "how the learning rate changes over the run",
    "trainer": "length of the run, precision, devices, checkpoints",
    "backend": "PyTorch, or Keras 3 on TensorFlow, JAX or PyTorch",
    "decoder": "how probabilities become text",
    "tracking": "where runs are recorded; several in brackets",
    "experiment": "a recipe: any of the above at once",
    "sweep": "what is varied with `-m`, and how",
    "hydra/sweeper": "what proposes trials, and how many",
    "hydra/sweeper/sampler": "how Optuna proposes values",
    "hydra/sweeper/pruner": "which trials end early or pause",
    "hydra/launcher": "where trials run",
}
_DEFAULTS = {
    "model": "`tdnn`",
    "data": "`digits`",
    "features": "`logmel`",
    "augment": "`light`",
    "tokenizer": "`char`",
    "task": "`ctc`",
    "optimizer": "`adamw`",
    "scheduler": "`warmup_cosine`",
    "trainer": "`default`",
    "backend": "`torch`",
    "decoder": "`greedy`",
    "tracking": "`[mlflow]`",
    "hydra/sweeper": "`optuna`",
    "hydra/sweeper/sampler": "`tpe`",
    "hydra/sweeper/pruner": "`median`",
    "hydra/launcher": "`pool` where `n_jobs` is above 1",
}


def _group_page(group: str, options: Sequence[Option]) -> str:
    lines = [_GENERATED, f"# `{group}`: {_GROUPS[group]}\n", *_options(group, options)]
    return "\n".join(lines) + "\n"


def _sweep_page(by_group: Mapping[str, list[Option]]) -> str:
    lines = [_GENERATED, "# Sweeps: sweeper, samplers, pruners, launchers\n"]
    lines.append("[Sweeps](../sweeps.md) is the how-to. Options of other packages, such as `hydra/launcher=joblib`, are theirs.")
    for group in SWEEPING:
        lines += [f"\n## `{group}`: {_GROUPS[group]}\n", *_options(group, by_group[group], level=3)]
    return "\n".join(lines) + "\n"


def _options(group: str, options: Sequence[Option], level: int = 2) -> Iterable[str]:
    """Yield the lines on the options of a group: a list of them, then the keys that each file sets."""
    yield f"| `{group}=` | |\n|---|---|"
    for option in options:
        yield f"| [`{option.name}`](#{_anchor(f'{group}={option.name}')}) | {_cell(option.summary)} |"
    shared = {name: key for option in options for name, key in option.keys.items() if key.entry.file.parent.name == "schema"}
    if shared:
        yield f"\n{'#' * level} Keys of every option\n"
        yield from _table((f"{options[0].package}.{name}", key) for name, key in shared.items())
    for option in options:
        yield f"\n{'#' * level} `{group}={option.name}`\n"
        yield f"{option.summary}\n"
        own = {name: key for name, key in option.keys.items() if key.entry.file == option.file}
        bases = {key.entry.file.stem for key in option.keys.values() if key.entry.file != option.file and key not in shared.values()}
        if own:
            yield from _table((f"{option.package}.{name}", key) for name, key in own.items())
        if bases:
            yield f"\nThe other keys are those of {', '.join(f'`{group}={name}`' for name in sorted(bases))}."
        elif not own:
            yield "It has no keys of its own." if not shared else "It has no further keys."


def _commands() -> str:
    lines = [_GENERATED, "# Every command\n"]
    lines.append("`speechtrain COMMAND` and `python -m speechtrain.COMMAND` are the same; `COMMAND --help` prints what stands here.\n")
    lines.append("| command | |\n|---|---|")
    lines += [f"| [`{name}`](#{name}) | {_cell(summary(name))} |" for name in COMMANDS]
    for name in COMMANDS:
        lines += [f"\n## {name}\n", f"```text\n{command_help(name)}\n```"]
        if name in command_schemas.COMMANDS:
            lines += ["", *_table(command_keys(name).items())]
    return "\n".join(lines) + "\n"


def _table(keys: Iterable[tuple[str, Key]]) -> Iterable[str]:
    yield "| key | type and range | default | meaning |\n|---|---|---|---|"
    for name, key in keys:
        kind, default = ("", "") if key.entry.is_node else (key.kind, _default(key))
        yield f"| `{name}` | {_cell(kind)} | {default} | {_cell(key.entry.comment)} |"


def _default(key: Key) -> str:
    """Return a default for a cell of a table, as code unless it is in words."""
    if key.default != key.entry.text:
        return _cell(key.default)
    return f"`{_cell(key.default)}`" if key.default else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;") if "`" not in text else text.replace("|", "\\|")


def _anchor(heading: str) -> str:
    """Return the anchor that GitHub and Python-Markdown both give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


# JSON schemas.


def _group_schema(options: Sequence[Option]) -> dict[str, Any]:
    """Return the schema of a group's config files: every key that one of the options has."""
    merged: dict[str, list[tuple[str, Key]]] = {}
    for option in options:
        for name, key in option.keys.items():
            merged.setdefault(name, []).append((option.name, key))
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {"defaults": _DEFAULTS_LIST, "_target_": {"type": ["string", "null"]}, **_properties(merged, "")},
        "if": {"properties": {"_target_": {"not": {"pattern": r"^(speechtrain|hydra_plugins)\."}}}, "required": ["_target_"]},
        "else": {"propertyNames": {"enum": ["defaults", "_target_", *sorted({name.partition(".")[0] for name in merged})]}},
    }


_DEFAULTS_LIST = {"type": "array", "description": "the options that this file is composed of; `_self_` stands for the file itself"}
_UNRESOLVED = {"type": "string", "pattern": r"\$\{|^\?\?\?$"}
"""An interpolation, or a value that must be given."""


def _properties(keys: Mapping[str, Sequence[tuple[str, Key]]], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, holders in keys.items():
        inside = name.removeprefix(prefix)
        if not name.startswith(prefix) or "." in inside:
            continue
        meanings: dict[str, list[str]] = {}
        for holder, key in holders:
            meanings.setdefault(key.entry.comment, []).append(holder)
        described = "; ".join(meaning if len(meanings) == 1 else f"{', '.join(who)}: {meaning}" for meaning, who in meanings.items())
        if holders[0][1].entry.is_node:
            found[inside] = {"description": described, "type": "object", "properties": _properties(keys, f"{name}.")}
            continue
        kinds: list[dict[str, Any]] = []
        for _, key in holders:
            kind = json_type(key.hint, key.limits)
            if kind not in kinds:
                kinds.append(kind)
        found[inside] = {"description": described, **({} if {} in kinds else {"anyOf": [*kinds, _UNRESOLVED]})}
    return found


def json_type(hint: Any, limits: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of a value; empty: it may be anything.

    Args:
        hint: its type, as a schema annotates the key.
        limits: bounds or choices.
    """
    if get_origin(hint) in (types.UnionType, Union):
        each = [json_type(one, limits) for one in get_args(hint)]
        return {} if {} in each else {"anyOf": each}
    if get_origin(hint) is list:
        return {"type": "array", "items": json_type(get_args(hint)[0], limits)}
    if get_origin(hint) is dict or hint is dict:
        return {"type": "object"}
    if hint is str and limits.get("choices"):
        return {"enum": list(limits["choices"])}
    if hint in (int, float):
        most = limits.get("most", MOST)
        bounds = {word: limits[name] for name, word in _BOUNDS.items() if limits.get(name) is not None}
        if most <= MOST and "maximum" not in bounds and "exclusiveMaximum" not in bounds and limits:
            bounds["maximum"] = most
        return {"type": "integer" if hint is int else "number", **bounds}
    kind = {str: "string", bool: "boolean", type(None): "null"}.get(hint)
    return {} if kind is None else {"type": kind}


_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def _experiment_schema(names: Sequence[str]) -> dict[str, Any]:
    """Return the schema of an experiment's file, which may set keys of the run and of every group."""
    run = {name: [("", key)] for name, key in root_keys().items() if name.partition(".")[0] != "hydra"}
    of_groups = {group: {"$ref": f"{group}.json"} for group in names if group != "tracking"}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {
            "defaults": _DEFAULTS_LIST,
            **of_groups,
            "tracking": {"type": "object"},
            "hydra": {"type": "object"},
            **_properties(run, ""),
        },
        "additionalProperties": False,
    }


def _dump(schema: Mapping[str, Any]) -> str:
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def write(folder: Path) -> None:
    """Write the reference into a folder, which is made where there is none."""
    for name, text in reference().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_text(folder / name, text)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
