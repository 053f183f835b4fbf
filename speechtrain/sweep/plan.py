"""Turns a sweep's arguments and options into a plan, and refuses what cannot be run before the first trial starts.

Nothing is stored and no trial is started here: `sweeper.py` carries the plan out. Optuna is imported only when nothing is wrong with the
space.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from speechtrain.config.checks import unmeasured
from speechtrain.config.effects import has_effect
from speechtrain.config.explain import explain, explain_job
from speechtrain.config.node_checks import find_node_problems
from speechtrain.config.overrides import override_text, unresolved
from speechtrain.config.schemas.sweeps import SweeperOptions
from speechtrain.config.targets import Direction, task_directions
from speechtrain.errors import ConfigError, Problem, first_line
from speechtrain.sweep.refusals import refuse_comparing_stop, refuse_own_sweeps, refuse_pauses, warn_of_idle_pruner
from speechtrain.sweep.space.compose import Composer, parsed
from speechtrain.sweep.space.custom import extension
from speechtrain.sweep.space.precheck import (
    Check,
    SweptOption,
    check_space,
    default_overrides,
    first_value,
    label_of,
    own_point,
    settled_values,
    swept_options,
    types_of,
)
from speechtrain.sweep.space.space import MAX_ENUMERATED_POINTS, Assignment, Parameter, Space, parse_space, typed
from speechtrain.sweep.study.objectives import Constraint, directions_of, full_name
from speechtrain.sweep.study.race_plan import RacePlan, plan_race
from speechtrain.sweep.study.results import read_best

if TYPE_CHECKING:  # they import Optuna, which a mistake in the space does not wait for
    from optuna import Trial

    from speechtrain.sweep.study.warm_start import WarmStart

log = logging.getLogger(__name__)

_SAY_HOW_MANY = "say how many: hydra.sweeper.n_trials=30, or when it is enough: hydra.sweeper.stop_when.wall_hours=2"
_OF_TRAININGS = {
    "constraints": "leave it out, and return infinity where a bound is broken",
    "report": "leave it out: the pruner compares what the program gives to speechtrain.sweep.report",
    "seeds_per_trial": "leave it out, and return the mean over several seeds",
}
"""Keys that mean nothing to other programs, and what these do instead."""
_PRESETS = ("sweep=", "experiment=rerun_best")
"""Overrides that concern the sweeper alone; a job with one of them would start a sweep when it is resumed."""

UNLIMITED = 1_000_000
"""Slots of a study that `stop_when` alone ends."""


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep will do.

    Attributes:
        study_name: name of the study, given or derived from the sweep.
        folder: folder of the sweep.
        space: what is searched.
        settings: what all trials share, as `shared_settings` describes it.
        first: assignments of the first slots, complete or in part; all of them for a grid.
        n_trials: slots of the study.
        grid: whether each point of the space is run once.
        objectives: names of the metrics; empty: what the program returns.
        directions: direction in which each objective is better.
        sampler: config node of the sampler; None: random draws.
        pruner: config node of the pruner; None: no pruning.
        warm: what is taken over from earlier studies.
        race: how the best are trained with further seeds at the end; None: they are not.
        extend: adds the parameters of `hydra.sweeper.custom_search_space` to a trial; None: there are no others.
    """

    study_name: str
    folder: Path
    space: Space
    settings: dict[str, str]
    first: list[Assignment]
    n_trials: int
    grid: bool
    objectives: list[str]
    directions: list[Direction]
    sampler: dict[str, Any] | None
    pruner: dict[str, Any] | None
    warm: WarmStart
    race: RacePlan | None = None
    extend: Callable[[Trial], None] | None = None

    def names(self, word: str) -> list[str]:
        """Return a name for each objective: for values without names a word, with a number where there are several."""
        if self.objectives or len(self.directions) == 1:
            return self.objectives or [word]
        return [f"{word} {number}" for number in range(1, len(self.directions) + 1)]


