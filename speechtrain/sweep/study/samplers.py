"""Builds Optuna's samplers and pruners from `hydra.sweeper.sampler` and `hydra.sweeper.pruner`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import optuna

from speechtrain.config.schemas.sweeps import REPLACED
from speechtrain.config.targets import Direction
from speechtrain.errors import ConfigError, Problem, did_you_mean

Kind = Literal["sampler", "pruner"]

_SHORT_NAMES: dict[Kind, dict[str, str]] = {
    "pruner": {
        "median": "optuna.pruners.MedianPruner",
        "percentile": "optuna.pruners.PercentilePruner",
        "asha": "optuna.pruners.SuccessiveHalvingPruner",
        "hyperband": "optuna.pruners.HyperbandPruner",
        "threshold": "optuna.pruners.ThresholdPruner",
        "halving": "speechtrain.sweep.study.promotion.SuccessiveHalving",
        "one_epoch": "speechtrain.sweep.study.promotion.KeepBest",
        "freeze_thaw": "speechtrain.sweep.study.freeze_thaw.FreezeThaw",
    },
    "sampler": {
        "tpe": "optuna.samplers.TPESampler",
        "random": "optuna.samplers.RandomSampler",
        "cmaes": "optuna.samplers.CmaEsSampler",
        "nsgaii": "optuna.samplers.NSGAIISampler",
        "nsgaiii": "optuna.samplers.NSGAIIISampler",
        "gp": "optuna.samplers.GPSampler",
        "freeze_thaw": "speechtrain.sweep.study.freeze_thaw.FreezeThawSampler",
        "qmc": "optuna.samplers.QMCSampler",
        "grid": "optuna.samplers.GridSampler",
    },
}
"""Classes by the names of the files in conf/, for `hydra.sweeper.pruner=median`."""

_GRIDS = (optuna.samplers.GridSampler.__name__, optuna.samplers.BruteForceSampler.__name__)
_CMAES = optuna.samplers.CmaEsSampler.__name__
_ONE_SEQUENCE = (optuna.samplers.QMCSampler.__name__,)
"""Samplers whose points belong to one sequence, so that all trials must use the same seed."""

_GOOD_TRIALS, _MOST_GOOD_TRIALS, _MOST_STEPS = 100, 1000, 1000
"""Complete trials with which a pruner is tried, at least, for pruners start after some, and at most; steps beyond which none is idle."""
_BAD_TRIALS = 12
"""Trials that a pruner may stop when it is tried: Hyperband divides them among its brackets."""


def node_of(value: Any, kind: Kind) -> dict[str, Any] | None:
    """Return the config node with a `_target_` that a short name, a class path, a node or null stands for.

    Raises:
        ConfigError: the short name is unknown.
    """
    short_names = _SHORT_NAMES[kind]
    if value is None or value in ("none", "null"):
        return None
    if isinstance(value, str):
        if value in REPLACED:
            raise ConfigError([Problem(f"hydra.sweeper.{kind}", f"there is no '{value}' any more", REPLACED[value])])
        if value not in short_names and "." not in value:
            fix = did_you_mean(value, sorted([*short_names, "none"]))
            raise ConfigError([Problem(f"hydra.sweeper.{kind}", f"there is no '{value}'", fix)])
        return {"_target_": short_names.get(value, value)}
    return {str(key): item for key, item in value.items()} if value.get("_target_") else None


def refuse_unused(kind: Kind, typed: Collection[str]) -> None:
    """Refuse arguments of a sampler or a pruner where none is chosen.

    Args:
        kind: which of both.
        typed: the arguments that the user typed.

    Raises:
        ConfigError: with each argument.
    """
    fix = f"choose one as hydra/sweeper/{kind}={next(iter(_SHORT_NAMES[kind]))}, which takes keys, or give its class as _target_"
    problems = [Problem(f"hydra.sweeper.{kind}.{key}", f"there is no {kind} that takes it", fix) for key in typed if key != "_target_"]
    if problems:
        raise ConfigError(problems)


def is_grid(node: Mapping[str, Any] | None) -> bool:
    """Return whether a sampler's node asks for each point of the space once."""
    return node is not None and str(node["_target_"]).rpartition(".")[2] in _GRIDS


def drop_defaults_of_other_class(node: Mapping[str, Any], kind: Kind, option: str | None, typed: Collection[str]) -> dict[str, Any]:
    """Return a node without the values of the option in `conf` that its class, which was typed as `_target_`, does not take.

    Args:
        node: config node of a sampler or a pruner.
        kind: which of both.
        option: the option that was chosen, from whose file its values come unless they were typed.
        typed: the arguments that the user typed.

    Raises:
        ConfigError: its class does not exist.
    """
    if str(node["_target_"]) == _SHORT_NAMES[kind].get(option or ""):
        return dict(node)
    accepted = _accepted_arguments(kind, str(node["_target_"]))
    return {key: value for key, value in node.items() if key.startswith("_") or key in accepted or key in typed}


def make_pruner(node: Mapping[str, Any] | None) -> optuna.pruners.BasePruner:
    """Build the pruner of a node; for None one that never prunes.

    Raises:
        ConfigError: its class or one of its arguments does not exist.
    """
    if node is None:
        return optuna.pruners.NopPruner()
    pruner: optuna.pruners.BasePruner = _build("pruner", node)
    return pruner


