"""Writes values as override text that Hydra reads back unchanged, and keeps text that was typed from being read as a number."""

from __future__ import annotations

import math
import re
import types
from collections.abc import Mapping, Sequence, Set
from dataclasses import is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf

from speechtrain.config.plain import literal
from speechtrain.config.schema import SCHEMAS, Config
from speechtrain.config.schemas.node import Node
from speechtrain.files import is_file, user_path

_PLAIN = re.compile(r"[A-Za-z_/.][\w/.\-]*", re.ASCII)
_PLAIN_KEY = re.compile(r"\+{0,2}[A-Za-z_][\w.\-]*", re.ASCII)

parser = OverridesParser.create()


def parsed(overrides: Sequence[str]) -> list[Override]:
    """Return overrides as Hydra reads them; none of them if one has a number of more digits than Python reads.

    Raises:
        HydraException: one is no override.
    """
    try:
        return list(parser.parse_overrides(list(overrides)))
    except ValueError:
        return []


def override_text(value: Any) -> str:
    """Return the text that Hydra's grammar reads back as `value` (None, bool, number, string, list or dictionary of these).

    Raises:
        ValueError: Hydra's grammar has no way to write it.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if math.isnan(value):
            return "nan"
        return repr(value) if math.isfinite(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_key(key)}:{override_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ",".join(override_text(item) for item in value) + "]"
    raise ValueError(f"a {type(value).__name__} cannot be written on a command line")


_PARAMS = re.compile(r"\+{0,2}hydra\.sweeper\.params(?:\.([^=]+))?=(.*)", re.DOTALL)
_ARGUMENT = re.compile(r"\+{0,2}(hydra\.sweeper\.(?:sampler|pruner)[.=].*)", re.DOTALL)
"""An argument of the class that is the sampler or the pruner, of which the option in `conf` has only some."""


def sweep_arguments(arguments: Sequence[str], preset: Mapping[str, Any] | None = None) -> list[str]:
    """Return the command line of a sweep in the form in which Hydra takes it.

    Hydra refuses lists of values for keys of its own, so that `hydra.sweeper.params.lr=choice(1,2)` is written `lr=choice(1,2)`, and takes
    new keys only with a `+`, which arguments of a sampler or a pruner get. It sets what is not swept before it knows the options of swept
    groups: `model.n_heads=4` and `+model.x=1` beside `model=conformer,fastconformer` become entries of `hydra.sweeper.params`, which the
    sweeper sets in each job; so does each key of a group beside a swept `experiment`, which may choose options of all groups. Deletions
    stay, for keys in `hydra.sweeper.params` cannot be written so.

    Args:
        arguments: as typed, options such as `-m` included.
        preset: the `hydra.sweeper.params` of the options that were chosen.
    """
    written = [_with_plus(item) for item in arguments]
    parsed = {item: _parsed(item) for item in written if "=" in item and not item.startswith("-")}
    swept = {override.key_or_group for override in parsed.values() if override is not None and override.is_sweep_override()}
    groups = {key for key in (*swept, *_swept_in(preset or {})) if "." not in key}
    of_options = {
        item: f"{_PREFIXES[override.type]}{override.key_or_group}"
        for item, override in parsed.items()
        if override is not None
        and override.type in _PREFIXES
        and override.key_or_group not in swept
        and _may_be_of_option(override.key_or_group, groups)
    }
    if not of_options:
        return written
    texts = {of_options[item]: item.partition("=")[2].replace("${", r"\${") for item in written if item in of_options}
    values = ",".join(f"{key}:{override_text(text)}" for key, text in texts.items())
    return [*(item for item in written if item not in of_options), f"++hydra.sweeper.params={{{values}}}"]


_PREFIXES = {OverrideType.CHANGE: "", OverrideType.ADD: "+", OverrideType.FORCE_ADD: "++"}


def _swept_in(params: Mapping[str, Any]) -> set[str]:
    """Return the keys that `hydra.sweeper.params` gives several values, as a list or in the words of an override."""

    def has_several(key: str, value: Any) -> bool:
        override = _parsed(f"{key}={value}") if isinstance(value, str) else None
        return isinstance(value, list) or (override is not None and override.is_sweep_override())

    return {key.lstrip("+").partition("@")[0] for key, value in params.items() if has_several(key, value)}


def _may_be_of_option(key: str, swept: Set[str]) -> bool:
    """Return whether a dotted key may be there with an option of a swept group only."""
    group, dot, _ = key.partition(".")
    return bool(dot) and (group in swept or ("experiment" in swept and group != "hydra"))


def _parsed(item: str) -> Override | None:
    try:
        return parser.parse_override(item)
    except HydraException:  # reported when Hydra reads it
        return None


def _with_plus(item: str) -> str:
    """Return an argument that begins with a key of the sweeper as Hydra takes it, and any other as it is."""
    if (argument := _ARGUMENT.fullmatch(item)) is not None:
        return f"++{argument[1]}"
    if (typed := _PARAMS.fullmatch(item)) is None:
        return item
    key, value = typed.groups()
    if key is None:
        return f"++hydra.sweeper.params={value}"
    return f"++hydra.sweeper.params.{key}={value}" if value[:1] in ("'", '"') else f"{key}={value}"


def _string(value: str) -> str:
    if _PLAIN.fullmatch(value) and _reads_as(value, value):
        return value
    return QuotedString(text=value, quote=Quote.single).with_quotes()


def _key(key: Any) -> str:
    if isinstance(key, bool) or key is None or isinstance(key, float):
        return override_text(key)
    text = str(key)
    if isinstance(key, int) or _PLAIN_KEY.fullmatch(text):
        return text
    raise ValueError(f"{key!r} cannot be the key of a dictionary on a command line")


def _reads_as(text: str, value: Any) -> bool:
    try:
        read = parser.parse_override(f"key={text}").value()
    except HydraException:
        return False
    return type(read) is type(value) and read == value


def unresolved(overrides: Sequence[str]) -> list[str]:
    """Return Hydra's list of the overrides of a job as they were typed; iterating over it resolves the interpolations in them."""
    values = OmegaConf.to_container(overrides, resolve=False)
    assert isinstance(values, list)
    return [str(item) for item in values]


