"""Keras callbacks of a training: events for our own callbacks, early stopping, and checkpoints."""

from __future__ import annotations

import base64
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from speechtrain.backends.base import TrainingPlan
from speechtrain.backends.callbacks import Callback, Control, EpochClock
from speechtrain.backends.checkpoint_files import BEST, FOLDER, LAST
from speechtrain.backends.failures import NonFiniteLossError, save_bad_batch
from speechtrain.backends.keras import files, optimizers
from speechtrain.backends.keras.engine import JAX, TORCH
from speechtrain.backends.keras.feed import Feed
from speechtrain.processes import interrupts

Metrics = dict[str, float]
Write = Callable[[Path, int, dict[str, Any], Mapping[str, Any] | None], None]
LAST_FILE = f"{LAST}.keras"


class Epochs(keras.callbacks.Callback):  # type: ignore[misc]
    """Sets the learning rate and the random state of each step, computes the metrics of each epoch, and passes events on.

    Args:
        plan: plan of the training.
        optimizer: the one that makes the steps, inside of any loss scaling.
        peak: its learning rate where the schedule's factor is 1; a resumed optimizer has the rate that it was stopped at.
        callbacks: receive the events.
        steps: batches of an epoch.
        first_epoch: the number of the epoch that comes first.
        validate: computes the metrics of a pass over the validation data; None: there is none.
        random_states: the variables that dropout is drawn from.
        halfway: what `inside` returned, of a run that is resumed inside its first epoch.
        save: called where a checkpoint is due inside an epoch.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        optimizer: Any,
        peak: float,
        callbacks: Sequence[Callback],
        steps: int,
        first_epoch: int,
        validate: Callable[[], Metrics] | None,
        random_states: Sequence[Any],
        halfway: Mapping[str, Any] | None,
        save: Callable[[], None],
    ) -> None:
        super().__init__()
        self.plan = plan
        self.feed: Feed
        self.optimizer = optimizer
        self.callbacks = callbacks
        self.steps = steps
        self.first_epoch = first_epoch
        self.validate = validate
        self.random_states = random_states
        self.control = Control()
        self.history: list[Metrics] = []
        self._peak = peak
        self._rate = math.nan
        self._accumulate = plan.trainer.accumulate_grad_batches
        self._halfway = halfway
        self._save = save
        self.done = int(halfway["batches"]) if halfway is not None else 0
        self._skipped = self.done
        self._optimizer_steps = first_epoch * -(-steps // self._accumulate) + self.done // self._accumulate
        self._begun = False
        self._total, self._labels = 0.0, 0
        self.epoch = first_epoch
        self._complete = False
        self._clock = EpochClock()

    def on_train_begin(self, logs: Any = None) -> None:  # noqa: ARG002
        """Pass the event on, once for several calls of `fit`."""
        if self._begun:
            return
        self._begun = True
        for callback in self.callbacks:
            callback.on_train_start(self.plan.trainer.epochs, self.first_epoch)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Seed dropout by (seed, epoch), so that a resumed run draws what an uninterrupted one would."""
        self.epoch = epoch
        begun = self._halfway["random"] if self._halfway is not None else None
        for index, state in enumerate(self.random_states):
            state.assign(begun[index] if begun else [(self.plan.seed * 65_537 + index) % 2**32, (epoch + 1) * 1_000_003 % 2**32])
        self._total, self._labels = self._halfway["sums"] if self._halfway is not None else (0.0, 0)
        self._clock.start()
        for callback in self.callbacks:
            callback.on_epoch_start(epoch)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Set the learning rate of this step."""
        batch += self._skipped
        if batch == self._skipped and keras.config.backend() == TORCH:
            # on this engine dropout draws from PyTorch's own generator, of which the start of an iterator has just taken a number
            import torch

            torch.manual_seed(self.plan.seed + 1_000_003 * (self.epoch + 1))
            if self._halfway is not None:
                torch.set_rng_state(torch.tensor(list(base64.b64decode(self._halfway["generator"])), dtype=torch.uint8))
        if batch % self._accumulate == 0:
            rate = self._peak * self.plan.schedule.factor(self._optimizer_steps)
            if rate != self._rate:
                if keras.config.backend() == JAX:
                    self.model.jax_state_sync()
                self.optimizer.learning_rate = rate
                self._rate = rate
        for callback in self.callbacks:
            callback.on_batch_start(self.epoch, batch, self.steps)
        self._started = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Count the batch and pass the event on; a loss that is no number ends the training at once."""
        assert logs is not None
        batch += self._skipped
        loss, total = float(logs["loss"]), float(logs["total"])
        done = self.feed.pending.popleft()
        if not math.isfinite(loss):
            raise NonFiniteLossError(done.ids, self.epoch, save_bad_batch(done, self.plan.folder))
        self._clock.step(time.perf_counter() - self._started, done.seconds)
        self._total += total
        self._labels += max(1, int(done.target_lengths.sum()))
        self._complete = batch == self.steps - 1
        if self._complete or (batch + 1) % self._accumulate == 0:
            self._optimizer_steps += 1
        for callback in self.callbacks:
            callback.on_batch_end(self.epoch, batch, self.steps, loss, self._rate)
        self.done = batch + 1
        if self.plan.saves_inside(batch, self.steps, self._optimizer_steps):
            self._save()
        interrupts.check()
        if self._optimizer_steps >= (self.plan.trainer.max_steps or math.inf):
            self.model.stop_training = True

    def inside(self) -> dict[str, Any]:
        """Return the state that a run needs to be resumed inside this epoch."""
        state = {
            "batches": self.done,
            "of": self.steps,
            "random": [np.asarray(keras.ops.convert_to_numpy(state)).tolist() for state in self.random_states],
            "sums": [self._total, self._labels],
        }
        if keras.config.backend() == TORCH:
            import torch

            state["generator"] = base64.b64encode(torch.get_rng_state().numpy().tobytes()).decode()
        return state

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Give the metrics of the epoch to Keras' callbacks through `logs`, to the schedule and to our callbacks."""
        assert logs is not None
        self._halfway, self._skipped = None, 0
        if self._accumulate > 1:
            optimizers.flush(self.optimizer, self.model.trainable_variables)
        metrics = {
            "train/loss": self._total / max(1, self._labels),
            "train/lr": self._rate,
            "train/grad_norm": optimizers.take_norm(self.optimizer),
        }
        if self.validate is not None and self._complete and (epoch + 1) % self.plan.trainer.val_every_n_epochs == 0:
            with self._clock.evaluating():
                metrics |= {f"val/{name}": float(value) for name, value in self.validate().items()}
        metrics |= self._clock.metrics()
        logs.clear()
        logs.update(metrics)
        self.history.append(metrics)
        self.plan.schedule.epoch_end(metrics.get(self.plan.objective.metric), self.plan.objective.direction == "minimize")
        for callback in self.callbacks:
            callback.on_epoch_end(epoch, metrics, self.control)
        if self.control.stop_reason is not None:
            self.model.stop_training = True


