"""What `fit` calls: our events for everybody else, Keras' early stopping, and checkpoints."""

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

from speechtrain.backends.base import Plan
from speechtrain.backends.callbacks import Callback, Control, EpochClock
from speechtrain.backends.checkpoint_files import BEST, FOLDER, LAST
from speechtrain.backends.failures import NonFiniteLossError, save_bad_batch
from speechtrain.backends.keras import files, optimizers
from speechtrain.backends.keras.engine import JAX, TORCH
from speechtrain.backends.keras.feed import Feed
from speechtrain.processes import interrupts

Metrics = dict[str, float]
Write = Callable[[Path, int, dict[str, Any], Mapping[str, Any] | None], None]


class Epochs(keras.callbacks.Callback):  # type: ignore[misc]
    """Learning rate and random state of each step, metrics of each epoch; everybody is told.

    Args:
        optimizer: that counts, inside of any loss scaling.
        peak: its learning rate where the schedule's factor is 1; a resumed optimizer has the rate it was stopped at.
        validate: gives the metrics of a pass over the validation data.
        random_states: what dropout is drawn from.
        halfway: of a run that is resumed inside its first epoch, what `inside` gave.
        save: called where the state is to be kept inside an epoch.
    """

    def __init__(
        self,
        plan: Plan,
        optimizer: Any,
        peak: float,
        listeners: Sequence[Callback],
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
        self.listeners = listeners
        self.steps = steps
        self.first_epoch = first_epoch
        self.validate = validate
        self.random_states = random_states
        self.control = Control()
        self.history: list[Metrics] = []
        self._peak = peak
        self._rate = math.nan
        self._accumulate = plan.trainer["accumulate_grad_batches"]
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
        """Tell the callbacks, once."""
        if self._begun:
            return
        self._begun = True
        for listener in self.listeners:
            listener.on_train_start(self.plan.trainer["epochs"], self.first_epoch)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Dropout follows from (seed, epoch), so that a run resumed at an epoch goes on as if it had never stopped."""
        self.epoch = epoch
        begun = self._halfway["random"] if self._halfway is not None else None
        for index, state in enumerate(self.random_states):
            state.assign(begun[index] if begun else [(self.plan.seed * 65_537 + index) % 2**32, (epoch + 1) * 1_000_003 % 2**32])
        self._total, self._labels = self._halfway["sums"] if self._halfway is not None else (0.0, 0)
        self._clock.start()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
        """The learning rate of this step."""
        batch += self._skipped
        if batch == self._skipped and keras.config.backend() == TORCH:
            # there Keras leaves dropout to PyTorch's own generator, of which the start of an iterator has just taken a number
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
        self._started = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Count the batch; stop at once where its loss is no number."""
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
        for listener in self.listeners:
            listener.on_batch_end(self.epoch, batch, self.steps, loss, self._rate)
        self.done = batch + 1
        if self.plan.saves_inside(batch, self.steps, self._optimizer_steps):
            self._save()
        interrupts.check()
        if self._optimizer_steps >= (self.plan.trainer["max_steps"] or math.inf):
            self.model.stop_training = True

    def inside(self) -> dict[str, Any]:
        """What a run needs that is resumed after the batches of this epoch that are done."""
        found = {
            "batches": self.done,
            "of": self.steps,
            "random": [np.asarray(keras.ops.convert_to_numpy(state)).tolist() for state in self.random_states],
            "sums": [self._total, self._labels],
        }
        if keras.config.backend() == TORCH:
            import torch

            found["generator"] = base64.b64encode(torch.get_rng_state().numpy().tobytes()).decode()
        return found

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Close the epoch: metrics to Keras' own callbacks by way of `logs`, to ours, to the schedule."""
        assert logs is not None
        self._halfway, self._skipped = None, 0
        if self._accumulate > 1:
            optimizers.flush(self.optimizer, self.model.trainable_variables)
        metrics = {
            "train/loss": self._total / max(1, self._labels),
            "train/lr": self._rate,
            "train/grad_norm": optimizers.take_norm(self.optimizer),
        }
        if self.validate is not None and self._complete and (epoch + 1) % self.plan.trainer["val_every_n_epochs"] == 0:
            with self._clock.evaluating():
                metrics |= {f"val/{name}": float(value) for name, value in self.validate().items()}
        metrics |= self._clock.metrics()
        logs.clear()
        logs.update(metrics)
        self.history.append(metrics)
        self.plan.schedule.epoch_end(metrics.get(self.plan.monitor), self.plan.direction == "minimize")
        for listener in self.listeners:
            listener.on_epoch_end(epoch, metrics, self.control)
        if self.control.stop_reason is not None:
            self.model.stop_training = True


class EarlyStopping(keras.callbacks.EarlyStopping):  # type: ignore[misc]
    """Keras' own, which takes up its count in a resumed run, and passes over epochs without the metric."""

    def __init__(self, options: Mapping[str, Any], state: Mapping[str, Any] | None) -> None:
        super().__init__(options["monitor"], options["min_delta"], options["patience"], mode=options["mode"])
        self._before = state
        self._begun = False
        self.reason: str | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Where the run was before it was resumed."""
        if self._begun:
            return
        self._begun = True
        super().on_train_begin(logs)
        if self._before is not None:
            self.wait, self.best = self._before["wait"], self._before["best"]

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Stop if the metric has not improved for long enough, or is no number."""
        value = (logs or {}).get(self.monitor)
        if value is None:
            return
        if not math.isfinite(value):
            self.reason = f"{self.monitor} is {value}"
            self.model.stop_training = True
            return
        super().on_epoch_end(epoch, logs)
        if self.stopped_epoch:
            self.reason = f"{self.monitor} has not improved for {self.patience} epochs"

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to go on."""
        return {"wait": self.wait, "best": None if self.best is None else float(self.best)}


class Checkpoints(keras.callbacks.Callback):  # type: ignore[misc]
    """Keeps the best k, the last, and one every n epochs.

    Args:
        write: makes the file of an epoch, given its path, the epoch, the state of this callback, and that of an epoch which is not over.
        state: of the run that is resumed.
    """

    def __init__(self, plan: Plan, write: Write, state: Mapping[str, Any] | None) -> None:
        super().__init__()
        self.options = plan.trainer["checkpoint"]
        self.folder = plan.folder / FOLDER
        self._write = write
        self.best: list[tuple[str, float]] = [(name, value) for name, value in (state or {}).get("best", [])]

    def write_last(self, epoch: int, inside: Mapping[str, Any]) -> None:
        """Write the state of an epoch that is not over."""
        self._write(self.folder / f"{LAST}.keras", epoch, {"best": self.best}, inside)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Write what is to be kept of this epoch."""
        metrics = {**(logs or {}), "epoch": epoch}
        value = metrics.get(self.options["monitor"])
        name = re.sub(r"\{([\w/]+)", r"{0[\1]", self.options["filename"]).format(metrics)
        targets = []
        gone = []
        if self.options["save_top_k"] and value is not None and math.isfinite(value):
            sign = 1 if self.options["mode"] == "min" else -1
            ranked = sorted([*self.best, (f"{BEST}{name}.keras", value)], key=lambda item: sign * item[1])
            kept = ranked[: self.options["save_top_k"]]
            targets += [each for each, _ in kept if each not in dict(self.best)]
            gone = [each for each, _ in self.best if each not in dict(kept)]
            self.best = kept
        if self.options["every_n_epochs"] and (epoch + 1) % self.options["every_n_epochs"] == 0:
            targets.append(f"{name}.keras")
        if self.options["save_last"]:
            targets.append(f"{LAST}.keras")
        if targets:
            self._write(self.folder / targets[0], epoch, {"best": self.best}, None)
        for target in targets[1:]:
            files.copy(self.folder / targets[0], self.folder / target)
        for each in gone:
            (self.folder / each).unlink(missing_ok=True)
