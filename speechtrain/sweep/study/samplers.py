"""Samplers and pruners from their config nodes."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import optuna

from speechtrain.errors import ConfigError, Problem, did_you_mean

_PRUNERS = {
    "median": "optuna.pruners.MedianPruner",
    "percentile": "optuna.pruners.PercentilePruner",
    "asha": "optuna.pruners.SuccessiveHalvingPruner",
    "hyperband": "optuna.pruners.HyperbandPruner",
    "threshold": "optuna.pruners.ThresholdPruner",
}
"""Short names, for `hydra.sweeper.pruner=median`."""

_SAMPLERS = {
    "tpe": "optuna.samplers.TPESampler",
    "random": "optuna.samplers.RandomSampler",
    "cmaes": "optuna.samplers.CmaEsSampler",
    "nsgaii": "optuna.samplers.NSGAIISampler",
    "nsgaiii": "optuna.samplers.NSGAIIISampler",
    "gp": "optuna.samplers.GPSampler",
    "qmc": "optuna.samplers.QMCSampler",
    "grid": "grid",
}

_ONE_SEED = ("QMCSampler",)
"""Samplers whose points belong to one sequence, so that every trial must be asked of the same one."""


def node_of(given: Any, kind: str) -> dict[str, Any] | None:
    """A config node from a short name, a node or null.

    Raises:
        ConfigError: there is no such name.
    """
    short = _PRUNERS if kind == "pruner" else _SAMPLERS
    if given is None or given in ("none", "null"):
        return None
    if isinstance(given, str):
        if given not in short and "." not in given:
            raise ConfigError([Problem(f"hydra.sweeper.{kind}", f"there is no '{given}'", did_you_mean(given, sorted([*short, "none"])))])
        return {"_target_": short.get(given, given)}
    return {str(key): value for key, value in given.items()} if given.get("_target_") else None


def is_grid(node: Mapping[str, Any] | None) -> bool:
    """Whether every point is asked for, once."""
    return node is not None and str(node["_target_"]).rpartition(".")[2] in ("grid", "GridSampler", "BruteForceSampler")


def make_pruner(node: Mapping[str, Any] | None) -> optuna.pruners.BasePruner:
    """The pruner of a node; one that never prunes for None.

    Raises:
        ConfigError: its target or an argument does not exist.
    """
    if node is None:
        return optuna.pruners.NopPruner()
    values = dict(node)
    if isinstance(values.get("wrapped_pruner"), Mapping):
        values["wrapped_pruner"] = make_pruner(values["wrapped_pruner"])
    pruner: optuna.pruners.BasePruner = _call("pruner", values)
    return pruner


def sampler_factory(node: Mapping[str, Any] | None, *, conditional: bool) -> Callable[[int], optuna.samplers.BaseSampler]:
    """A sampler for each trial number, seeded by the config's seed and the number.

    Args:
        node: of the sampler; None: random draws.
        conditional: whether parameters differ from trial to trial, which TPE should know.

    Raises:
        ConfigError: the target or an argument does not exist.
    """
    values = dict(node or {"_target_": _SAMPLERS["random"]})
    if is_grid(values):
        values = {"_target_": _SAMPLERS["random"]}
    seed = values.get("seed") or 0
    target = str(values["_target_"])
    takes = _parameters("sampler", target)
    if "group" in takes and conditional and values.get("group") is None:
        values["group"] = True
        values["multivariate"] = True
    values = {key: value for key, value in values.items() if value is not None}

    def make(number: int) -> optuna.samplers.BaseSampler:
        seeded = dict(values)
        if "seed" in takes:
            seeded["seed"] = seed if target.endswith(_ONE_SEED) else (seed * 1_000_003 + number) % 2**31
        sampler: optuna.samplers.BaseSampler = _call("sampler", seeded)
        return sampler

    make(0)
    return make


def _target(kind: str, target: str) -> Any:
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        known = sorted(_PRUNERS if kind == "pruner" else _SAMPLERS)
        raise ConfigError([Problem(f"hydra.sweeper.{kind}._target_", f"there is no '{target}'", f"one of {', '.join(known)}")]) from None


def _parameters(kind: str, target: str) -> set[str]:
    return set(inspect.signature(_target(kind, target)).parameters)


def _call(kind: str, node: Mapping[str, Any]) -> Any:
    target = str(node["_target_"])
    given = {key: value for key, value in node.items() if not key.startswith("_")}
    takes = _parameters(kind, target)
    unknown = [key for key in given if key not in takes]
    if unknown:
        key = unknown[0]
        raise ConfigError([Problem(f"hydra.sweeper.{kind}.{key}", f"{target} takes no argument '{key}'", did_you_mean(key, sorted(takes)))])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return _target(kind, target)(**given)
    except (ValueError, TypeError) as error:
        raise ConfigError([Problem(f"hydra.sweeper.{kind}", f"{target}: {error}", "")]) from error
