"""Finds how many seconds of audio a batch should hold on this machine: `trainer.batch_seconds=auto`."""

from __future__ import annotations

import logging
from dataclasses import replace

from speechtrain.backends.base import Backend, Model
from speechtrain.backends.failures import OutOfMemoryError
from speechtrain.config.schemas.training import Trainer
from speechtrain.data.task_data import TaskData
from speechtrain.errors import ConfigError, Problem
from speechtrain.tasks.base import Task

log = logging.getLogger(__name__)

_SMALLEST = 15.0  # s, the first size that is tried
_GOOD_ENOUGH = 0.95  # share of the best speed that a shorter batch must reach to be preferred
_MIN_GAIN = 1.05  # in speed by a batch of twice the size, below which larger ones are not tried


def find_batch_seconds(backend: Backend, model: Model, data: TaskData, task: Task, trainer: Trainer) -> float:
    """Return the seconds of the shortest batch, padding included, that is trained on nearly as fast as any that fits into memory.

    The largest batch of an epoch is measured with 15 s, 30 s, 60 s, ... of audio, until one does not fit, is no faster per second of audio,
    or is no larger because `data.batch_size` or the corpus limits it. Longer batches than the one returned would make fewer steps per epoch
    and save no time.

    Args:
        backend: computes the batches.
        model: restored afterwards.
        data: the corpus with the targets of its task.
        task: knows the loss.
        trainer: the keys of `conf/trainer`.

    Raises:
        OutOfMemoryError: not even the shortest batch fits.
        ConfigError: the backend cannot measure a step, or there are several devices.
    """
    if trainer.devices not in (1, "1"):
        message = f"is auto, and trainer.devices is {trainer.devices}"
        fix = "find it with trainer.devices=1, then set data.batch_seconds to its multiple"
        raise ConfigError([Problem("trainer.batch_seconds", message, fix)])
    speeds: dict[float, float] = {}
    seconds, before = _SMALLEST, 0.0
    while True:
        loader = data.with_limits(replace(data.limits, batch_seconds=seconds)).loader("train", shuffle=True, augment=True, views=task.views)
        assert loader is not None
        batch = loader.largest()
        if batch.seconds <= before:
            break
        try:
            speeds[seconds] = batch.seconds / backend.step_seconds(model, batch, task, trainer)
        except OutOfMemoryError:
            if not speeds:
                raise
            break
        log.debug("batches of %g s: %.0f s of audio a second", seconds, speeds[seconds])
        if len(speeds) > 1 and speeds[seconds] < _MIN_GAIN * speeds[seconds / 2]:
            break
        seconds, before = 2 * seconds, batch.seconds
    best = max(speeds.values())
    shortest = min(size for size, speed in speeds.items() if speed >= _GOOD_ENOUGH * best)
    tried = ", ".join(f"{size:g} s: {speed:.0f}" for size, speed in speeds.items())
    log.info("data.batch_seconds=%g found (seconds of audio a second by batches of %s)", shortest, tried)
    return shortest
