"""Keys of a config that hold what the files of a pretrained checkpoint say, so that a model needs these files no more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from speechtrain.config.hub import hub_name
from speechtrain.config.plain import plain_mapping
from speechtrain.config.pretrained import FIX, Checkpoint

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from speechtrain.config.experiment import ExperimentConfig


_KEPT: Mapping[str, tuple[str, Callable[[Checkpoint, DictConfig], dict[str, Any]]]] = {
    "model": ("architecture", lambda checkpoint, _: checkpoint.architecture),
    "features": ("extractor", lambda checkpoint, _: checkpoint.extractor),
    "tokenizer": ("definition", lambda checkpoint, node: checkpoint.tokens(node.language)),
}
"""The key of each group that keeps what a checkpoint's files say, and how it is read."""


def with_checkpoint_files(cfg: ExperimentConfig, before: Mapping[str, Any] = MappingProxyType({})) -> ExperimentConfig:
    """Return a config with what the files of a pretrained checkpoint say in it, so that the model needs them no more.

    Of a checkpoint on the hub `revision` becomes the commit, so that its weights are of the same one, and a second run has them too.

    Args:
        cfg: the config of a run.
        before: the one in the checkpoint of a run that is resumed, which has them already.

    Raises:
        ConfigError: they cannot be read.
    """
    values: dict[str, Any] = {}
    commits: dict[tuple[str, str | None], str | None] = {}
    for group, (key, read) in _KEPT.items():
        node = cfg.composed[group]
        if "path" not in node or key not in node or node[key] is not None:
            continue
        former = before.get(group)
        kept, commit = (former.get(key), former.get("revision")) if isinstance(former, Mapping) else (None, None)
        if kept is None:
            name = (node.path, node.revision)
            checkpoint = Checkpoint.find(node.path, commits.get(name) or node.revision, key=f"{group}.path")
            kept, commit = read(checkpoint, node), checkpoint.commit
            commits[name] = commit
        values[f"{group}.{key}"] = plain_mapping(kept, f"{group}.{key}", fix=FIX)
        if isinstance(commit, str):
            values[f"{group}.revision"] = commit
    return cfg.with_values(values) if values else cfg


def with_hub_names(cfg: ExperimentConfig) -> ExperimentConfig:
    """Return a config to be given away: with the names of checkpoints on the hub in place of their folders in this machine's cache."""
    values = {}
    for group in _KEPT:
        node = cfg.composed[group]
        if "path" in node and (found := hub_name(str(node.path))) is not None:
            values[f"{group}.path"], values[f"{group}.revision"] = found
    return cfg.with_values(values) if values else cfg


def without_checkpoint_files(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config, as `ExperimentConfig.as_dict` gives it, with the name of a checkpoint in place of what its files say, for people."""
    shown = dict(values)
    for group, (key, _) in _KEPT.items():
        node = shown.get(group)
        if isinstance(node, Mapping) and isinstance(node.get(key), Mapping):
            shown[group] = {**node, key: f"of {node.get('path')}"}
    return shown