class EarlyStopping(keras.callbacks.EarlyStopping):  # type: ignore[misc]
    """Stops as Keras' own does, continues its count in a resumed run, and ignores epochs without the metric."""

    def __init__(self, plan: TrainingPlan, state: Mapping[str, Any] | None) -> None:
        options, monitor = plan.trainer.early_stopping, plan.stopping_monitor
        super().__init__(monitor.metric, options.min_delta, options.patience, mode=monitor.mode)
        self._before = state
        self._begun = False
        self.reason: str | None = None
        if state is not None and state["wait"] >= self.patience:
            self.reason = self._out_of_patience()

    @property
    def has_stopped(self) -> bool:
        """Return whether the training is over, as in a run that had been stopped and is resumed."""
        return self.reason is not None

    def _out_of_patience(self) -> str:
        return f"{self.monitor} has not improved for {self.patience} epochs"

    def on_train_begin(self, logs: Any = None) -> None:
        """Restore the count of a resumed run."""
        if self._begun:
            return
        self._begun = True
        super().on_train_begin(logs)
        if self._before is not None:
            self.wait, self.best = self._before["wait"], self._before["best"]

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Stop if the metric has not improved for `patience` epochs, or is no number."""
        value = (logs or {}).get(self.monitor)
        if value is None:
            return
        if not math.isfinite(value):
            self.reason = f"{self.monitor} is {value}"
            self.wait = self.patience
            self.model.stop_training = True
            return
        super().on_epoch_end(epoch, logs)
        if self.stopped_epoch:
            self.reason = self._out_of_patience()

    def state(self) -> dict[str, Any]:
        """Return the state that a resumed run needs."""
        return {"wait": self.wait, "best": None if self.best is None else float(self.best)}


class Checkpoints(keras.callbacks.Callback):  # type: ignore[misc]
    """Writes the best k checkpoints, the last one, and one every n epochs.

    Args:
        plan: plan of the training.
        write: writes a file, given its path, the epoch, the state of this callback, and that of an epoch which is not over.
        state: what this callback had in the run that is resumed.
        callbacks: receive the last checkpoint when it is written.
    """

    def __init__(self, plan: TrainingPlan, write: Write, state: Mapping[str, Any] | None, callbacks: Sequence[Callback]) -> None:
        super().__init__()
        self._callbacks = callbacks
        self.options = plan.trainer.checkpoint
        self.monitor = plan.checkpoint_monitor
        self.folder = plan.folder / FOLDER
        self._write = write
        self.best: list[tuple[str, float]] = [(name, value) for name, value in (state or {}).get("best", [])]

    def write_last(self, epoch: int, inside: Mapping[str, Any]) -> None:
        """Write the last checkpoint inside an epoch that is not over."""
        self._write(self.folder / LAST_FILE, epoch, {"best": self.best}, inside)
        self._pass_on()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Write the checkpoints of this epoch, and delete those that are no longer among the best."""
        metrics = {**(logs or {}), "epoch": epoch + 1}
        value = metrics.get(self.monitor.metric)
        name = re.sub(r"\{([\w/]+)", r"{0[\1]", self.options.filename).format(metrics)
        targets = []
        outranked = []
        if self.options.save_top_k and value is not None and math.isfinite(value):
            sign = 1 if self.monitor.mode == "min" else -1
            ranked = sorted([(f"{BEST}{name}.keras", value), *self.best], key=lambda item: sign * item[1])  # of equals the last
            best = ranked[: self.options.save_top_k]
            targets += [each for each, _ in best if each not in dict(self.best)]
            outranked = [each for each, _ in self.best if each not in dict(best)]
            self.best = best
        if self.options.every_n_epochs and (epoch + 1) % self.options.every_n_epochs == 0:
            targets.append(f"{name}.keras")
        if self.options.save_last:
            targets.append(LAST_FILE)
        if targets:
            self._write(self.folder / targets[0], epoch, {"best": self.best}, None)
        for target in targets[1:]:
            files.copy(self.folder / targets[0], self.folder / target)
        for each in outranked:
            (self.folder / each).unlink(missing_ok=True)
        if self.options.save_last:
            self._pass_on()

    def _pass_on(self) -> None:
        for callback in self._callbacks:
            callback.on_checkpoint(self.folder / LAST_FILE)