def can_prune(node: Mapping[str, Any], steps: Sequence[int], *, direction: Direction, n_trials: int) -> bool:
    """Return whether a pruner ever stops a trial: one that gets worse from step to step, or diverges, after many others that are better.

    Args:
        node: config node of the pruner.
        steps: the steps at which trials report.
        direction: direction of the objective.
        n_trials: trials that the sweep has at least.
    """
    if len(steps) > _MOST_STEPS:
        return True
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    good = optuna.create_trial(value=0.0, intermediate_values=dict.fromkeys(steps, 0.0))
    count = min(max(n_trials, _GOOD_TRIALS), _MOST_GOOD_TRIALS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is not a number
        return any(_stops_one(make_pruner(node), [good] * count, steps, direction, worst) for worst in (1.0, math.nan))


def _stops_one(
    pruner: optuna.pruners.BasePruner, good: Sequence[optuna.trial.FrozenTrial], steps: Sequence[int], direction: Direction, worst: float
) -> bool:
    study = optuna.create_study(study_name="pruner", direction=direction, pruner=pruner)
    study.add_trials(good)
    sign = 1 if direction == "minimize" else -1
    for number in range(1, _BAD_TRIALS + 1):
        trial = study.ask()
        for step in steps:
            trial.report(sign * worst * number * (step + 1), step)
            if trial.should_prune():
                return True
    return False


def compares_reports(pruner: Mapping[str, Any] | None, sampler: Mapping[str, Any] | None) -> bool:
    """Return whether the pruner or the sampler compares what trials report, so that it asks which way is better."""
    by_pruner = pruner is not None and not str(pruner["_target_"]).endswith("ThresholdPruner")
    return by_pruner or (sampler is not None and sampler["_target_"] == _SHORT_NAMES["sampler"]["freeze_thaw"])


def with_epochs(node: Mapping[str, Any], epochs: int) -> dict[str, Any]:
    """Return the node of a pruner; that of `freeze_thaw` with the epochs of a training and the first rung, where these are not given.

    Args:
        node: config node of the pruner.
        epochs: epochs of the longest training; 0: they are not known.
    """
    if node["_target_"] != _SHORT_NAMES["pruner"]["freeze_thaw"] or not epochs:
        return dict(node)
    from speechtrain.sweep.study.freeze_thaw import DEFAULT_SHARE

    known = {"epochs": epochs, "min_resource": math.ceil(DEFAULT_SHARE * epochs)}
    return {**node, **{key: value for key, value in known.items() if node.get(key) is None}}


def sampler_factory(node: Mapping[str, Any] | None, *, conditional: bool) -> Callable[[int], optuna.samplers.BaseSampler]:
    """Return a function that builds the sampler of a trial from the trial's number, seeded by that and the config's seed.

    Args:
        node: config node of the sampler; None, or a grid, whose points are enqueued: random draws.
        conditional: whether parameters differ from trial to trial, which TPE has to know.

    Raises:
        ConfigError: the class or one of its arguments does not exist.
    """
    arguments: dict[str, Any] = {"_target_": _SHORT_NAMES["sampler"]["random"]} if node is None or is_grid(node) else dict(node)
    seed = arguments.get("seed") or 0
    target = str(arguments["_target_"])
    accepted = _accepted_arguments("sampler", target)
    if "group" in accepted and conditional and arguments.get("group") is None:
        arguments["group"] = True
        arguments["multivariate"] = True
    arguments = {key: value for key, value in arguments.items() if value is not None}

    def make(number: int) -> optuna.samplers.BaseSampler:
        seeded = dict(arguments)
        if "seed" in accepted:
            seeded["seed"] = seed if target.endswith(_ONE_SEQUENCE) else (seed * 1_000_003 + number) % 2**31
        sampler: optuna.samplers.BaseSampler = _build("sampler", seeded)
        return sampler

    make(0)
    if target.endswith(_CMAES) and importlib.util.find_spec("cmaes") is None:  # Optuna imports it at the second trial
        raise ConfigError([Problem("hydra.sweeper.sampler", "cmaes is not installed", "pip install cmaes, or leave the sampler out")])
    return make


def _class_of(target: str, path: str) -> Any:
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        fix = "give a class by its dotted path, for example optuna.pruners.MedianPruner"
        raise ConfigError([Problem(f"{path}._target_", f"there is no '{target}'", fix)]) from None


def _accepted_arguments(kind: Kind, target: str) -> set[str]:
    return set(inspect.signature(_class_of(target, f"hydra.sweeper.{kind}")).parameters)


def _build(kind: Kind, node: Mapping[str, Any], path: str | None = None) -> Any:
    """Build a sampler or a pruner, and the nodes among its arguments, such as `wrapped_pruner` and `independent_sampler`, before it.

    Raises:
        ConfigError: a class or an argument does not exist, or one is missing; with its dotted key, `path` and below.
    """
    target, path = str(node["_target_"]), path or f"hydra.sweeper.{kind}"
    class_ = _class_of(target, path)
    parameters = inspect.signature(class_).parameters
    given = {key: value for key, value in node.items() if not key.startswith("_")}
    problems = [
        Problem(f"{path}.{key}", f"{target} takes no argument '{key}'", did_you_mean(key, sorted(parameters)))
        for key in given
        if key not in parameters
    ]
    problems += [
        Problem(f"{path}.{key}", f"{target} needs it", f"add {path}.{key}=...")
        for key, parameter in parameters.items()
        if key not in given and parameter.default is parameter.empty and parameter.kind not in _OPEN
    ]
    if problems:
        raise ConfigError(problems)
    arguments = {key: _build_inner(value, f"{path}.{key}") for key, value in given.items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return class_(**arguments)
    except (ValueError, TypeError) as error:
        raise ConfigError([Problem(path, f"{target}: {error}", "")]) from error


_OPEN = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _build_inner(value: Any, path: str) -> Any:
    if not isinstance(value, Mapping) or "_target_" not in value:
        return value
    return _build("pruner" if "pruner" in str(value["_target_"]).lower() else "sampler", value, path)
