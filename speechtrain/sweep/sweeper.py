"""A sweep from start to end: check, plan, keep every worker busy, tell what happened."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from speechtrain.errors import ConfigError, Problem, RunError
from speechtrain.sweep.plan import Options, Plan, Planner
from speechtrain.sweep.space.compose import Composer
from speechtrain.sweep.trial.outcome import VARIABLE, Job
from speechtrain.sweep.trial.runner import Program

if TYPE_CHECKING:
    from speechtrain.sweep.report.console import Reporter
    from speechtrain.sweep.report.recorder import SweepNotebook
    from speechtrain.sweep.study.ledger import Ledger
    from speechtrain.sweep.study.study import Study, Taken
    from speechtrain.sweep.trial.context import TrialContext
    from speechtrain.sweep.workers.executors import Executor
    from speechtrain.tracking.base import Status

log = logging.getLogger(__name__)

_FOREIGN_POLL = 1.0
"""Seconds between looks at trials that others run."""
_MOURNING = 5.0
"""Seconds between looks for trials whose process died."""
_FEWEST = 5
"""Settled trials before the share of failures can end a sweep."""


class Sweep:
    """Runs the sweep of one command: `prepare` checks and plans it, `run` carries it out."""

    def __init__(self, options: Options, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.options = options
        self.context = hydra_context
        self.task_function = task_function
        self.config = config
        self.composer = Composer(hydra_context.config_loader, config)
        self._notebook: SweepNotebook | None = None

    def prepare(self, arguments: Sequence[str]) -> Plan:
        """Read the space, check all of it, and count the trials.

        Raises:
            ConfigError: with every problem.
        """
        self._typed = list(arguments)
        return Planner(self.options, self.composer, self.config).prepare(arguments)

    def run(self, plan: Plan) -> float | None:
        """Run until the study has its trials; returns the best objective.

        Raises:
            RunError: no trial, or too few, came to an end.
        """
        from speechtrain.sweep.report.console import Reporter
        from speechtrain.sweep.study.samplers import make_pruner, node_of, sampler_factory
        from speechtrain.sweep.study.storage import open_storage, storage_url
        from speechtrain.sweep.study.study import Study

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
        from speechtrain.sweep.report.recorder import SweepNotebook, settings_of
        from speechtrain.sweep.study.study import describe

        if self.options.check is None:
            return
        cfg = self.composer.compose(plan.space.fixed)
        settings = settings_of(self.options, describe(plan.space))
        notebook = SweepNotebook(cfg, study, plan.objectives, folder.absolute(), settings, self._typed)
        notebook.open()
        self._notebook = notebook

    def _loop(self, study: Study, plan: Plan, executor: Executor, reporter: Reporter) -> None:
        from speechtrain.sweep.trial.close_runs import close_runs
        from speechtrain.sweep.trial.context import Attached

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
        from speechtrain.sweep.study.results import short
        from speechtrain.sweep.trial.context import TrialContext

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
        from speechtrain.sweep.workers.executors import InProcess, ThroughLauncher
        from speechtrain.sweep.workers.pool import Pool, PoolOptions

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
