"""The space of a sweep: parameters read from override text, conditional branches, and how an assignment becomes overrides again.

Optuna is not imported here, so that a mistake is reported before it is loaded. Names of studies depend on the names of these classes and of
their fields (`study_name_of` in `plan.py`).
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import partial
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, QuotedString, RangeSweep, Transformer
from hydra.errors import HydraException

from speechtrain.config.overrides import override_text, parser
from speechtrain.errors import ConfigError, Problem

Scalar = None | bool | int | float | str
Assignment = dict[str, Scalar]
"""Label or number of each active parameter, by the parameter's name."""

MAX_ENUMERATED_POINTS = 100_000
"""Number of points above which a finite space is searched and not enumerated."""


@dataclass(frozen=True)
class Choice:
    """A list of values to choose from.

    Attributes:
        texts: each value as override text.
        labels: what the study stores for each, all different: the value itself where it is a scalar, else its text.
    """

    texts: tuple[str, ...]
    labels: tuple[Scalar, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def text(self, label: Scalar) -> str:
        """Return the override text of a label."""
        return self.texts[self.labels.index(label)]


@dataclass(frozen=True)
class Range:
    """Numbers between two bounds, both of which belong to it.

    Attributes:
        low: the lower bound.
        high: the upper bound.
        step: distance between neighbours; None: any number, or 1 for whole numbers of an interval.
        log: whether it is searched logarithmically.
        whole: whether only whole numbers belong to it.
        enumerable: whether it was written as a list of numbers (`range`) and not as an interval to search.
        integer_bounds: whether it is an interval whose bounds were written without a decimal point, `interval(1,256)`.
    """

    low: float
    high: float
    step: float | None = None
    log: bool = False
    whole: bool = False
    enumerable: bool = False
    integer_bounds: bool = field(default=False, repr=False)  # names of studies follow from the others

    def text(self, value: Scalar) -> str:
        """Return the override text of a number of the range."""
        assert isinstance(value, (int, float))
        return override_text(self.number(value))

    def number(self, value: float) -> int | float:
        """Return a number of the range as int or float, as the range says."""
        return round(value) if self.whole else float(value)

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not self.low <= value <= self.high:
            return False
        if self.whole and value != round(value):
            return False
        steps = (value - self.low) / self.step if self.step else 0.0
        return abs(steps - round(steps)) < 1e-6

    def __len__(self) -> int:
        return math.floor((self.high - self.low) / (self.step or 1) + 1e-9) + 1

    def values(self) -> list[Scalar]:
        """Return every number of the range, with a step of 1 if it has none."""
        step = self.step or 1
        exact = [Decimal(repr(self.low)) + index * Decimal(repr(step)) for index in range(len(self))]
        return [int(number) if self.whole else float(number) for number in exact]


Domain = Choice | Range


@dataclass(frozen=True)
class Parameter:
    """A swept key and the values it may take.

    Attributes:
        key: the key as in an override, with a leading `+` or `++` if there is one.
        domain: its values.
        condition: distinguishes parameters of the same key in several branches that have other values in each.
    """

    key: str
    domain: Domain
    condition: str = ""

    @property
    def path(self) -> str:
        """Return the dotted path of the key, or the name of the group."""
        return self.key.lstrip("+")

    @property
    def name(self) -> str:
        """Return the name of the parameter in the study."""
        return f"{self.path} [{self.condition}]" if self.condition else self.path

    def text(self, value: Scalar) -> str:
        """Return the override that sets the parameter to a value."""
        return f"{self.key}={self.domain.text(value)}"


@dataclass(frozen=True)
class Branch:
    """Parameters that exist only where each key of `conditions` has one of the values (as override text) named for it."""

    conditions: Mapping[str, tuple[str, ...]]
    parameters: tuple[Parameter, ...]


@dataclass(frozen=True)
class Space:
    """Everything a sweep varies, and the overrides that all its jobs share.

    Attributes:
        parameters: those that every assignment has.
        fixed: overrides of all jobs.
        branches: parameters that only some assignments have.
        settled: values, as override text, of keys that a branch depends on and no parameter sets.
        order: the fixed overrides and the paths of parameters in the order of a job's command line; empty: the fixed ones come first.
    """

    parameters: tuple[Parameter, ...]
    fixed: tuple[str, ...] = ()
    branches: tuple[Branch, ...] = ()
    settled: Mapping[str, str] = field(default_factory=dict)
    order: tuple[str, ...] = ()

    def all_parameters(self) -> list[Parameter]:
        """Return the parameters that every assignment has, then those of each branch."""
        return [*self.parameters, *(parameter for branch in self.branches for parameter in branch.parameters)]

    def active(self, assignment: Mapping[str, Scalar]) -> Iterator[Parameter]:
        """Yield the parameters that exist in an assignment, which the caller may fill meanwhile: each comes before its value is needed."""
        texts = dict(self.settled)
        for parameter in self.parameters:
            yield parameter
            texts[parameter.path] = parameter.domain.text(assignment[parameter.name])
        for branch in self.branches:
            if all(texts.get(key) in allowed for key, allowed in branch.conditions.items()):
                for parameter in branch.parameters:
                    yield parameter
                    texts[parameter.path] = parameter.domain.text(assignment[parameter.name])

    def overrides(self, assignment: Mapping[str, Scalar]) -> list[str]:
        """Return the command line of a job for an assignment; values of no parameter are those that `custom_search_space` added."""
        own = {parameter.name: parameter.text(assignment[parameter.name]) for parameter in self.active(assignment)}
        others = set(assignment) - set(own) - {parameter.name for parameter in self.all_parameters()}
        added = [f"{name}={override_text(value)}" for name, value in assignment.items() if name in others]
        return [*(own.pop(item, item) for item in self.order or self.fixed), *own.values(), *added]

    def is_finite(self) -> bool:
        """Return whether every parameter is a list of values."""
        return all(isinstance(p.domain, Choice) or p.domain.enumerable for p in self.all_parameters())

    def points(self) -> Iterator[Assignment]:
        """Yield every assignment of a finite space once; the first key varies slowest, as in Hydra's own sweeps."""
        yield from self._grow({})

    def _grow(self, assignment: Assignment) -> Iterator[Assignment]:
        """Yield the complete assignments that begin with a partial one."""
        missing = next((parameter for parameter in self.active(assignment) if parameter.name not in assignment), None)
        if missing is None:
            yield assignment
            return
        for value in _values(missing.domain):
            yield from self._grow(assignment | {missing.name: value})

    def size(self, limit: int = MAX_ENUMERATED_POINTS) -> int | None:
        """Return the number of points; None if there are infinitely many, or more than `limit`."""
        if not self.is_finite() or math.prod(len(parameter.domain) for parameter in self.parameters) > limit:
            return None
        if any(len(parameter.domain) > limit for parameter in self.all_parameters()):
            return None
        count = sum(1 for _ in itertools.islice(self.points(), limit + 1))
        return count if count <= limit else None


def _values(domain: Domain) -> Sequence[Scalar]:
    return domain.labels if isinstance(domain, Choice) else domain.values()


def parse_parameter(override: Override) -> Parameter | None:
    """Return the parameter that an override sweeps; None if it sets one value.

    Raises:
        ConfigError: what it sweeps cannot be searched.
    """
    if not override.is_sweep_override():
        return None
    key = _key(override)
    value = override.value()
    try:
        if isinstance(value, IntervalSweep):
            return Parameter(key, _interval(value, str(override.input_line)))
        if isinstance(value, RangeSweep) and not value.shuffle and not getattr(value, "transformers", None):
            return Parameter(key, _range(value))
        return Parameter(key, choice_of(list(override.sweep_iterator(transformer=Transformer.identity))))
    except ValueError as error:
        raise ConfigError([Problem(key.lstrip("+"), f"{override.input_line}: {error}", _EXAMPLE)]) from error


_EXAMPLE = "write choice(a,b), range(start,stop,step), interval(low,high) or tag(log,interval(low,high))"


def _key(override: Override) -> str:
    return str(override.get_key_element())


_WHOLE_BOUNDS = re.compile(r"interval\(\s*(start\s*=\s*)?[-+]?\d+\s*,\s*(end\s*=\s*)?[-+]?\d+\s*\)")


def _interval(sweep: IntervalSweep, text: str) -> Range:
    """Return an interval as a range; Hydra gives both bounds as floats, whose text says how they were written."""
    low, high = sweep.start, sweep.end
    assert low is not None
    assert high is not None
    if not math.isfinite(low) or not math.isfinite(high) or low > high:
        raise ValueError("an interval needs two finite numbers, the lower one first")
    log = "log" in sweep.tags
    if log and low <= 0:
        raise ValueError("a logarithmic interval must start above 0")
    whole = (isinstance(low, int) and isinstance(high, int)) or "int" in sweep.tags
    return Range(low, high, log=log, whole=whole, integer_bounds=_WHOLE_BOUNDS.search(text) is not None)


def _range(sweep: RangeSweep) -> Range:
    assert sweep.start is not None
    assert sweep.stop is not None
    if not sweep.step:
        raise ValueError("the step of a range must not be 0")
    start, stop, step = (Decimal(repr(number)) for number in (sweep.start, sweep.stop, sweep.step))
    count = math.ceil((stop - start) / step)
    if count <= 0:
        raise ValueError("the range is empty: its stop is not reached from its start")
    last = start + (count - 1) * step  # Hydra's stop is excluded, both ends of ours belong to it
    low, high = sorted((start, last))
    whole = all(isinstance(number, int) for number in (sweep.start, sweep.stop, sweep.step))
    return Range(
        int(low) if whole else float(low),
        int(high) if whole else float(high),
        step=int(abs(step)) if whole else float(abs(step)),
        log="log" in sweep.tags,
        whole=whole,
        enumerable=True,
    )


def choice_of(values: Sequence[Any]) -> Choice:
    """Make a choice of values as Hydra's parser, or YAML, gives them; repeated ones count once.

    Raises:
        ValueError: there are no values, or one cannot be written on a command line.
    """
    texts: dict[str, Any] = {}
    for value in values:
        if isinstance(value, QuotedString):
            texts.setdefault(override_text(value.text), value.text)
        else:
            unquoted = _unquoted(value)
            texts.setdefault(override_text(unquoted), unquoted)
    if not texts:
        raise ValueError("there is nothing to choose from")
    labels = [value if value is None or isinstance(value, (bool, int, float, str)) else text for text, value in texts.items()]
    if any(a == b for a, b in itertools.combinations(labels, 2)) or any(isinstance(item, float) and math.isnan(item) for item in labels):
        labels = list(texts)  # true and 1, or a list beside the same text: distinguished by how they are written
    return Choice(tuple(texts), tuple(labels))


def _unquoted(value: Any) -> Any:
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, Mapping):
        return {_unquoted(key): _unquoted(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_unquoted(item) for item in value]
    return value


def parse_space(arguments: Sequence[str], params: Mapping[str, Any], when: Sequence[Mapping[str, Any]] = ()) -> Space:
    """Read a space from the command line and from `hydra.sweeper.params` and `when`; the command line wins.

    Args:
        arguments: overrides as typed, swept or not.
        params: key to override text (`choice(1,2)`), to a YAML list (a choice), or to a single value.
        when: entries of `if:` (key to value or values) and `params:` (as above).

    Raises:
        ConfigError: with every entry that cannot be read.
    """
    problems: list[Problem] = []
    entries: dict[str, Parameter | str] = {}
    readers = [partial(_read, str(key), value) for key, value in params.items()]
    for read in [*readers, *(partial(_read_text, text) for text in arguments)]:
        try:
            name, entry = read()
        except ConfigError as error:
            problems += error.problems
            continue
        entries.pop(name, None)
        entries[name] = entry
    branches = []
    for branch in when:
        try:
            branches.append(_branch(branch, set(entries)))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    swept = tuple(entry for entry in entries.values() if isinstance(entry, Parameter))
    fixed = tuple(entry for entry in entries.values() if isinstance(entry, str))
    order = tuple(entry if isinstance(entry, str) else entry.path for entry in entries.values())
    return Space(swept, fixed, _with_distinct_names(branches), order=order)


def _with_distinct_names(branches: Sequence[Branch]) -> tuple[Branch, ...]:
    """Add the branch's condition to the names of parameters whose values differ between branches."""
    domains: dict[str, set[Domain]] = {}
    for parameter in (item for branch in branches for item in branch.parameters):
        domains.setdefault(parameter.path, set()).add(parameter.domain)

    def named(branch: Branch, parameter: Parameter) -> Parameter:
        if len(domains[parameter.path]) == 1:
            return parameter
        condition = ",".join(f"{key}={'|'.join(allowed)}" for key, allowed in branch.conditions.items())
        return replace(parameter, condition=condition)

    return tuple(replace(branch, parameters=tuple(named(branch, item) for item in branch.parameters)) for branch in branches)


def _branch(entry: Mapping[str, Any], overridden: set[str]) -> Branch:
    if set(entry) != {"if", "params"} or not entry["if"] or not entry["params"]:
        example = "for example - {if: {model: conformer}, params: {model.kernel_size: 'choice(7,15,31)'}}"
        raise ConfigError([Problem("hydra.sweeper.when", f"each entry has `if` and `params`, received {sorted(map(str, entry))}", example)])
    conditions = {
        str(key): tuple(override_text(item) for item in (value if isinstance(value, (list, tuple)) else [value]))
        for key, value in entry["if"].items()
    }
    inner = parse_space([], {key: value for key, value in entry["params"].items() if str(key).lstrip("+") not in overridden})
    if inner.fixed:
        key = inner.fixed[0].partition("=")[0]
        raise ConfigError([Problem(f"hydra.sweeper.when.{key}", f"'{inner.fixed[0]}' is a single value", _EXAMPLE)])
    return Branch(conditions, inner.parameters)


def _without_equals(choice: Choice) -> Choice:
    """Return a choice for a key of floats, for which 1 and 1.0 are one value: the one that was written first."""
    kept: dict[float | str, str] = {}
    for text in choice.texts:
        try:
            kept.setdefault(float(text), text)
        except ValueError:
            kept.setdefault(text, text)
    if len(kept) == len(choice):
        return choice
    return choice_of([parser.parse_override(f"key={text}").value() for text in kept.values()])


def _read(key: str, value: Any) -> tuple[str, Parameter | str]:
    """Read an entry of YAML as (name, parameter or override)."""
    if isinstance(value, str):
        return _read_text(f"{key}={value}")
    try:
        if isinstance(value, (list, tuple)):
            return key.lstrip("+"), Parameter(key, choice_of(value))
        return key.lstrip("+"), f"{key}={override_text(value)}"
    except ValueError as error:
        raise ConfigError([Problem(key.lstrip("+"), str(error), _EXAMPLE)]) from error


def _read_text(text: str) -> tuple[str, Parameter | str]:
    """Read an override as typed, as (name, parameter or override)."""
    try:
        override = parser.parse_override(text)
    except HydraException:
        raise ConfigError([Problem(text.partition("=")[0].lstrip("+"), f"'{text}' cannot be read", _EXAMPLE)]) from None
    name = text if override.is_delete() else _key(override).lstrip("+")
    return name, parse_parameter(override) or text


@dataclass(frozen=True)
class NumberType:
    """The numbers that a key takes.

    Attributes:
        whole: whether it takes whole numbers only.
        declared: whether the schema says so, and not only the value that the key has.
    """

    whole: bool
    declared: bool = True


def typed(space: Space, types: Mapping[str, NumberType]) -> Space:
    """Make intervals whole where their keys take whole numbers, and values one where they are the same number for a key.

    A key without a type that happens to hold a whole number may take others: an interval of it is whole only if its bounds were written
    without a point.

    Args:
        space: the space as written.
        types: the numbers that a key takes, where that is known.

    Raises:
        ConfigError: a bound of such an interval is not whole.
    """
    problems = []

    def made_whole(parameter: Parameter) -> Parameter:
        domain, numbers_of_key = parameter.domain, types.get(parameter.path)
        if numbers_of_key is None:
            return parameter
        if isinstance(domain, Choice):
            return parameter if numbers_of_key.whole else replace(parameter, domain=_without_equals(domain))
        if domain.whole or not numbers_of_key.whole or not (numbers_of_key.declared or domain.integer_bounds):
            return parameter
        numbers = [domain.low, domain.high, *([domain.step] if domain.step else [])]
        if any(number != round(number) for number in numbers):
            texts = ", ".join(f"{number:g}" for number in numbers)
            problems.append(Problem(parameter.path, f"takes whole numbers, the range has {texts}", "write whole bounds"))
            return parameter
        step = int(domain.step) if domain.step else None
        return replace(parameter, domain=replace(domain, low=int(domain.low), high=int(domain.high), step=step, whole=True))

    parameters = tuple(map(made_whole, space.parameters))
    branches = tuple(replace(branch, parameters=tuple(map(made_whole, branch.parameters))) for branch in space.branches)
    if problems:
        raise ConfigError(problems)
    return replace(space, parameters=parameters, branches=branches)