def text_as_typed(arguments: Sequence[str], schema: type[Node] = Config) -> list[str]:
    """Return a command line in which the values of keys that take text are quoted where Hydra would read something else, or nothing.

    Hydra reads `rerun=4598e534` as the number infinity, `study_name=1_000` as 1000, and refuses `init_from=best-epoch=001.ckpt` and
    `text="it's four"`. What a user quoted and interpolations stay as they are; so do functions and several values (`key=a,b`) of a
    training, which may be a sweep. The other commands have no sweeps: there they are text.

    Args:
        arguments: as typed, options such as `-m` included.
        schema: the root of the config, `Config` or the schema of a command.
    """
    text_keys, list_keys = _keys_of_text(schema)
    sweeps = schema is Config
    result = []
    for item in arguments:
        key, equals, value = item.partition("=")
        name = key.lstrip("+")
        if not equals or item.startswith("-"):
            result.append(item)
        elif name == "tracking" and "".join(value.split()) == "{}":  # Hydra would merge nothing into the trackers
            result.append(f"{key}=[]")
        elif name in text_keys:
            is_literal = not sweeps and "${" in value and (name in _LITERAL_KEYS or not _is_readable(value))
            result.append(f"{key}={_string(literal(value)) if is_literal else _quoted_unless_read_as_text(value, sweeps=sweeps)}")
        elif name in list_keys:
            result.append(f"{key}={_list_as_typed(value, sweeps=sweeps)}")
        else:
            result.append(item)
    return result


_LITERAL_KEYS = ("text",)
"""Keys of what somebody says, in which nothing is an interpolation."""


def _is_readable(value: str) -> bool:
    try:
        parser.parse_override(f"key={value}")
    except HydraException:
        return False
    return True


def _quoted_unless_read_as_text(value: str, *, sweeps: bool) -> str:
    """Return a value, quoted if it is one that Hydra would read as another than this text, or would refuse."""
    if value.strip() in ("", "null") or "${" in value:
        return value
    try:
        override = parser.parse_override(f"key={value}")
    except HydraException:
        return override_text(value)
    if override.is_sweep_override():
        return value if sweeps and not is_file(user_path(value)) else override_text(value)
    return value if isinstance(override.value(), str) else override_text(value)


def _list_as_typed(value: str, *, sweeps: bool) -> str:
    """Return a list of texts whose elements are quoted where Hydra would read something else, or would refuse the list."""
    inside = re.fullmatch(r"\[(.*)\]", value, re.DOTALL)
    if inside is None or not inside[1].strip() or "${" in value:
        return value
    if re.search(r"[\[\]{}()'\"\\]", inside[1]) is not None:
        try:
            parser.parse_override(f"key={value}")
        except HydraException:
            pass
        else:
            return value
    return f"[{','.join(_quoted_unless_read_as_text(each.strip(), sweeps=sweeps) for each in inside[1].split(','))}]"


def _keys_of_text(schema: type[Node]) -> tuple[set[str], set[str]]:
    """Return the dotted keys that take text under every option of their group, and those that take lists of text."""
    kinds: dict[str, set[str]] = {}
    _note_kinds("", schema, kinds)
    for group, options in SCHEMAS.items() if schema is Config else ():
        prefix = f"hydra.{group}." if group in ("sweeper", "launcher") else f"{group}."
        for name, option in options.items():
            _note_kinds(f"{prefix}{name}." if group == "tracking" else prefix, option, kinds)
    return {key for key, of_key in kinds.items() if of_key == {"text"}}, {key for key, of_key in kinds.items() if of_key == {"texts"}}


def _note_kinds(prefix: str, schema: type[Node], kinds: dict[str, set[str]]) -> None:
    for name, hint in get_type_hints(schema).items():
        variants = _variants(hint) - {type(None)}
        kind = "text" if variants == {str} else "texts" if variants == {list[str]} else "other"
        kinds.setdefault(f"{prefix}{name}", set()).add(kind)
        for each in variants:
            if is_dataclass(each) and isinstance(each, type) and issubclass(each, Node):
                _note_kinds(f"{prefix}{name}.", each, kinds)


def _variants(hint: Any) -> set[Any]:
    return set(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else {hint}
