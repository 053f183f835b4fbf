"""`--explain KEY`: what a key or a group means, what it accepts, its default, and which file or word sets it."""

from __future__ import annotations

import difflib
import inspect
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from speechtrain.config.comments import entries_of
from speechtrain.config.composition import REFUSED, ComposedFile, config_folders, files_of
from speechtrain.config.explain import explain
from speechtrain.config.options import WITHOUT_KEYS, Key, Option, command_keys, groups, options_of, root_keys
from speechtrain.config.schemas.commands import COMMANDS
from speechtrain.console import console, print_table
from speechtrain.errors import UserError

FLAG = "--explain"


def print_explanation(words: Sequence[str], config_dir: str | None = None, command: str | None = None) -> None:
    """Print what the keys and groups among the words mean; the words with `=` choose options and set values, as those of a training do.

    Args:
        words: as typed, without other options of the program.
        config_dir: the user's own folder of configs.
        command: the command that was typed, whose own keys may stand without its name.

    Raises:
        UserError: there is no such key or option, or no key is named.
    """
    names = [word for word in words if "=" not in word and not word.startswith("~") and word != FLAG]
    overrides = [word for word in words if word not in names and word != FLAG]
    own = command_keys(command) if command in COMMANDS else {}
    names = [f"{command}.{name}" if name in own else name for name in names]
    if not names and len(overrides) == 1:  # model=conformer
        names = [overrides[0].lstrip("+").partition("=")[0]]
    if not names:
        raise UserError(f"{FLAG}: no key is named\n    -> for example {FLAG} model, or {FLAG} trainer.epochs")
    try:
        book = _Book(config_dir, overrides, files_of(overrides, config_dir))
    except REFUSED as error:
        raise explain(overrides, error, config_dir) from None
    for position, name in enumerate(names):
        if position:
            console.print()
        _print_one(book, name)


@dataclass
class _Book:
    """Holds everything that can be explained.

    Attributes:
        config_dir: the user's own folder of configs.
        overrides: the words with `=`.
        composed: the files that the config is composed of with them.
    """

    config_dir: str | None
    overrides: Sequence[str]
    composed: Sequence[ComposedFile]

    @cached_property
    def folders(self) -> list[Path]:
        """Return the folders of configs."""
        return config_folders(self.config_dir)

    @cached_property
    def groups(self) -> list[str]:
        """Return the names of all groups."""
        return groups(self.folders)

    @cached_property
    def run(self) -> dict[str, Key]:
        """Return the keys of the run as a whole."""
        return root_keys()

    def chosen(self, group: str) -> list[str]:
        """Return the options of a group that the config is composed of, without those that they derive from."""
        last: dict[str, str] = {}
        for file in self.composed:
            of_group, _, name = file.option.rpartition("/")
            if of_group == group:
                last[file.package] = name
        return list(last.values())

    def group_of(self, name: str) -> str | None:
        """Return the group that a key belongs to; None: it belongs to the run as a whole or to a command."""
        parts = name.replace("/", ".").split(".")
        found = [group for group in self.groups if group.split("/") == parts[: group.count("/") + 1]]
        return max(found, key=len, default=None)

    def place(self, name: str) -> tuple[str, str] | None:
        """Return the value of a key as it is written, and where: a word of the command line, or the last file that sets it."""
        for word in reversed(self.overrides):
            key, _, value = word.lstrip("+").partition("=")
            if key == name:
                return value, "the command line"
        for file in reversed(self.composed):
            inside = name.removeprefix(f"{file.package}.") if file.package else name
            if (inside != name or not file.package) and (entry := entries_of(file.path).get(inside)) is not None:
                return entry.text, f"{shown(file.path)}:{entry.line}"
        return None


