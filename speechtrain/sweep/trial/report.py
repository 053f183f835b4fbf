"""What the job of any Hydra program calls to tell the sweep how far it has come: `from speechtrain.sweep import report`.

The trial is named by an environment variable that the sweeper has every launcher set, and values go to the study's storage; the sweeper's
process is not asked. Optuna is imported only in a job that is a trial.
"""

from __future__ import annotations

import os
from typing import SupportsFloat

from speechtrain.errors import RunPaused, RunPruned
from speechtrain.sweep.trial.outcome import VARIABLE, Outcome


def report(value: SupportsFloat, step: int, *, raises: bool = True) -> bool:
    """Report a value of this job to the sweep that it is a trial of, and end the job if the sweep's pruner says so.

    In a job that is not a trial of a sweep it does nothing, and so it does in a trial of several objectives, which has no pruner. A step
    that was reported before is not reported again. Once it was said that a job should end, its trial counts as pruned, with the last value
    that it reported, whatever the job returns; one that pauses, by a pruner that continues trials, is run again where it is promoted.

    Args:
        value: of the step, in the direction in which the sweep's objective is better; anything that `float` takes.
        step: number of the step, from 0 on; epochs, usually.
        raises: whether to raise `RunPruned` where the job should end, and not to return True.

    Returns:
        Whether the job should end; without a sweep, False.

    Raises:
        RunPruned: the pruner says that the job should end; it passes through the program to the sweeper.
    """
    text = os.environ.get(VARIABLE)
    if not text:
        return False
    from speechtrain.sweep.trial.context import TrialContext
    from speechtrain.sweep.trial.handle import handle_of

    handle = handle_of(TrialContext.from_text(text))
    if len(handle.context.directions) > 1:
        return False
    handle.report(float(value), step)
    pauses = handle.should_pause(step)
    if not pauses and not handle.should_prune():
        return False
    reason = f"{float(value):.4g} at step {step}"
    handle.end(Outcome(handle.context.number, "paused" if pauses else "pruned", reason=reason))
    if raises:
        raise RunPaused(reason) if pauses else RunPruned(reason)
    return True
