"""Overrides of a trained model's config: other data, another decoder, another number of threads, another latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from speechtrain.config.checks import find_problems
from speechtrain.config.compose import compose, compose_unchecked, set_values
from speechtrain.config.experiment import ExperimentConfig, class_name
from speechtrain.config.stored import component_problems
from speechtrain.config.targets import signature
from speechtrain.errors import ConfigError, Problem

OVERLAID_GROUPS = ("data", "decoder", "backend")
CHUNKS = "model.chunk_frames"
"""The one key of a model that can be changed when it is trained, to another of `model.train_chunk_frames`."""


def overlaid(stored: ExperimentConfig, overrides: Sequence[str], *, split: str | None = None) -> ExperimentConfig:
    """Return the config with a group replaced where an option is chosen for it (`data=librispeech`), else with its keys changed.

    Args:
        stored: config of the trained model.
        overrides: overrides of the groups.
        split: the only split that will be read: with a list of its own the lists of the others may be absent. None: all may be read.

    Raises:
        ConfigError: an override does not compose, or names a key that does not exist.
    """
    cfg = stored.composed.copy()
    edited = []
    for group in OVERLAID_GROUPS:
        group_overrides = [item for item in overrides if item.lstrip("+~").startswith((f"{group}=", f"{group}.", f"{group}@"))]
        if any(chooses(item, group) for item in group_overrides):
            with open_dict(cfg):
                cfg[group] = compose_unchecked(group_overrides)[group]
        elif group_overrides:
            if group == "data":
                with open_dict(cfg):  # keys that came after the model was trained
                    cfg.data = {**vars(stored.data), **cfg.data}
            set_values(cfg, group_overrides)
            edited.append(group)
    changed = tuple(f"{group}." for group in OVERLAID_GROUPS)
    if chunks := [item for item in overrides if item.lstrip("+").startswith(f"{CHUNKS}=")]:
        _check_several_chunks(stored)
        set_values(cfg, chunks)
        edited.append("model")
        changed += (CHUNKS, "model.train_chunk_frames")
    problems = [problem for problem in find_problems(cfg) if problem.path.startswith(changed)]
    named = {problem.path for problem in problems}
    for group in edited:  # a stored config has no types by itself
        of_group = component_problems(group, OmegaConf.to_container(cfg[group], resolve=True))
        problems += [problem for problem in of_group if problem.path.startswith(changed) and problem.path not in named]
    if split is not None and has_own_list(cfg.data, split):
        unread = {"data.train", "data.val", "data.test"} - {f"data.{split}"}
        problems = [problem for problem in problems if problem.path not in unread]
    if problems:
        raise ConfigError(problems)
    return ExperimentConfig.of(cfg)


def _check_several_chunks(stored: ExperimentConfig) -> None:
    """Check that a model was trained with chunks of several lengths."""
    if stored.model.get("train_chunk_frames") is None:
        trained = stored.model.get("chunk_frames")
        message = "cannot be changed: the model was trained with " + (f"chunks of {trained} alone" if trained else "whole utterances")
        raise ConfigError([Problem(CHUNKS, message, "train model=conformer with model.train_chunk_frames=[4,8,16,null]")])


def has_own_list(corpus: Mapping[str, Any] | DictConfig, split: str) -> bool:
    """Return whether a corpus names a list for a split, which can then be read without that of the training data."""
    return split in ("val", "test") and bool(corpus.get(split)) and "train" in corpus


def decoders_of(stored: ExperimentConfig, overrides: Sequence[str]) -> dict[str, list[str]]:
    """Return the overrides of each decoder that is asked for, by its name: `decoder=[greedy,beam]` is two, each with its own keys.

    Raises:
        ConfigError: none of the decoders has one of the keys.
    """
    decoder_overrides = [item for item in overrides if item.lstrip("+~").startswith(("decoder=", "decoder."))]
    chosen = [item.partition("=")[2] for item in decoder_overrides if item.startswith("decoder=")]
    if not chosen:
        decodes = "decoder" in getattr(signature(str(stored.task["_target_"])), "names", ("decoder",))
        name = class_name(stored.decoder).removesuffix("Decoder").lower()
        return {name if decodes else "model": decoder_overrides}
    try:
        value = OverridesParser.create().parse_override(f"decoder={chosen[-1]}").value()
    except HydraException:
        raise ConfigError([Problem("decoder", f"{chosen[-1]!r} cannot be read", "write decoder=beam, or decoder=[greedy,beam]")]) from None
    names = [str(name) for name in (value if isinstance(value, list) else [value])]
    keys = [item for item in decoder_overrides if not item.startswith("decoder=")]
    by_decoder: dict[str, list[str]] = {}
    used: set[str] = set()
    for name in names:
        keys_of_decoder = compose([f"decoder={name}"]).decoder
        fitting = [item for item in keys if item.partition("=")[0].partition(".")[2] in keys_of_decoder or item.startswith("+")]
        used.update(fitting)
        by_decoder[name] = [f"decoder={name}", *fitting]
    if unused := [item for item in keys if item not in used]:
        compose([f"decoder={names[-1]}", *unused])  # says what is wrong with them
    return by_decoder


def chooses(item: str, group: str) -> bool:
    """Return whether an override chooses an option of a group, in place of a key of it."""
    return item.lstrip("+").startswith((f"{group}=", f"{group}@"))
