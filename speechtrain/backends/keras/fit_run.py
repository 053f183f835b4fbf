"""Sets `keras.Model.fit` up for one training, runs it and collects the result: checkpoints, early stopping, resumed runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from speechtrain.backends.base import TrainingPlan
from speechtrain.backends.callbacks import Callback, TrainResult
from speechtrain.backends.keras import files, optimizers
from speechtrain.backends.keras.callbacks import LAST_FILE, Checkpoints, EarlyStopping, Epochs, Metrics
from speechtrain.backends.keras.engine import JAX
from speechtrain.backends.keras.feed import Feed, Shapes
from speechtrain.backends.keras.speech_model import SpeechModel, Step
from speechtrain.config.build import construct
from speechtrain.data.loader import Loader


class FitRun:
    """Runs one training with `keras.Model.fit`.

    Args:
        model: trained in place.
        step: the model with the loss of its task.
        plan: plan of the training.
        callbacks: receive the events, and may ask to stop.
        train: training batches.
        validate: computes the metrics of a pass over the validation data; None: there is none.
        engine: what Keras runs on.
        compiled: whether XLA compiles the step for each shape.
    """

    def __init__(
        self,
        model: SpeechModel,
        step: Step,
        plan: TrainingPlan,
        callbacks: Sequence[Callback],
        train: Loader,
        validate: Callable[[], Metrics] | None,
        *,
        engine: str,
        compiled: bool,
    ) -> None:
        self._model = model
        self._step = step
        self._plan = plan
        self._train = train
        self._engine = engine
        self._compiled = compiled
        optimizer, peak = self._compile()
        state = self._resumed()
        self._first = int(state.get("epochs", 0))
        inside = state.get("inside")
        if inside is not None:
            plan.check_epoch_length(inside["of"], len(train))
        self._epochs = Epochs(
            plan, optimizer, peak, callbacks, len(train), self._first, validate, model.random_states(), inside, self._write_inside
        )
        stops = plan.trainer.early_stopping.patience is not None
        self._stopper = EarlyStopping(plan, state.get("early_stopping")) if stops else None
        self._checkpoints = Checkpoints(plan, self._write, state.get("checkpoints"), callbacks)

    def _compile(self) -> tuple[Any, float]:
        """Build the optimizer and compile the step with it; returns the optimizer and its learning rate."""
        trainer = self._plan.trainer
        optimizer = construct("optimizer", self._plan.optimizer)
        by_norm = trainer.gradient_clip_algorithm == "norm"
        optimizers.measured(optimizer, trainer.gradient_clip_val, by_norm=by_norm, accumulate=trainer.accumulate_grad_batches)
        peak = float(keras.ops.convert_to_numpy(optimizer.learning_rate))
        self._step.compile(optimizer=optimizer, jit_compile=self._compiled)
        self._step.optimizer.build(self._step.trainable_variables)
        return optimizer, peak

    def _resumed(self) -> dict[str, Any]:
        """Load the weights, the optimizer and the schedule of the run that is resumed; returns the rest of its state."""
        path = self._plan.resume_from
        if path is None:
            return {}
        files.check_resumable(path)
        content = files.read_state(path)
        state: dict[str, Any] = content["training"]
        files.read_weights(self._model, path)
        files.read_optimizer(self._step.optimizer, path)
        try:
            self._plan.restore_schedule(state["schedule"], content["extra"])
        except (LookupError, TypeError, ValueError) as error:
            raise files.damaged(path, error) from error
        return state

    def fit(self, views: int) -> None:
        """Train and validate every epoch; one that is resumed inside is a `fit` of its own, as it has fewer batches.

        Args:
            views: how many differently augmented copies of an utterance a batch holds.
        """
        first, last, done = self._first, self._plan.trainer.epochs, self._epochs.done
        parts = [(first, first + 1, done), (first + 1, last, 0)] if done else [(first, last, 0)]
        if self._stopper is not None and self._stopper.has_stopped:
            parts = []
        monitors = [self._epochs, *([self._stopper] if self._stopper is not None else []), self._checkpoints]
        for begin, end, skipped in parts:
            if begin < end and not (begin > first and self._step.stop_training):
                self._epochs.feed = Feed(self._train, Shapes(active=self._compiled), views, range(begin, end), skipped)
                self._step.fit(
                    self._epochs.feed.source(self._engine),
                    steps_per_epoch=len(self._train) - skipped,
                    epochs=end,
                    initial_epoch=begin,
                    shuffle=False,
                    verbose=0,
                    callbacks=monitors,
                )
        self._epochs.on_train_begin()  # where no epoch is left

    def result(self) -> TrainResult:
        """Return the result of the training."""
        control = self._epochs.control
        stop_reason = control.stop_reason
        if self._stopper is not None and stop_reason is None:
            stop_reason = self._stopper.reason
        result = TrainResult(history=self._epochs.history, stop_reason=stop_reason, pruned=control.pruned, paused=control.paused)
        if self._checkpoints.best:
            name, result.best_value = self._checkpoints.best[0]
            result.best_checkpoint = self._checkpoints.folder / name
        last = self._checkpoints.folder / LAST_FILE
        result.last_checkpoint = last if self._plan.trainer.checkpoint.save_last and last.is_file() else None
        return result

    def _write(self, path: Path, epoch: int, checkpoints: Mapping[str, Any], inside: Mapping[str, Any] | None) -> None:
        """Write a checkpoint; `inside` is the state of an epoch that is not over."""
        training = {
            "epochs": epoch if inside is not None else epoch + 1,
            "inside": inside,
            "schedule": self._plan.schedule.state_dict(),
            "checkpoints": checkpoints,
            "early_stopping": self._stopper.state() if self._stopper is not None else None,
        }
        files.write(self._model, path, {"extra": dict(self._plan.extra), "training": training}, self._step.optimizer)

    def _write_inside(self) -> None:
        """Write the last checkpoint in the middle of an epoch."""
        if self._engine == JAX:
            self._step.jax_state_sync()
        self._checkpoints.write_last(self._epochs.epoch, self._epochs.inside())
