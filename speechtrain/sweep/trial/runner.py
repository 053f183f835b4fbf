"""Runs the jobs of a sweep in this process and turns each one's end into an `Outcome`; if the job is a trial, owns it meanwhile.

Used by the in-process executor and by the pool's workers. Other launchers run jobs in Hydra's way, and the job owns its trial itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace

from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from speechtrain.config.internals import remember_parsed_interpolations
from speechtrain.sweep.space.compose import ComposedJob, Composer
from speechtrain.sweep.trial.context import TrialContext
from speechtrain.sweep.trial.hydra_job import ConfigFiles, run_hydra_job
from speechtrain.sweep.trial.job_logging import JobLogging
from speechtrain.sweep.trial.outcome import Outcome, SweepJob, outcome_of, outcome_of_error


@dataclass
class Program:
    """What all jobs of a sweep share: Hydra's context, the config of the sweep and the function; can be pickled with cloudpickle."""

    hydra_context: HydraContext
    config: DictConfig
    task_function: TaskFunction


class JobRunner:
    """Composes and runs jobs of one program, one after another."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._composer = Composer(program.hydra_context.config_loader, program.config)
        self._files = ConfigFiles()
        self._logs = JobLogging()
        remember_parsed_interpolations()

    def compose_base(self, overrides: Sequence[str]) -> None:
        """Compose what a job has in common with those that differ from it in values alone, so that none of them has to."""
        with suppress(HydraException, OmegaConfBaseException):  # the job meets it again
            self._composer.compose_job(overrides)

    def run(self, job: SweepJob, composed: ComposedJob | None = None) -> tuple[Outcome, JobReturn | None]:
        """Run a job and return how it ended, whatever it raised, with Hydra's own return value if the program came to an end.

        Args:
            job: the job.
            composed: its config, which is changed; None: it is composed here.

        Raises:
            KeyboardInterrupt: the process was interrupted; the trial's record says so by then.
        """
        # not at the top: Optuna is imported only when a trial starts
        from speechtrain.sweep.trial.handle import TrialCancelledError, own_trial

        context = TrialContext.of_job(job)
        handle, returned = None, None
        try:
            with own_trial(context) if context is not None else nullcontext() as handle:
                composed = composed or self._composer.compose_job(job.overrides)
                function, hydra_context = self._program.task_function, self._program.hydra_context
                returned = run_hydra_job(
                    composed, function, hydra_context, number=job.number, env=job.env, files=self._files, logs=self._logs
                )
                outcome = outcome_of(job.number, returned)
                if handle is not None:
                    handle.end(outcome)
        except TrialCancelledError as error:
            return Outcome(job.number, "failed", reason=str(error)), None
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # also SystemExit: the sweep goes on
            outcome = outcome_of_error(job.number, error)
        if handle is None:
            return outcome, returned
        return replace(handle.outcome or outcome, recorded=handle.recorded), returned
