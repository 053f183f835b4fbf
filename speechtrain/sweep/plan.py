"""The plan of a sweep: its space, first trials, number of trials and objectives, checked before the first trial starts."""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from speechtrain.config.checks import find_node_problems
from speechtrain.config.compose import explain
from speechtrain.config.targets import Direction, task_directions
from speechtrain.errors import ConfigError, Problem
from speechtrain.sweep.space.compose import Composer
from speechtrain.sweep.space.overrides import override_text
from speechtrain.sweep.space.precheck import check_space, first_value, label_of, own_point, settled_values, types_of
from speechtrain.sweep.space.space import MANY, Assignment, Parameter, Space, parse_space, typed
from speechtrain.sweep.study.objectives import Constraint, directions_of, full_name

log = logging.getLogger(__name__)


_OWN_CHOICES = ("sweep=", "experiment=rerun_best")
"""A preset concerns the sweeper alone; a job that named it would start a sweep when it is resumed."""


@dataclass
class Options:
    """`hydra.sweeper` as plain values; described in `conf/hydra/sweeper/optuna.yaml`."""

    sampler: Any = None
    pruner: Any = None
    study_name: str | None = None
    storage: str | None = None
    direction: Any = None
    objectives: Sequence[str] | None = None
    constraints: Sequence[str] = ()
    n_trials: int | None = None
    n_jobs: int = 1
    params: Mapping[str, Any] | None = None
    when: Sequence[Mapping[str, Any]] = ()
    enqueue: Sequence[Mapping[str, Any]] = ()
    own_values_first: bool = True
    report: str | None = None
    seeds_per_trial: int = 1
    seeds_startup_trials: int = 4
    retries: int = 1
    timeout: float | None = None
    stop_after: float | None = None
    max_failure_rate: float = 0.5
    keep_pruned_checkpoints: bool = False
    show_output: bool = False
    heartbeat: float = 60.0
    repeat_best_of: str | None = None
    check: str | None = None


@dataclass
class Plan:
    """What is known before the storage is opened.

    Attributes:
        first: assignments of the first slots; all of them for a grid.
        grid: whether each point is run once.
    """

    space: Space
    first: list[Assignment]
    n_trials: int
    grid: bool
    objectives: list[str]
    directions: list[Direction]


def default_name(space: Space, options: Options, program: str) -> str:
    """A study's name that follows from what is swept, so that the same command finds its study again."""
    content = {
        "program": program,
        "fixed": sorted(space.fixed),
        "parameters": [repr(item) for item in space.parameters],
        "branches": [repr(item) for item in space.branches],
        "objectives": list(options.objectives or []),
        "direction": options.direction,
        "constraints": list(options.constraints),
        "enqueue": [dict(item) for item in options.enqueue],
        "seeds": options.seeds_per_trial,
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:6]
    keys = [re.sub(r"\W+", "_", parameter.path.rpartition(".")[2]) for parameter in space.all_parameters()]
    return f"{'-'.join(dict.fromkeys(keys))[:40].strip('-') or 'one'}-{digest}"


def _distinct(points: Sequence[Assignment]) -> list[Assignment]:
    found: list[Assignment] = []
    seen = set()
    for point in points:
        key = tuple(sorted((name, type(value).__name__, value) for name, value in point.items()))
        if point and str(key) not in seen:
            seen.add(str(key))
            found.append(point)
    return found


