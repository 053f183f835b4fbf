"""Before anything starts: the type of every swept key, and whether what will be composed composes and is valid."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, IntegerNode, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from speechtrain.errors import ConfigError, Problem
from speechtrain.sweep.space.compose import Composer
from speechtrain.sweep.space.overrides import override_text
from speechtrain.sweep.space.space import Assignment, Choice, Parameter, Range, Scalar, Space

SAMPLES = 100
"""Combinations that are checked of a space too large, or infinite, to check whole."""
WHOLE = 500
"""Points up to which a finite space is checked whole."""

Check = Callable[[DictConfig], list[Problem]]
"""All problems of a composed config."""


def own_value(cfg: DictConfig, path: str, *, group: bool) -> tuple[bool, Any]:
    """(whether it is there, value) of a key in a composed config: the option for a group."""
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


def is_whole(cfg: DictConfig, path: str) -> bool | None:
    """Whether a key holds a whole number; None where that is not known."""
    parent, _, key = path.rpartition(".")
    try:
        holder = OmegaConf.select(cfg, parent) if parent else cfg
    except OmegaConfBaseException:
        return None
    if not isinstance(holder, DictConfig) or key not in holder:
        return None
    node = holder._get_node(key)
    if isinstance(node, IntegerNode):
        return True
    value = getattr(node, "_value", lambda: None)()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return isinstance(value, int) and not type(node).__name__.startswith("Float")


def types_of(composer: Composer, space: Space, cfg: DictConfig) -> dict[str, bool]:
    """Of the ranges whose key's type is known, whether it is a whole number; keys of a group are looked up in its swept options."""
    wanted = {p.path for p in space.all_parameters() if isinstance(p.domain, Range) and not p.domain.whole}
    found = {path: whole for path in wanted if (whole := is_whole(cfg, path)) is not None}
    groups = [p for p in space.all_parameters() if composer.is_group(p.path) and isinstance(p.domain, Choice)]
    for group in groups:
        for text in group.domain.texts if isinstance(group.domain, Choice) else ():
            if wanted <= set(found):
                return found
            try:
                option = composer.compose([*space.fixed, f"{group.key}={text}"])
            except (HydraException, OmegaConfBaseException):
                continue  # told when the whole space is checked
            found |= {path: whole for path in wanted - set(found) if (whole := is_whole(option, path)) is not None}
    return found


def label_of(parameter: Parameter, value: Any) -> tuple[bool, Scalar]:
    """(whether it is among the parameter's values, its label) of a plain value."""
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
    """Values of the keys that branches ask about and nothing sweeps."""
    swept = {parameter.path for parameter in space.all_parameters()}
    found = {}
    for path in {key for branch in space.branches for key in branch.conditions} - swept:
        present, value = own_value(cfg, path, group=composer.is_group(path))
        if not present:
            raise ConfigError(
                [Problem(f"hydra.sweeper.when: if {path}", "there is no such key or group", "name a key as on the command line")]
            )
        found[path] = override_text(value)
    return found


def first_value(parameter: Parameter) -> Scalar:
    """The first of a choice, the lowest of a range."""
    return parameter.domain.labels[0] if isinstance(parameter.domain, Choice) else parameter.domain.low


def own_point(composer: Composer, space: Space, cfg: DictConfig) -> Assignment:
    """The config's own values of the swept keys, as far as they are among those that are swept."""
    assignment: Assignment = {}
    complete: Assignment = {}
    for parameter in space.active(complete):
        present, value = own_value(cfg, parameter.path, group=composer.is_group(parameter.path))
        known, label = label_of(parameter, value) if present else (False, None)
        if known:
            assignment[parameter.name] = label
        complete[parameter.name] = label if known else first_value(parameter)
    return assignment


def combinations(space: Space) -> Iterator[Assignment]:
    """What is checked: every point of a small space; else each value in turn, the ends of ranges, and a sample of the rest."""
    size = space.size(WHOLE)
    if size is not None:
        yield from space.points()
        return
    base = _completed(space, {})
    yield base
    for parameter in space.all_parameters():
        for value in _probes(parameter):
            yield _completed(space, {**base, parameter.name: value})
    rng = random.Random(0)  # noqa: S311
    for _ in range(SAMPLES):
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


def _completed(space: Space, wanted: Mapping[str, Scalar]) -> Assignment:
    assignment: Assignment = {}
    for parameter in space.active(assignment):
        assignment[parameter.name] = wanted.get(parameter.name, first_value(parameter))
    return assignment


def check_space(composer: Composer, space: Space, check: Check, explain: Callable[[Sequence[str], Exception], ConfigError]) -> None:
    """Compose and check what a sweep will run.

    Args:
        composer: of the sweep's jobs.
        space: what they will be.
        check: lists the problems of a composed config.
        explain: all problems of overrides that do not compose.

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
        found = check(cfg)
        for problem in found:
            message = f"{problem.message}, with {' '.join(texts)}" if len(texts) > 1 else problem.message
            problems.setdefault((problem.path, problem.message), Problem(problem.path, message, problem.fix))
        if len(problems) >= 20:
            break
    if problems:
        raise ConfigError(problems.values())
