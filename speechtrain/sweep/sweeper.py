"""A sweep from start to end: check, plan, keep every worker busy, tell what happened."""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from speechtrain.config.checks import find_node_problems
from speechtrain.config.compose import explain
from speechtrain.config.targets import task_directions
from speechtrain.errors import ConfigError, Problem, RunError
from speechtrain.sweep.compose import Composer
from speechtrain.sweep.objectives import Constraint, Direction, directions_of, full_name
from speechtrain.sweep.outcome import VARIABLE, Job
from speechtrain.sweep.precheck import check_space, first_value, label_of, own_point, settled_values, types_of
from speechtrain.sweep.runner import Program
from speechtrain.sweep.space import MANY, Assignment, Parameter, Space, parse_space, typed
from speechtrain.sweep.text import override_text

if TYPE_CHECKING:
    from speechtrain.sweep.executors import Executor
    from speechtrain.sweep.ledger import Ledger
    from speechtrain.sweep.notebook import SweepNotebook
    from speechtrain.sweep.report import Reporter
    from speechtrain.sweep.study import Study, Taken
    from speechtrain.sweep.trial import TrialContext
    from speechtrain.tracking.base import Status

log = logging.getLogger(__name__)

_OWN_CHOICES = ("sweep=", "experiment=rerun_best")
"""A preset concerns the sweeper alone; a job that named it would start a sweep when it is resumed."""
_FOREIGN_POLL = 1.0
"""Seconds between looks at trials that others run."""
_MOURNING = 5.0
"""Seconds between looks for trials whose process died."""
_FEWEST = 5
"""Settled trials before the share of failures can end a sweep."""


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


