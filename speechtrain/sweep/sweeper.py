"""Drives a sweep from start to end: plans it, keeps every worker busy with trials, shows and records what happened.

`plugin.py` calls it for Hydra. The sweeper holds nothing that is not in the study's storage; what is to be done next is read from there
after every step, so that it may be killed at any moment and others may work on the same study.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from speechtrain.addresses import keep
from speechtrain.config.overrides import unresolved
from speechtrain.config.schemas.sweeps import SweeperOptions
from speechtrain.errors import ConfigError, Problem, RunError
from speechtrain.files import sqlite_file, write_text
from speechtrain.processes import interrupts
from speechtrain.sweep.plan import Planner, SweepPlan
from speechtrain.sweep.space.compose import Composer
from speechtrain.sweep.space.precheck import default_overrides
from speechtrain.sweep.trial.context import TrialContext
from speechtrain.sweep.trial.outcome import VARIABLE, SweepJob
from speechtrain.sweep.trial.runner import Program

if TYPE_CHECKING:  # they import Optuna, which a mistake on the command line does not wait for
    from speechtrain.sweep.reports.console import Reporter
    from speechtrain.sweep.reports.recorder import SweepRecorder
    from speechtrain.sweep.study.folder import SharedFile
    from speechtrain.sweep.study.ledger import Ledger, LedgerEntry
    from speechtrain.sweep.study.race import Standing
    from speechtrain.sweep.study.study import ClaimedTrial, Study
    from speechtrain.sweep.workers.executors import Executor
    from speechtrain.tracking.base import Status

POLL_SECONDS = 1.0
"""Time to wait for outcomes before the study is read again, for other sweepers may change it."""
DEAD_TRIAL_CHECK_SECONDS = 5.0
"""Time between searches for trials whose process died."""
_FEWEST_DONE = 5
"""Slots that are done before the share of failures can end a sweep."""


class Sweep:
    """Runs the sweep of one command.

    Args:
        options: `hydra.sweeper`.
        program: the program whose jobs are the trials, with the config of the sweep.
    """

    def __init__(self, options: SweeperOptions, program: Program) -> None:
        self._options = options
        self._program = program
        self._composer = Composer(program.hydra_context.config_loader, program.config)

    def run(self, arguments: Sequence[str]) -> float | None:
        """Run until the study has its trials, and return the best objective; None if trials are left for another command.

        Args:
            arguments: overrides as typed, swept or not.

        Raises:
            ConfigError: the sweep cannot be run as it is described.
            RunError: no trial finished, or too many failed.
        """
        plan = Planner(self._options, self._composer, self._program.config).plan(arguments)
        from speechtrain.sweep.reports.console import Reporter
        from speechtrain.sweep.reports.presence import present
        from speechtrain.sweep.study.attributes import store_stop
        from speechtrain.sweep.workers.executors import make_executor

        study = _open_study(plan, self._options)
        shared = keep(OmegaConf.to_container(self._program.config, resolve=False))
        write_text(plan.folder / "multirun.yaml", OmegaConf.to_yaml(OmegaConf.create(shared)))
        recorder = self._recorder(study, plan, arguments)
        files = [*_files_of(study.url), *(recorder.files() if recorder is not None else [])]
        executor = make_executor(self._options, self._program, plan.folder, files)
        workers = self._options.n_jobs
        _refuse_private_storage(study.url, executor)
        reporter = Reporter(study, plan, self._composer, workers=workers, options=self._options)
        reporter.begin()
        with _recording(recorder, study, reporter), present(study, workers, plan.folder, options=self._options) as presence:
            loop = TrialLoop(self._options, plan, study, executor, reporter, recorder)
            try:
                with reporter.watched() if not executor.is_local else contextlib.nullcontext():
                    reason = loop.run()
            except KeyboardInterrupt as error:
                executor.close()
                if executor.ends_jobs:
                    study.fail_interrupted()
                reporter.interrupted(loop.standing)
                error.add_note(interrupts.REPORTED)
                raise
            finally:
                executor.close()
            store_stop(study.storage, study.id, reason)
            presence.ended = reason or "all trials are done"
            return reporter.end(reason, loop.standing)

    def _recorder(self, study: Study, plan: SweepPlan, arguments: Sequence[str]) -> SweepRecorder | None:
        """Return what records the sweep's own run; None for a program without trackers in its config."""
        if self._options.check is None:
            return None
        from speechtrain.sweep.reports.recorder import SweepRecorder, settings_of
        from speechtrain.sweep.study.study import describe

        cfg = self._composer.compose(default_overrides(self._composer, plan.space))
        settings = settings_of(self._options, plan.study_name, describe(plan.space))
        of_hydra = [each for each in unresolved(self._program.config.hydra.overrides.hydra) if not each.startswith("hydra.mode=")]
        return SweepRecorder(cfg, study, plan.objectives, plan.folder.absolute(), settings, arguments, of_hydra)


