"""The components of a config: which keys of a node are arguments of its `_target_`, and the callbacks, which may be a path alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from speechtrain.config.schemas.data import LOADING_KEYS
from speechtrain.config.targets import UnknownTargetError, signature

MIXES = ("speechtrain.data.corpora.mix.Mix", "speechtrain.data.corpora.keyword_windows.KeywordWindows")
"""The classes of `data=mix` and `data=keyword_windows`, whose `corpora` are components themselves."""

_NOT_PASSED = {
    "data": LOADING_KEYS,
    "backend": frozenset({"name"}),
    "task": frozenset({"metric"}),
    "tokenizer": frozenset({"metric"}),
    "model": frozenset({"size"}),
}


def arguments(group: str, node: DictConfig) -> dict[str, Any]:
    """Return the keys of a node that are arguments of its target, with their values resolved."""
    own = _NOT_PASSED.get(group, frozenset())
    values = OmegaConf.to_container(node, resolve=True)
    assert isinstance(values, dict)
    passed = {str(key): value for key, value in values.items() if key not in own and not str(key).startswith("_")}
    if group == "data" and isinstance(corpora := passed.get("corpora"), dict):  # of data=mix, also of a stored one that has no type
        passed["corpora"] = {name: {key: value for key, value in each.items() if key not in LOADING_KEYS} for name, each in corpora.items()}
    return passed


def callback_nodes(cfg: DictConfig) -> list[dict[str, Any]]:
    """Return the user's own callbacks as mappings with `_target_` and arguments; in the config a dotted path alone will do."""
    values: Any = OmegaConf.to_container(cfg.callbacks, resolve=True) if "callbacks" in cfg else []
    return [{str(key): value for key, value in each.items()} if isinstance(each, dict) else {"_target_": each} for each in values or []]


def drop_unaccepted_defaults(cfg: DictConfig, overrides: Sequence[str]) -> list[str]:
    """Drop the keys that a `_target_` given on the command line does not accept: they belong to the option's own target.

    A key that was itself given on the command line stays, and is then an error. Returns the dotted paths that were dropped.
    """
    overridden = {item.lstrip("+").partition("=")[0] for item in overrides}
    dropped = []
    for group in [str(name) for name in cfg]:
        if f"{group}._target_" not in overridden:
            continue
        node = cfg[group]
        try:
            takes = signature(str(node._target_))
        except (UnknownTargetError, SyntaxError):
            continue
        values = OmegaConf.to_container(node, resolve=False)
        assert isinstance(values, dict)
        for key in arguments(group, node):
            if takes is not None and not takes.open and key not in takes.names and f"{group}.{key}" not in overridden:
                del values[key]
                dropped.append(f"{group}.{key}")
        with open_dict(cfg):
            cfg[group] = values
    return dropped