def shown(path: Path) -> str:
    """Return a path as it is typed in this folder, or whole if it lies elsewhere."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _print_one(book: _Book, typed: str) -> None:
    name = typed.replace("/", ".")
    group = book.group_of(typed)
    if group is not None and name == group.replace("/", "."):
        _print_group(book, group)
        return
    found = list(_holders(book, name, group))
    if not found and typed not in COMMANDS:
        raise UserError(_unknown(book, typed, group))
    if found:
        _print_keys(book, name, group, found)
    if typed in COMMANDS:
        console.print(f"{chr(10) if found else ''}Keys of [bold]speechtrain {typed}[/]:\n")
        _print_table({f"{typed}.{key}": each for key, each in command_keys(typed).items()})


def _holders(book: _Book, name: str, group: str | None) -> Iterable[tuple[str, Key]]:
    """Yield who has a key, in words of the command line, and the key as it is described there; who is chosen comes first."""
    if name in book.run:
        yield "", book.run[name]
    command, _, inside = name.partition(".")
    if command in COMMANDS and inside in (keys := command_keys(command)):
        yield f"speechtrain {command}", keys[inside]
    if group is None or group in WITHOUT_KEYS:
        return
    options = options_of(group, book.folders)
    chosen = book.chosen(group)
    for option in sorted(options, key=lambda each: each.name not in chosen):
        if (inside := name.removeprefix(f"{option.package}.")) in option.keys:
            yield f"{group}={option.name}", option.keys[inside]


def _ending_so(book: _Book, typed: str) -> list[str]:
    """Return the keys of all groups whose last part is what was typed, those of chosen options first."""
    found: dict[str, bool] = {}
    for group in (each for each in book.groups if each not in WITHOUT_KEYS):
        for option in options_of(group, book.folders):
            for key in (each for each in option.keys if each.rpartition(".")[2] == typed):
                name = f"{option.package}.{key}"
                found[name] = found.get(name, False) or option.name in book.chosen(group)
    return sorted(found, key=lambda name: (not found[name], name))[:_MOST_NAMED]


_MOST_NAMED = 6


def _unknown(book: _Book, typed: str, group: str | None) -> str:
    """Return the message for a name that is no key: the nearest ones, or those that there are."""
    if group is None:
        known = {
            *book.groups,
            *book.run,
            *(f"{name}.{key}" for name in COMMANDS if typed.startswith(f"{name}.") for key in command_keys(name)),
        }
        listed = sorted(name for name in known if "." not in name and "/" not in name)
    else:
        options = options_of(group, book.folders)
        known = {f"{option.package}.{key}" for option in options for key in option.keys}
        listed = sorted(f"{option.package}.{key}" for option in options if option.name in book.chosen(group) for key in option.keys)
    near = difflib.get_close_matches(typed, sorted(known), n=2, cutoff=0.8) or _ending_so(book, typed)
    hint = f"did you mean {' or '.join(repr(name) for name in near)}?" if near else f"there is: {', '.join(listed)}"
    return f"{typed}: there is no such key\n    -> {hint}"


def _print_group(book: _Book, group: str) -> None:
    """Print the options of a group, and the keys of the chosen one."""
    chosen = book.chosen(group)
    console.print(f"[bold]{group}[/] is a group: choose an option with {group}=OPTION. [dim]* is chosen[/]\n")
    table = _table()
    for option in options_of(group, book.folders):
        table.add_row(f"{'* ' if option.name in chosen else '  '}{option.name}", escape(option.summary))
    print_table(table)
    for option in (each for each in options_of(group, book.folders) if each.name in chosen and each.keys):
        console.print(f"\nKeys of [bold]{group}={option.name}[/] ({shown(option.file)}):\n")
        _print_list(option)
    console.print(f"\n[dim]{FLAG} {group.replace('/', '.')}.KEY says more of a key,[/]")
    console.print(f"[dim]{FLAG} {group} {group}=OPTION lists the keys of another option[/]")


def _print_list(option: Option) -> None:
    _print_table({f"{option.package}.{name}": key for name, key in option.keys.items()})


def _print_table(keys: dict[str, Key]) -> None:
    table = _table()
    for name, key in keys.items():
        table.add_row(f"  {name}", escape(key.entry.comment))
    print_table(table)


def _table() -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(overflow="fold")
    return table


def _print_keys(book: _Book, name: str, group: str | None, found: list[tuple[str, Key]]) -> None:
    """Print a key: in full for the chosen option, or for each that has it if the chosen one lacks it."""
    chosen = book.chosen(group) if group is not None else []
    active = [each for each in found if group is None or each[0].partition("=")[2] in chosen or not each[0]]
    if not active:
        options = ", ".join(f"{group}={option}" for option in chosen) or "what is chosen"
        console.print(f"[yellow]{options} has no key {name}; with it:[/]\n")
    for position, (holder, key) in enumerate(active or _distinct(found)):
        if position:
            console.print()
        _print_key(book, name, holder, key, is_active=bool(active))
    others = [each for each in found if active and each not in active]
    for holders, meaning in _by_meaning(others, active[0][1] if active else None):
        console.print(_wrapped(f"also a key of {holders}{f': {meaning}' if meaning else ''}"), style="dim")


def _distinct(found: list[tuple[str, Key]]) -> list[tuple[str, Key]]:
    """Return the keys whose descriptions differ, each with all that have it."""
    by_description: dict[tuple[str, str, str], list[tuple[str, Key]]] = {}
    for holder, key in found:
        by_description.setdefault((key.entry.comment, key.kind, key.entry.text), []).append((holder, key))
    return [(", ".join(holder for holder, _ in same), same[0][1]) for same in by_description.values()]


def _by_meaning(others: list[tuple[str, Key]], key: Key | None) -> Iterable[tuple[str, str]]:
    """Yield those that have a key too, with its meaning there if that is another one."""
    by_meaning: dict[str, list[str]] = {}
    for holder, other in others:
        by_meaning.setdefault(other.entry.comment, []).append(holder)
    for meaning, holders in by_meaning.items():
        several = f"{len(holders)} other options of {holders[0].partition('=')[0]}"
        yield (
            several if len(holders) > _MOST_NAMED else ", ".join(holders),
            "" if key is not None and meaning == key.entry.comment else meaning,
        )


_MOST_NAMED = 6


def _wrapped(text: str) -> str:
    """Return a text that is indented and fits the terminal, with nothing that rich takes for markup."""
    return textwrap.indent(escape(textwrap.fill(text, min(console.width, _WIDEST) - 2, break_on_hyphens=False)), "  ")


_WIDEST = 100


def _print_key(book: _Book, name: str, holder: str, key: Key, *, is_active: bool) -> None:
    console.print(f"[bold]{name}[/]" + (f"  [dim]{holder}[/]" if holder else ""))
    console.print(f"{_wrapped(key.entry.comment)}\n")
    table = _table()
    is_node = key.entry.is_node
    if not is_node:
        table.add_row("  type", escape(key.kind or "any value; see above"))
        table.add_row("  default", escape(key.default))
    place = book.place(name) if is_active else None
    own = f"{shown(key.entry.file)}:{key.entry.line}"
    if place is not None and place[1] != own:
        table.add_row("  now", escape(f"{place[0]}, set by {place[1]}"))
    table.add_row("  written in", own)
    if key.schema is not None:
        table.add_row("  checked by", f"{key.schema.__name__} in {shown(Path(inspect.getfile(key.schema)))}")
    print_table(table)
    if is_node:
        siblings = book.run if name in book.run else _keys_beside(book, name)
        console.print()
        _print_table({each: inside for each, inside in siblings.items() if each.startswith(f"{name}.")})


def _keys_beside(book: _Book, name: str) -> dict[str, Key]:
    """Return the keys of the option that a node belongs to, by their full names; the chosen option comes first."""
    group = book.group_of(name)
    if group is None:
        return {}
    chosen = book.chosen(group)
    options = sorted(options_of(group, book.folders), key=lambda each: each.name not in chosen)
    held = next(each for each in options if name.removeprefix(f"{each.package}.") in each.keys)
    return {f"{held.package}.{inside}": key for inside, key in held.keys.items()}