def _open_study(plan: SweepPlan, options: SweeperOptions) -> Study:
    from speechtrain.sweep.study.folder import own_folder
    from speechtrain.sweep.study.samplers import make_pruner, sampler_factory
    from speechtrain.sweep.study.storage import open_storage, storage_url
    from speechtrain.sweep.study.study import Study

    url = storage_url(options.storage, plan.folder)
    make_sampler, pruner = sampler_factory(plan.sampler, conditional=bool(plan.space.branches)), make_pruner(plan.pruner)
    own_folder(plan.folder, plan.study_name, url)
    return Study(
        url,
        open_storage(url),
        plan.study_name,
        directions=plan.directions,
        space=plan.space,
        settings=plan.settings,
        make_sampler=make_sampler,
        pruner=pruner,
        first=plan.first,
        n_trials=plan.n_trials,
        retries=options.retries,
        patience=5 * options.heartbeat,
        extend=plan.extend,
        prior=plan.warm.prior,
    )


def _files_of(url: str) -> list[SharedFile]:
    """Return the file of a study's storage, if it is one."""
    from speechtrain.sweep.study.folder import SharedFile

    if ":memory:" in url or not url.startswith(("journal:", "sqlite:")):
        return []
    path = url.removeprefix("journal:///") if url.startswith("journal:") else str(sqlite_file(url))
    fix = "give a storage that all machines reach: postgresql+psycopg://USER@HOST/DATABASE or grpc://HOST:PORT"
    return [SharedFile("hydra.sweeper.storage", path, fix)]


def _refuse_private_storage(url: str, executor: Executor) -> None:
    """Refuse a storage in memory for jobs in other processes.

    Raises:
        ConfigError: the storage is in memory and the jobs do not run in this process.
    """
    if not executor.is_local and (url.startswith("memory:") or ":memory:" in url):
        executor.close()
        message = f"{url} is private to one process, and trials run in others"
        raise ConfigError([Problem("hydra.sweeper.storage", message, "leave it out: the default is a file")])


@contextlib.contextmanager
def _recording(recorder: SweepRecorder | None, study: Study, reporter: Reporter) -> Iterator[None]:
    """Keep the sweep's own run open meanwhile, and close it with the status that the sweep had."""
    if recorder is None:
        yield
        return
    recorder.open()
    status: Status = "FAILED"
    problem: BaseException | None = None
    try:
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    except Exception as error:
        problem = error
        raise
    finally:
        recorder.close(status, study.finished, reporter.results, problem)