class Sweep:
    """One command's sweep. `prepare` may refuse it, `run` does it."""

    def __init__(self, options: Options, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.options = options
        self.context = hydra_context
        self.task_function = task_function
        self.config = config
        self.composer = Composer(hydra_context.config_loader, config)
        self._notebook: SweepNotebook | None = None

    # --- before anything starts -------------------------------------------------------------------------------------------------------

    def prepare(self, arguments: Sequence[str]) -> Plan:
        """Read the space, check all of it, say how many trials there will be.

        Raises:
            ConfigError: with every problem.
        """
        options = self.options
        self._typed = list(arguments)
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
        from speechtrain.sweep.report import read_best

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
        from speechtrain.sweep.search import is_grid, node_of

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
        from speechtrain.sweep.study import describe

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

    # --- the sweep --------------------------------------------------------------------------------------------------------------------

    def run(self, plan: Plan) -> float | None:
        """Run until the study has its trials; returns the best objective.

        Raises:
            RunError: no trial, or too few, came to an end.
        """
        from speechtrain.sweep.report import Reporter
        from speechtrain.sweep.search import make_pruner, node_of, sampler_factory
        from speechtrain.sweep.storage import open_storage, storage_url
        from speechtrain.sweep.study import Study

        options = self.options
        folder = Path(str(self.config.hydra.sweep.dir))
        folder.mkdir(parents=True, exist_ok=True)
        url = storage_url(options.storage, folder)
        pruner = node_of(options.pruner, "pruner") if len(plan.directions) == 1 else None
        sampler = sampler_factory(
            node_of(options.sampler, "sampler"),
            conditional=bool(plan.space.branches),
        )
        assert options.study_name is not None
        study = Study(
            url,
            open_storage(url),
            options.study_name,
            directions=plan.directions,
            space=plan.space,
            make_sampler=sampler,
            pruner=make_pruner(pruner),
            first=plan.first,
            n_trials=plan.n_trials,
            retries=options.retries,
            ahead=2 * options.n_jobs + 6,
            patience=5 * options.heartbeat,
        )
        OmegaConf.save(self.config, folder / "multirun.yaml")
        executor = self._executor(folder)
        if executor.size > 1 and (url.startswith("memory:") or ":memory:" in url):
            fix = "leave it out: the default is a file"
            raise ConfigError([Problem("hydra.sweeper.storage", f"{url} is not seen by the {executor.size} processes of n_jobs", fix)])
        reporter = Reporter(study, plan, self.composer, folder, workers=executor.size, options=options)
        reporter.begin()
        self._pruner = pruner
        status: Status = "FAILED"
        problem: BaseException | None = None
        try:
            try:
                self._open_notebook(study, plan, folder)
                self._loop(study, plan, executor, reporter)
            except KeyboardInterrupt:
                status = "KILLED"
                executor.close()
                if executor.ends_jobs:
                    self._after_interruption(study)
                reporter.interrupted()
                raise
            finally:
                executor.close()
            value = reporter.end()
            status = "FINISHED"
        except Exception as error:
            problem = error
            raise
        finally:
            if self._notebook is not None:
                self._notebook.close(status, study.trials(), reporter.best(), problem)
        return value

    def _open_notebook(self, study: Study, plan: Plan, folder: Path) -> None:
        """The sweep's own run, for programs that have trackers in their config."""
        from speechtrain.sweep.notebook import SweepNotebook, settings_of
        from speechtrain.sweep.study import describe

        if self.options.check is None:
            return
        cfg = self.composer.compose(plan.space.fixed)
        settings = settings_of(self.options, describe(plan.space))
        notebook = SweepNotebook(cfg, study, plan.objectives, folder.absolute(), settings, self._typed)
        notebook.open()
        self._notebook = notebook

    def _loop(self, study: Study, plan: Plan, executor: Executor, reporter: Reporter) -> None:
        from speechtrain.sweep.aftermath import close_runs
        from speechtrain.sweep.trial import Attached

        options, folder = self.options, Path(str(self.config.hydra.sweep.dir))
        started = time.monotonic()
        running: dict[int, tuple[TrialContext, Taken]] = {}
        looked_for_dead = -_MOURNING
        while True:
            now = time.monotonic()
            ledger = study.plan()
            if now - looked_for_dead >= _MOURNING:
                looked_for_dead = now
                for number, reason in study.bury_dead(ledger):
                    close_runs(folder / str(number), reason)
                    ledger = study.plan()
            reporter.show(ledger, busy=len(running))
            if self._notebook is not None:
                self._notebook.update(study.trials(fresh=False), reporter.best())
            self._judge_failures(ledger, study)
            stopping = options.stop_after is not None and now - started > options.stop_after
            if not running and (stopping or ledger.is_complete(study.n_trials)):
                break
            taken = study.take(ledger) if len(running) < executor.size and not stopping else None
            if taken is not None:
                context = self._trial_context(study, plan, taken)
                running[taken.number] = context, taken
                executor.submit(Job(taken.number, plan.space.overrides(taken.assignment), {VARIABLE: context.to_text()}))
                if len(running) < executor.size:
                    continue
            for outcome in executor.wait(timeout=_FOREIGN_POLL):
                context, taken = running.pop(outcome.number)
                if not outcome.recorded:  # what the job could not do itself
                    Attached(context).settle(outcome)
                study.mine.discard(taken.id)
                if outcome.ending in ("died", "timeout", "memory"):
                    close_runs(folder / str(outcome.number), outcome.reason)
            if not running and taken is None:
                time.sleep(_FOREIGN_POLL / 4)  # the rest is in the hands of others

    def _trial_context(self, study: Study, plan: Plan, taken: Taken) -> TrialContext:
        from speechtrain.sweep.report import short
        from speechtrain.sweep.trial import TrialContext

        options = self.options
        return TrialContext(
            storage=study.url,
            study=study.name,
            id=taken.id,
            number=taken.number,
            objectives=plan.objectives,
            directions=plan.directions,
            constraints=list(options.constraints),
            report=options.report,
            pruner=self._pruner,
            seeds=options.seeds_per_trial,
            seeds_startup_trials=options.seeds_startup_trials,
            timeout=options.timeout,
            heartbeat=options.heartbeat,
            keep_pruned=options.keep_pruned_checkpoints,
            show_output=options.show_output,
            name=short(taken.assignment),
            parents=self._notebook.parents if self._notebook is not None else {},
            retry_of=taken.retry_of,
        )

    def _after_interruption(self, study: Study) -> None:
        for trial in study.trials():
            if trial._trial_id in study.mine and not trial.state.is_finished():
                study.fail(trial._trial_id, "interrupted", charged=False)

    def _judge_failures(self, ledger: Ledger, study: Study) -> None:
        """End a sweep in which too much fails.

        Raises:
            RunError: with the latest reason.
        """
        done = ledger.done
        failed = [slot.latest for slot in done if slot.latest.state.name == "FAIL"]
        if len(done) >= _FEWEST and len(failed) / len(done) > self.options.max_failure_rate:
            latest = max(failed, key=lambda entry: entry.number)
            reason = next(trial for trial in study.trials() if trial.number == latest.number).user_attrs.get("reason", "unknown")
            raise RunError(
                f"{len(failed)} of {len(done)} trials failed, more than hydra.sweeper.max_failure_rate={self.options.max_failure_rate:g}\n"
                f"    the last reason: {reason}\n"
                "    -> mend the cause and give the same command with another hydra.sweeper.study_name"
            )

    def _executor(self, folder: Path) -> Executor:
        from speechtrain.sweep.executors import InProcess, ThroughLauncher
        from speechtrain.sweep.pool import Pool, PoolOptions

        program = Program(self.context, self.config, self.task_function)
        size = self.options.n_jobs
        launcher = self._launcher()
        pool = getattr(launcher, "pool_options", None)
        if pool is None and isinstance(launcher, BasicLauncher):
            if size == 1:
                return InProcess(program)
            pool = PoolOptions()
        if hasattr(launcher, "check"):
            launcher.check()
        if pool is not None:
            return Pool(program, size, folder, pool, timeout=self.options.timeout)
        return ThroughLauncher(self._launcher, size)

    def _launcher(self) -> Launcher:
        found: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self.context, task_function=self.task_function, config=self.config
        )
        return found


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