class Planner:
    """Turns the arguments of a sweep and its options into a `Plan`, and refuses what cannot be run.

    Args:
        options: of the sweeper; `study_name` is filled in.
        composer: composes single trials.
        config: of the sweep; its folder is named after the study.
    """

    def __init__(self, options: Options, composer: Composer, config: DictConfig) -> None:
        self.options = options
        self.composer = composer
        self.config = config

    def prepare(self, arguments: Sequence[str]) -> Plan:
        """Read the space, check all of it, say how many trials there will be.

        Raises:
            ConfigError: with every problem.
        """
        options = self.options
        self._check_options()
        arguments = [*self._repeated(), *arguments]
        space = parse_space([item for item in arguments if not item.startswith(_OWN_CHOICES)], options.params or {}, options.when)
        options.study_name = options.study_name or default_name(space, options, str(self.config.hydra.job.name))
        self._settle_folder(options.study_name)
        self._check_count(space)
        cfg = self._compose_defaults(space)
        space = Space(space.parameters, space.fixed, space.branches, settled_values(self.composer, space, cfg))
        space = typed(space, types_of(self.composer, space, cfg))
        check_space(self.composer, space, self._check(), self._explain)
        own = own_point(self.composer, space, cfg) if options.own_values_first else {}
        first, n_trials, grid = self._first(space, own)
        objectives, directions = self._objectives(cfg)
        return Plan(space, first, n_trials, grid, objectives, directions)

    def _settle_folder(self, study_name: str) -> None:
        """A sweep's folder is named after its study, unless the config names another, so that the same command finds it again."""
        if "${now:" not in str(self.config.hydra.sweep._get_node("dir")):
            return
        folder = f"multirun/{study_name}"
        with read_write(self.config), open_dict(self.config):
            self.config.hydra.sweep.dir = folder
            self.config.hydra.overrides.hydra.append(f"hydra.sweep.dir={override_text(folder)}")

    def _check_options(self) -> None:
        hydra = self.config.hydra
        problems = [*find_node_problems(hydra.sweeper, "hydra.sweeper"), *find_node_problems(hydra.launcher, "hydra.launcher")]
        for text in self.options.constraints:
            try:
                Constraint.parse(text)
            except ConfigError as error:
                problems += error.problems
        if problems:
            raise ConfigError(problems)

    def _repeated(self) -> list[str]:
        """The overrides of the best trial of an earlier sweep, where it is to be repeated."""
        if self.options.repeat_best_of is None:
            return []
        from speechtrain.sweep.study.results import read_best

        return read_best(self.options.repeat_best_of)

    def _compose_defaults(self, space: Space) -> DictConfig:
        """The config with what is fixed, and the swept keys as they are without a sweep; keys of a group only exist once it is chosen."""
        try:
            return self.composer.compose(space.fixed)
        except Exception as error:  # shown as what is wrong with the command line
            raise self._explain(space.fixed, error) from error

    def _check(self) -> Callable[[DictConfig], list[Problem]]:
        if self.options.check is None:
            return lambda _cfg: []
        module, _, name = self.options.check.rpartition(".")
        found: Callable[[DictConfig], list[Problem]] = getattr(importlib.import_module(module), name)
        return found

    def _explain(self, overrides: Sequence[str], error: Exception) -> ConfigError:
        if isinstance(error, ConfigError):
            return error
        if self.options.check is None:
            line = next((text for text in str(error).splitlines() if text.strip()), type(error).__name__)
            return ConfigError([Problem("command line", line, "")])
        return explain([*overrides], error)

    def _first(self, space: Space, own: Assignment) -> tuple[list[Assignment], int, bool]:
        """(assignments of the first slots, number of slots, whether it is a grid)."""
        from speechtrain.sweep.study.samplers import is_grid, node_of

        size = space.size()
        wanted = self.options.n_trials
        node = node_of(self.options.sampler, "sampler")
        if is_grid(node) and size is None:
            raise ConfigError(
                [Problem("hydra.sweeper.sampler", f"a grid needs lists of values, at most {MANY:,} points", "use choice() and range()")]
            )
        enqueued = [self._enqueued(space, index, entry) for index, entry in enumerate(self.options.enqueue)]
        if size is not None and (wanted is None or is_grid(node) or wanted >= size):
            points = list(space.points())
            leading = [point for point in [own, *enqueued] if point in points]
            ordered = _distinct([*leading, *points])
            count = min(size, wanted or size)
            if wanted is not None and wanted > size:
                log.info("the space has %d points: each is run once", size)
            return ordered[:count], count, True
        assert wanted is not None
        return _distinct([*([own] if own else []), *enqueued])[:wanted], wanted, False

    def _check_count(self, space: Space) -> None:
        """Refuse to search without end."""
        if self.options.n_trials is None and space.size() is None:
            shown = ", ".join(parameter.path for parameter in space.all_parameters())
            why = "has infinitely many points" if not space.is_finite() else f"has more than {MANY:,} points"
            raise ConfigError([Problem("hydra.sweeper.n_trials", f"the space of {shown} {why}", "say how many: hydra.sweeper.n_trials=30")])

    def _enqueued(self, space: Space, index: int, entry: Mapping[str, Any]) -> Assignment:
        """An entry of `enqueue` as an assignment, whole or in part.

        Raises:
            ConfigError: a key is not swept, or a value not among those that are.
        """
        left = {str(key): value for key, value in entry.items()}
        assignment: Assignment = {}
        problems = []
        drawn: Assignment = {}
        for parameter in space.active(drawn):
            if parameter.path in left:
                known, label = label_of(parameter, left.pop(parameter.path))
                if known:
                    assignment[parameter.name] = label
                else:
                    problems.append(self._not_offered(parameter, index, entry))
            drawn[parameter.name] = assignment.get(parameter.name, first_value(parameter))
        for key in left:
            swept = ", ".join(p.path for p in space.all_parameters())
            problems.append(Problem(f"hydra.sweeper.enqueue[{index}].{key}", "is not swept (there)", f"swept are {swept}"))
        if problems:
            raise ConfigError(problems)
        return assignment

    @staticmethod
    def _not_offered(parameter: Parameter, index: int, entry: Mapping[str, Any]) -> Problem:
        from speechtrain.sweep.study.study import describe

        offered = next(iter(describe(Space((parameter,))).values()))
        path = f"hydra.sweeper.enqueue[{index}].{parameter.path}"
        return Problem(path, f"{entry[parameter.path]!r} is not among {offered}", "give a value of the space, or widen it")

    def _objectives(self, cfg: DictConfig) -> tuple[list[str], list[Direction]]:
        """Metrics and their directions; no metric for a program that just returns its value."""
        given = self.options.objectives
        metric = OmegaConf.select(cfg, "objective.metric", default=None)
        metrics = [full_name(name) for name in given] if given else [str(metric)] if metric is not None else []
        if not metrics:
            listed = [self.options.direction] if isinstance(self.options.direction, str) else list(self.options.direction or ["minimize"])
            return [], directions_of(listed, listed, {})
        return metrics, directions_of(
            metrics, self.options.direction, task_directions(str(OmegaConf.select(cfg, "task._target_", default="")))
        )