class TrialLoop:
    """Claims trials, starts their jobs and handles their outcomes, until the study has its trials.

    Args:
        options: `hydra.sweeper`.
        plan: plan of the sweep.
        study: where trials are claimed.
        executor: runs the jobs.
        reporter: shows what happens.
        recorder: recorder of the sweep's own run; None if there is none.

    Attributes:
        standing: what the race of the finalists has come to; None as long as there is none.
    """

    def __init__(
        self,
        options: SweeperOptions,
        plan: SweepPlan,
        study: Study,
        executor: Executor,
        reporter: Reporter,
        recorder: SweepRecorder | None,
    ) -> None:
        from speechtrain.sweep.study.control import SignalReader
        from speechtrain.sweep.study.finalists import FinalRace
        from speechtrain.sweep.study.stopping import StopRule

        self._options = options
        self._plan = plan
        self._study = study
        self._executor = executor
        self._reporter = reporter
        self._recorder = recorder
        self._running: dict[int, TrialContext] = {}
        self._started = time.monotonic()
        self._checked_for_dead = -math.inf
        self._ended_since = True
        self._signals = SignalReader(study.storage, study.id)
        metric = next(iter(plan.objectives), "")
        self._stop_rule = StopRule(options.stop_when, plan.directions, metric, patience=5 * options.heartbeat)
        self._race = FinalRace(study, plan.race) if plan.race is not None else None
        self._is_race_forgotten = False
        self._without_checkpoints: set[int] = set()
        self.standing: Standing | None = None

    def run(self) -> str | None:
        """Run until the study has its trials, or no further one is to be started and no job runs; return why, if trials are left.

        Raises:
            RunError: too many trials failed.
        """
        if self._race is None:
            self._forget_race()
        while True:
            ledger = self._read_study()
            enough = self._reason_to_end_search(ledger)
            searches = enough is None and not ledger.is_complete
            if searches:
                self._forget_race()
            races = self._race is not None and not searches and not self._is_race_decided(ledger)
            halt = self._reason_to_halt(ledger) if searches or races else None
            if not self._running and (halt is not None or not (searches or races)):
                if ledger.is_complete:
                    self._delete_checkpoints(ledger.paused)
                return halt or enough
            started = halt is None and (searches or races) and not self._is_paused() and self._start_next(ledger, races=races)
            if started and len(self._running) < self._executor.size:
                continue
            self._handle_outcomes()
            if not self._running and not started:
                time.sleep(POLL_SECONDS / 4)  # the other trials are run by other sweepers

    def _reason_to_end_search(self, ledger: Ledger) -> str | None:
        """Return why the study needs no further trials of its search, though some are left; None: it does, or none is left."""
        self._stop_rule.update(self._study.finished)
        return None if ledger.is_complete else self._stop_rule.enough()

    def _is_race_decided(self, ledger: Ledger) -> bool:
        """Read what the race of the finalists has come to, have it shown and stored, and return whether it is decided."""
        assert self._race is not None
        self.standing = self._race.standing(ledger)
        if self.standing is None:
            return False
        self._race.store(self.standing)
        self._reporter.show_race(self.standing)
        return bool(self.standing.verdict)

    def _forget_race(self) -> None:
        """Forget what an earlier race has come to: trials that may be among the best are left, or no race is wanted any more."""
        from speechtrain.sweep.study.finalists import store_race

        if self._is_race_forgotten:
            return
        self._is_race_forgotten, self.standing = True, None
        store_race(self._study, None)

    def _reason_to_halt(self, ledger: Ledger) -> str | None:
        """Return why no further trial of any kind is started; None while one may be."""
        if (signal := self._signals.read()).word == "stop":
            return f"`sweep {signal.said or 'stop'}` was given on {signal.host}"
        seconds = self._options.stop_after
        if seconds is not None and time.monotonic() - self._started > seconds:
            return f"this command has run for hydra.sweeper.stop_after={seconds:g} s"
        return self._stop_rule.used_up(self._study.running(ledger))

    def _is_paused(self) -> bool:
        """Return whether no trial is to be started for now, and have it shown when that changes."""
        signal = self._signals.read()
        self._reporter.show_pause(signal if signal.word == "pause" else None)
        return signal.word == "pause"

    def _read_study(self) -> Ledger:
        """Fail trials whose process died, show the news, and return the ledger after that."""
        ledger = self._study.ledger()
        now = time.monotonic()
        if now - self._checked_for_dead >= DEAD_TRIAL_CHECK_SECONDS:
            self._checked_for_dead = now
            for number, reason in self._study.fail_dead_trials(ledger):
                self._close_runs(number, reason)
                ledger = self._study.ledger()
        self._reporter.show(ledger, running=sorted(self._running))
        if self._recorder is not None:
            self._recorder.update(self._study.finished, self._reporter.results)
        self._check_failures(ledger)
        if self._ended_since:
            self._ended_since = False
            self._delete_checkpoints(ledger.out_of_reach)
        return ledger

    def _start_next(self, ledger: Ledger, *, races: bool) -> bool:
        """Claim a trial and start its job; return False if all workers are busy or no trial waits."""
        continues = ledger.to_continue is not None  # its slot counts as done as long as it pauses
        self._executor.expect(sys.maxsize if races else self._study.n_trials - ledger.done + continues)
        if len(self._running) >= self._executor.size:
            return False
        trial = self._study.claim(ledger) if not races else self._claim_finalist()
        if trial is None:
            return False
        context = self._context_of(trial)
        self._running[trial.number] = context
        overrides = self._plan.space.overrides(trial.assignment)
        if trial.finalist is not None:
            _, key, seed = trial.finalist
            overrides.append(f"{key}={seed}")
        self._executor.submit(SweepJob(trial.number, overrides, {VARIABLE: context.to_text()}))
        return True

    def _claim_finalist(self) -> ClaimedTrial | None:
        """Claim what the race needs next; None while trials of the search run, or all that it needs does."""
        return self._race.claim(self.standing) if self._race is not None and self.standing is not None else None

    def _handle_outcomes(self) -> None:
        """Wait a moment for jobs to end, and record what they could not record themselves."""
        from speechtrain.sweep.trial.handle import TrialHandle

        for outcome in self._executor.wait(timeout=POLL_SECONDS):
            self._ended_since = True
            context = self._running.pop(outcome.number)
            if not outcome.recorded:
                TrialHandle(context).record(outcome)
            self._study.claimed_ids.discard(context.id)
            if outcome.ending in ("died", "lost", "timeout", "memory"):
                self._close_runs(outcome.number, outcome.reason)

    def _delete_checkpoints(self, paused: Sequence[LedgerEntry]) -> None:
        """Delete what paused trials would have gone on from, that will not be; a higher n_trials may have some of them begin anew."""
        if self._options.keep_pruned_checkpoints or self._options.check is None:  # another program's folders are its own
            return
        from speechtrain.sweep.study.attributes import TrialEntry
        from speechtrain.sweep.trial.attempts import delete_checkpoints, folder_of

        for entry in paused:
            if entry.number in self._without_checkpoints:
                continue
            self._without_checkpoints.add(entry.number)
            assert isinstance(entry, TrialEntry)
            if (folder := folder_of(entry.trial)) is not None:
                delete_checkpoints(folder)
            if self._recorder is not None:
                self._recorder.delete_last(entry.trial)

    def _close_runs(self, number: int, reason: str) -> None:
        if self._options.check is None:  # another program, which has no runs in our trackers
            return
        from speechtrain.sweep.trial.close_runs import close_runs

        close_runs(self._plan.folder / str(number), reason)
        if self._recorder is not None:
            self._recorder.abandon_runs(number, reason)

    def _check_failures(self, ledger: Ledger) -> None:
        """End a sweep in which too much fails.

        Raises:
            RunError: with the latest reason.
        """
        from speechtrain.sweep.study.attributes import TrialEntry, was_cancelled

        failed = [entry for entry in ledger.failed if not (isinstance(entry, TrialEntry) and was_cancelled(entry.trial))]
        limit = self._options.max_failure_rate
        if ledger.done >= _FEWEST_DONE and len(failed) / ledger.done > limit:
            last = max(entry.number for entry in failed)
            latest = next(trial for trial in self._study.finished if trial.number == last)
            raise RunError(
                f"{len(failed)} of {ledger.done} trials failed, more than hydra.sweeper.max_failure_rate={limit:g}\n"
                f"    the last reason: {latest.user_attrs.get('reason', 'unknown')}\n"
                "    -> remove the cause and give the same command with another hydra.sweeper.study_name"
            )

    def _context_of(self, trial: ClaimedTrial) -> TrialContext:
        from speechtrain.sweep.study.results import short_text

        options, plan = self._options, self._plan
        finalist, name = trial.finalist, dict(trial.assignment)
        if finalist is not None:
            name[finalist[1]] = finalist[2]
        return TrialContext(
            storage=self._study.url,
            study=self._study.name,
            id=trial.id,
            number=trial.number,
            objectives=plan.objectives,
            directions=plan.directions,
            constraints=options.constraints,
            report=options.report,
            pruner=plan.pruner if finalist is None else None,
            seeds=options.seeds_per_trial if finalist is None else 1,
            seeds_startup_trials=options.seeds_startup_trials if finalist is None else sys.maxsize,
            timeout=options.timeout,
            heartbeat=options.heartbeat,
            keep_pruned=options.keep_pruned_checkpoints,
            show_output=options.show_output,
            name=short_text(name),
            parents=self._recorder.parents if self._recorder is not None else {},
            retry_of=trial.retry_of,
            meters=options.stop_when.cpu_hours is not None or options.stop_when.gpu_hours is not None,
            promoted_from=trial.promoted_from,
            finalist=finalist[0] if finalist is not None else None,
        )
