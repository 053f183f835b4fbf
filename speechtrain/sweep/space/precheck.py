"""Checks a space against the config that it varies: the type of every swept key, and whether what trials will compose is valid."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from speechtrain.config.overrides import override_text
from speechtrain.errors import ConfigError, Problem
from speechtrain.sweep.space.compose import Composer
from speechtrain.sweep.space.space import Assignment, Choice, NumberType, Parameter, Range, Scalar, Space

SAMPLED_POINTS = 100
"""Number of random combinations that are checked where a space is infinite, or too large to check every point."""
MAX_CHECKED_POINTS = 500
"""Size up to which every point of a finite space is checked."""

Check = Callable[[DictConfig], list[Problem]]
"""A function that lists all problems of a composed config."""


def own_value(cfg: DictConfig, path: str, *, group: bool) -> tuple[bool, Any]:
    """Return (whether a key exists, its value) in a composed config; for a group, the chosen option."""
    if group:
        choices = cfg.hydra.runtime.choices
        return (path in choices, choices.get(path))
    marker = object()
    try:
        value = OmegaConf.select(cfg, path, default=marker)
    except OmegaConfBaseException:
        return False, None
    if value is marker:
        return False, None
    return True, OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def number_type(cfg: DictConfig, path: str) -> NumberType | None:
    """Return the numbers that a key takes, by its type or, where it has none, by its value; None where neither says so."""
    parent, _, key = path.rpartition(".")
    try:
        holder = OmegaConf.select(cfg, parent) if parent else cfg
    except OmegaConfBaseException:
        return None
    if not isinstance(holder, DictConfig) or key not in holder:
        return None
    whole, fraction = _taken(holder, key, 1), _taken(holder, key, 0.5)
    if isinstance(whole, float) or (type(whole) is int and fraction is None):
        return NumberType(isinstance(whole, int))
    if isinstance(whole, (bool, str)) or OmegaConf.is_missing(holder, key) or OmegaConf.is_interpolation(holder, key):
        return None
    value = holder[key]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return NumberType(isinstance(value, int), declared=False) if is_number else None


def _taken(holder: DictConfig, key: str, number: float) -> Any:
    """Return what a key makes of a number, which follows from its type; None if it does not take it."""
    changed = copy.deepcopy(holder)
    try:
        with read_write(changed):
            changed[key] = number
        return changed[key]
    except OmegaConfBaseException:
        return None


@dataclass(frozen=True)
class SweptOption:
    """An option of a swept group, and the config that has it beside the first options of the other swept groups.

    Attributes:
        group: the group.
        name: name of the option.
        cfg: the config, with the fixed overrides of the sweep and none of its swept values; not to be changed.
    """

    group: str
    name: str
    cfg: DictConfig


def swept_options(composer: Composer, space: Space) -> list[SweptOption]:
    """Compose each option of each swept group, of those that go with the first options of the others.

    `check_space` names what is wrong with the rest.
    """
    options = []
    for group in space.all_parameters():
        for text, label in zip(group.domain.texts, group.domain.labels, strict=True) if isinstance(group.domain, Choice) else ():
            if not composer.is_group(group.path):
                break
            overrides, own = _without_values(composer, space, _completed(space, {group.name: label})), f"{group.key}={text}"
            with contextlib.suppress(HydraException, OmegaConfBaseException):
                cfg = composer.compose(overrides if own in overrides else [*overrides, own])  # a group of a branch
                options.append(SweptOption(group.path, text, cfg))
    return options


def _without_values(composer: Composer, space: Space, assignment: Assignment) -> list[str]:
    """Return the overrides of a job that are fixed or choose an option, in the order in which the job has them."""
    values = {item.text(assignment[item.name]) for item in space.active(assignment) if not composer.is_group(item.path)}
    return [text for text in space.overrides(assignment) if text not in values]


def types_of(composer: Composer, options: Sequence[SweptOption], space: Space, cfg: DictConfig) -> dict[str, NumberType]:
    """Return the numbers that each swept key takes, if that is known; keys of a group are read in its swept options."""
    paths = {
        p.path for p in space.all_parameters() if not (isinstance(p.domain, Range) and p.domain.whole) and not composer.is_group(p.path)
    }
    types: dict[str, NumberType] = {}
    for each in (cfg, *(option.cfg for option in options)):
        types |= {path: found for path in paths - set(types) if (found := number_type(each, path)) is not None}
    return types


def label_of(parameter: Parameter, value: Any) -> tuple[bool, Scalar]:
    """Return (whether a value is one of the parameter's, its label in the study)."""
    domain = parameter.domain
    if isinstance(domain, Range):
        return (True, domain.number(value)) if value in domain else (False, None)
    try:
        text = override_text(value)
    except ValueError:
        return False, None
    if text in domain.texts:
        return True, domain.labels[domain.texts.index(text)]
    for index, label in enumerate(domain.labels):  # 0.001 and 1e-3, or 8 and 8.0
        if not isinstance(label, (str, bool)) and not isinstance(value, (str, bool)) and label == value and value is not None:
            return True, domain.labels[index]
    return False, None


def settled_values(composer: Composer, space: Space, cfg: DictConfig) -> dict[str, str]:
    """Return, as override text, the values of the keys that branches depend on and nothing sweeps.

    Raises:
        ConfigError: such a key does not exist.
    """
    swept = {parameter.path for parameter in space.all_parameters()}
    values = {}
    for path in {key for branch in space.branches for key in branch.conditions} - swept:
        present, value = own_value(cfg, path, group=composer.is_group(path))
        if not present:
            raise ConfigError(
                [Problem(f"hydra.sweeper.when: if {path}", "there is no such key or group", "name a key as on the command line")]
            )
        values[path] = override_text(value)
    return values


def first_value(parameter: Parameter) -> Scalar:
    """Return the first label of a choice, or the lowest number of a range."""
    return parameter.domain.labels[0] if isinstance(parameter.domain, Choice) else parameter.domain.low


def own_point(composer: Composer, space: Space, cfg: DictConfig) -> Assignment:
    """Return the config's own values of the swept keys, as far as they belong to the space."""
    assignment: Assignment = {}
    complete: Assignment = {}
    for parameter in space.active(complete):
        present, value = own_value(cfg, parameter.path, group=composer.is_group(parameter.path))
        is_offered, label = label_of(parameter, value) if present else (False, None)
        if is_offered:
            assignment[parameter.name] = label
        complete[parameter.name] = label if is_offered else first_value(parameter)
    return assignment


def combinations(space: Space) -> Iterator[Assignment]:
    """Yield the assignments to check: all points of a small space; else each value in turn, the ends of ranges, and a random sample."""
    size = space.size(MAX_CHECKED_POINTS)
    if size is not None:
        yield from space.points()
        return
    base = _completed(space, {})
    yield base
    for parameter in space.all_parameters():
        for value in _probes(parameter):
            yield _completed(space, {**base, parameter.name: value})
    rng = random.Random(0)  # noqa: S311
    for _ in range(SAMPLED_POINTS):
        drawn: Assignment = {}
        for parameter in space.active(drawn):
            drawn[parameter.name] = rng.choice(_probes(parameter))
        yield drawn


def _probes(parameter: Parameter) -> Sequence[Scalar]:
    domain = parameter.domain
    if isinstance(domain, Choice):
        return domain.labels
    middle = (domain.low * domain.high) ** 0.5 if domain.log else (domain.low + domain.high) / 2
    if domain.step:
        middle = domain.low + domain.step * round((middle - domain.low) / domain.step)
    return (domain.low, round(middle) if domain.whole else middle, domain.high)


def _completed(space: Space, values: Mapping[str, Scalar]) -> Assignment:
    assignment: Assignment = {}
    for parameter in space.active(assignment):
        assignment[parameter.name] = values.get(parameter.name, first_value(parameter))
    return assignment


def default_overrides(composer: Composer, space: Space) -> list[str]:
    """Return the overrides of all jobs, with the first options of swept groups where they do not go with the config's own.

    `model.n_heads=4`, for example, does not compose with the config's own model.
    """
    first = _completed(space, {})
    if any(composer.is_group(parameter.path) for parameter in space.active(first)):
        try:
            composer.compose(space.fixed)
        except (HydraException, OmegaConfBaseException):
            return _without_values(composer, space, first)
    return [*space.fixed]


def check_space(composer: Composer, space: Space, check: Check, explain: Callable[[Sequence[str], Exception], ConfigError]) -> None:
    """Compose and check the jobs that a sweep may run.

    Args:
        composer: composes the sweep's jobs.
        space: what is searched.
        check: lists the problems of a composed config.
        explain: turns overrides that do not compose, and the error, into an error that lists all problems.

    Raises:
        ConfigError: with every problem, each with the values that lead to it.
    """
    problems: dict[tuple[str, str], Problem] = {}
    for assignment in combinations(space):
        texts = [parameter.text(assignment[parameter.name]) for parameter in space.active(assignment)]
        overrides = [*space.fixed, *texts]
        try:
            cfg = composer.compose(overrides)
        except (HydraException, OmegaConfBaseException) as error:
            raise explain(overrides, error) from error
        with open_dict(cfg):
            del cfg["hydra"]
        for problem in check(cfg):
            message = f"{problem.message}, with {' '.join(texts)}" if len(texts) > 1 else problem.message
            problems.setdefault((problem.path, problem.message), Problem(problem.path, message, problem.fix))
        if len(problems) >= 20:
            break
    if problems:
        raise ConfigError(problems.values())