class Planner:
    """Turns the command line of a sweep into its plan.

    Args:
        options: `hydra.sweeper`.
        composer: composes single jobs.
        config: config of the sweep; its folder is set if that is to follow from the study's name.
    """

    def __init__(self, options: SweeperOptions, composer: Composer, config: DictConfig) -> None:
        self._options = options
        self._composer = composer
        self._config = config

    def plan(self, arguments: Sequence[str]) -> SweepPlan:
        """Read the space from the command line and the options, check all of it, and count the trials.

        Raises:
            ConfigError: with every problem.
        """
        self._check_options()
        space = self._read_space(arguments)
        study_name = self._options.study_name or study_name_of(space, self._options, str(self._config.hydra.job.name))
        self._set_folder(study_name)
        self._check_count(space)
        custom = self._options.custom_search_space
        function = _function(custom, "custom_search_space") if custom is not None else None
        cfg = self._compose_defaults(space)
        options = swept_options(self._composer, space)
        refuse_own_sweeps(options, cfg)
        space = replace(space, settled=settled_values(self._composer, space, cfg))
        space = typed(space, types_of(self._composer, options, space, cfg))
        check = JobCheck(self._options)
        check_space(self._composer, space, check, partial(self._explain, space))
        objectives, directions = self._objectives(cfg)
        refuse_comparing_stop(self._options, directions)
        seeds = self._options.seeds_per_trial
        race = plan_race(self._options.finalists, seeds_per_trial=seeds, directions=directions, space=space, cfg=cfg)
        from speechtrain.sweep.study.samplers import compares_reports, sampler_factory, with_epochs
        from speechtrain.sweep.study.warm_start import read_warm_start

        warm = read_warm_start(self._options.warm_start, space, self._node("sampler"), single=len(directions) == 1)
        first, n_trials, grid, sampler = self._first_trials(space, cfg, warm.first)
        sampler_factory(sampler, conditional=bool(space.branches))  # refuses what cannot be built
        pruner = self._node("pruner")
        if len(directions) > 1:
            refuse_pauses(pruner)
            pruner = None
        if pruner is not None:
            pruner = with_epochs(pruner, max(check.reports.values(), default=0))
        if len(directions) == 1 and compares_reports(pruner, sampler):
            self._refuse_opposite_report(cfg, directions[0])
        if pruner is not None:
            warn_of_idle_pruner(pruner, check.reports, directions[0], n_trials)
        folder = Path(str(self._config.hydra.sweep.dir))
        settings = self._settings(options, space, cfg, objectives)
        extend = extension(function, cfg, space) if function is not None else None
        return SweepPlan(
            study_name, folder, space, settings, first, n_trials, grid, objectives, directions, sampler, pruner, warm, race, extend
        )

    # --- options and space ------------------------------------------------------------------------------------------------------------

    def _check_options(self) -> None:
        hydra = self._config.hydra
        problems = [*find_node_problems(hydra.sweeper, "hydra.sweeper"), *find_node_problems(hydra.launcher, "hydra.launcher")]
        for text in self._options.constraints:
            try:
                Constraint.parse(text)
            except ConfigError as error:
                problems += error.problems
        if self._options.check is None:
            problems += [
                Problem(f"hydra.sweeper.{key}", "is known to speechtrain's own training alone", fix)
                for key, fix in _OF_TRAININGS.items()
                if getattr(self._options, key) not in ([], None, 1)
            ]
        if problems:
            raise ConfigError(problems)

    def _read_space(self, arguments: Sequence[str]) -> Space:
        earlier = self._options.repeat_best_of
        overrides = [*(read_best(earlier) if earlier is not None else []), *arguments]
        params = {str(key): value for key, value in (self._options.params or {}).items()}
        globs = {key: f"{key}={value}" for key, value in params.items() if isinstance(value, str) and value.startswith("glob(")}
        params |= {key: self._composer.without_glob(text).partition("=")[2] for key, text in globs.items()}
        typed_ = [item for item in overrides if not item.startswith(_PRESETS)]
        return parse_space([self._composer.without_glob(item) if "=glob(" in item else item for item in typed_], params, self._options.when)

    def _set_folder(self, study_name: str) -> None:
        """Name the sweep's folder after its study, so that the same command finds it again; a folder that the config names stays."""
        unresolved = OmegaConf.to_container(self._config.hydra.sweep, resolve=False)
        assert isinstance(unresolved, dict)
        if "${now:" not in str(unresolved["dir"]):
            return
        folder = f"multirun/{study_name}"
        with read_write(self._config), open_dict(self._config):
            self._config.hydra.sweep.dir = folder
            self._config.hydra.overrides.hydra.append(f"hydra.sweep.dir={override_text(folder)}")

    def _check_count(self, space: Space) -> None:
        """Refuse a space of too many points, or infinitely many, for which neither `n_trials` nor `stop_when` is set."""
        if self._options.n_trials is not None or self._options.stop_when.is_set:
            return
        if (function := self._options.custom_search_space) is not None:
            raise ConfigError([Problem("hydra.sweeper.n_trials", f"{function} adds parameters without end", _SAY_HOW_MANY)])
        if space.size() is None:
            keys = ", ".join(parameter.path for parameter in space.all_parameters())
            why = "has infinitely many points" if not space.is_finite() else f"has more than {MAX_ENUMERATED_POINTS:,} points"
            raise ConfigError([Problem("hydra.sweeper.n_trials", f"the space of {keys} {why}", _SAY_HOW_MANY)])

    def _compose_defaults(self, space: Space) -> DictConfig:
        """Return the config with its fixed overrides and its own values of the swept keys."""
        overrides = default_overrides(self._composer, space)
        try:
            return self._composer.compose(overrides)
        except Exception as error:  # explained as a mistake on the command line
            raise self._explain(space, overrides, error) from error

    def _explain(self, space: Space, overrides: Sequence[str], error: Exception) -> ConfigError:
        """Return the problems of a job that does not compose, each with the options of swept groups that lead to it."""
        if isinstance(error, ConfigError):
            return error
        swept = {parameter.path for parameter in space.all_parameters() if self._composer.is_group(parameter.path)}
        options = [text for text in overrides if parsed(text).key_or_group in swept]
        if self._options.check is None:  # another program, whose groups are known to its own composer alone
            problems = [explain_job(overrides, error, self._composer.compose)]
        else:
            problems = explain([*overrides], error).problems
        return ConfigError(
            problem
            if not options or problem.path in swept
            else replace(problem, message=f"{problem.message.rstrip(':')}, with {' '.join(options)}")
            for problem in problems
        )

    # --- first trials -----------------------------------------------------------------------------------------------------------------

    def _first_trials(
        self, space: Space, cfg: DictConfig, warm: Sequence[Assignment]
    ) -> tuple[list[Assignment], int, bool, dict[str, Any] | None]:
        """Return the assignments of the first slots, the number of slots, whether they are a grid, and the sampler of the others."""
        from speechtrain.sweep.study.samplers import is_grid

        options = self._options
        sampler = self._node("sampler")
        size = space.size() if options.custom_search_space is None else None
        warm = warm[: -(-options.n_trials // 2)] if options.n_trials is not None else warm  # the others search
        if is_grid(sampler) and size is None:
            message = f"a grid needs lists of values, at most {MAX_ENUMERATED_POINTS:,} points"
            raise ConfigError([Problem("hydra.sweeper.sampler", message, "use choice() and range()")])
        own = own_point(self._composer, space, cfg) if options.own_values_first else {}
        leading = [own, *(self._enqueued(space, index, entry) for index, entry in enumerate(options.enqueue)), *warm]
        if size is None or (options.n_trials is not None and options.n_trials < size and not is_grid(sampler)):
            count = options.n_trials or UNLIMITED
            return _distinct(leading)[:count], count, False, sampler
        points = list(space.points())
        count = min(size, options.n_trials or size)
        if options.n_trials is not None and options.n_trials > size:
            log.info("the space has %d points: each is run once", size)
        return _distinct([*(point for point in leading if point in points), *points])[:count], count, True, sampler

    def _enqueued(self, space: Space, index: int, entry: Mapping[str, Any]) -> Assignment:
        """Return an entry of `hydra.sweeper.enqueue` as an assignment, complete or in part.

        Raises:
            ConfigError: a key is not swept, or a value is not in the space.
        """
        remaining = {str(key): value for key, value in entry.items()}
        assignment: Assignment = {}
        problems = []
        complete: Assignment = {}
        for parameter in space.active(complete):
            if parameter.path in remaining:
                is_offered, label = label_of(parameter, remaining.pop(parameter.path))
                if is_offered:
                    assignment[parameter.name] = label
                else:
                    problems.append(_not_offered(parameter, index, entry))
            complete[parameter.name] = assignment.get(parameter.name, first_value(parameter))
        swept = ", ".join(parameter.path for parameter in space.all_parameters())
        problems += [
            Problem(f"hydra.sweeper.enqueue[{index}].{key}", "is not swept, or not in this branch", f"swept are {swept}")
            for key in remaining
        ]
        if problems:
            raise ConfigError(problems)
        return assignment

    # --- objectives -------------------------------------------------------------------------------------------------------------------

    def _objectives(self, cfg: DictConfig) -> tuple[list[str], list[Direction]]:
        """Return the metrics and their directions; no metric for a program that returns the value itself."""
        options = self._options
        own_metric = OmegaConf.select(cfg, "objective.metric", default=None) if options.check is not None else None
        metrics = [full_name(name) for name in options.objectives or []] or ([str(own_metric)] if own_metric is not None else [])
        if metrics:
            of_task = task_directions(str(OmegaConf.select(cfg, "task._target_", default="")))
            return metrics, directions_of(metrics, options.direction, of_task)
        directions = [options.direction] if isinstance(options.direction, str) else list(options.direction or ["minimize"])
        return [], directions_of(directions, directions, {})

    def _refuse_opposite_report(self, cfg: DictConfig, direction: Direction) -> None:
        """Refuse a report that is better in the other direction than the objective, for what compares reports does so in that of the study.

        Raises:
            ConfigError: it is.
        """
        report = self._options.report
        of_task = task_directions(str(OmegaConf.select(cfg, "task._target_", default=""))) if report is not None else {}
        other = of_task.get(str(report).rpartition("/")[2], direction)
        if other != direction:
            message = f"{report} is to be {other}d and the objective {direction}d; trials are compared in one direction"
            raise ConfigError([Problem("hydra.sweeper.report", message, "report a metric of that direction, or leave it out")])

    def _settings(self, options: Sequence[SweptOption], space: Space, cfg: DictConfig, objectives: Sequence[str]) -> dict[str, str]:
        """Return what all trials of the study share: how the objective is measured, and each value that is not swept."""
        from speechtrain.sweep.settings import shared_settings

        measured = {"hydra.sweeper.objectives": ", ".join(objectives), "hydra.sweeper.seeds_per_trial": str(self._options.seeds_per_trial)}
        if self._options.custom_search_space is not None:
            measured["hydra.sweeper.custom_search_space"] = self._options.custom_search_space
        counts = (lambda _key: True) if self._options.check is None else has_effect  # of another program's keys nothing is known
        return measured | shared_settings(options, space, cfg, counts)

    def _node(self, kind: Literal["sampler", "pruner"]) -> dict[str, Any] | None:
        """Return the config node of the sampler or of the pruner, without what the option that it replaces had.

        Raises:
            ConfigError: there is none of that name, or keys of one were typed where none is chosen.
        """
        from speechtrain.sweep.study.samplers import drop_defaults_of_other_class, node_of, refuse_unused

        hydra = self._config.hydra
        node, typed = node_of(getattr(self._options, kind), kind), _typed_keys(unresolved(hydra.overrides.hydra), f"hydra.sweeper.{kind}")
        if node is None:
            refuse_unused(kind, typed)
            return None
        return drop_defaults_of_other_class(node, kind, hydra.runtime.choices.get(f"hydra/sweeper/{kind}"), typed)


def _typed_keys(overrides: Sequence[str], path: str) -> set[str]:
    """Return the keys of a node that were typed, one by one or in a mapping for the whole node."""
    keys = set()
    for override in map(parsed, overrides):
        if override.key_or_group == path and isinstance(value := override.value(), Mapping):
            keys |= {str(key) for key in value}
        elif override.key_or_group.startswith(f"{path}."):
            keys.add(override.key_or_group.removeprefix(f"{path}.").partition(".")[0])
    return keys


class JobCheck:
    """Lists the problems of the config of a job, and keeps when the jobs that it has seen would report to the pruner.

    Attributes:
        reports: the epochs of the longest training by the epochs between two reports; empty for another program, of whose epochs
            nothing is known.

    Raises:
        ConfigError: there is no function as `hydra.sweeper.check` names it.
    """

    def __init__(self, options: SweeperOptions) -> None:
        self.reports: dict[int, int] = {}
        self._check: Check | None = _function(options.check, "check") if options.check is not None else None
        self._metrics = _metrics_of_epochs(options)

    def __call__(self, cfg: DictConfig) -> list[Problem]:
        """Return the problems of a composed config, and of the metrics that the sweeper is to take from its epochs."""
        if self._check is None:
            return []
        if problems := self._check(cfg):
            return problems
        every, epochs = cfg.trainer.val_every_n_epochs, min(cfg.trainer.epochs, cfg.trainer.limit_epochs or cfg.trainer.epochs)
        self.reports[every] = max(epochs, self.reports.get(every, 0))
        return unmeasured(cfg, self._metrics)


def _function(name: str, key: str) -> Any:
    """Return the function that a key of the sweeper names; a leading dot stands for the folder of the program.

    Raises:
        ConfigError: there is none.
    """
    module, _, attribute = name.removeprefix(".").rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        message = f"there is no function '{name}' ({first_line(error)})"
        raise ConfigError([Problem(f"hydra.sweeper.{key}", message, "give package.module.function, or null")]) from error


def _metrics_of_epochs(options: SweeperOptions) -> dict[str, str]:
    """Return the metrics that every epoch must measure, by the keys that name them; others are known before or after the training."""
    objectives = {f"hydra.sweeper.objectives[{index}]": full_name(name) for index, name in enumerate(options.objectives or [])}
    constraints = {f"hydra.sweeper.constraints[{index}]": Constraint.parse(text).metric for index, text in enumerate(options.constraints)}
    reported = {"hydra.sweeper.report": options.report} if options.report is not None else {}
    return reported | {key: name for key, name in (objectives | constraints).items() if name.startswith("val/") or "/" not in name}


def study_name_of(space: Space, options: SweeperOptions, program: str) -> str:
    """Return a study's name that follows from what is swept, so that the same command finds its study again.

    The digest depends on the names of the classes in `space/space.py` and of their fields: renaming them loses studies.
    """
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
        **({"warm_start": list(options.warm_start)} if options.warm_start else {}),
    }
    if options.custom_search_space is not None:  # the others have the names that they had before this key
        content["custom_search_space"] = options.custom_search_space
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:6]
    keys = [re.sub(r"\W+", "_", parameter.path.rpartition(".")[2]) for parameter in space.all_parameters()]
    return f"{'-'.join(dict.fromkeys(keys))[:40].strip('-') or 'one'}-{digest}"


def _distinct(points: Sequence[Assignment]) -> list[Assignment]:
    """Return the assignments that are not empty, each once; 1 and 1.0 differ."""
    by_key: dict[str, Assignment] = {}
    for point in points:
        by_key.setdefault(str(sorted((name, type(value).__name__, value) for name, value in point.items())), point)
    return [point for point in by_key.values() if point]


def _not_offered(parameter: Parameter, index: int, entry: Mapping[str, Any]) -> Problem:
    from speechtrain.sweep.study.study import describe

    values = next(iter(describe(Space((parameter,))).values()))
    path = f"hydra.sweeper.enqueue[{index}].{parameter.path}"
    return Problem(path, f"{entry[parameter.path]!r} is not among {values}", "give a value of the space, or widen it")
