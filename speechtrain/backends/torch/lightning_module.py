"""The training step as a LightningModule, and what is measured around it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import lightning.pytorch as pl
import torch

from speechtrain.backends.base import TrainingPlan
from speechtrain.backends.callbacks import Callback, Control, EpochClock
from speechtrain.backends.checkpoint_files import FOLDER, LAST
from speechtrain.backends.failures import NonFiniteLossError, save_bad_batch
from speechtrain.backends.torch import losses, lr_finder, sharding
from speechtrain.backends.torch.averaging import MovingAverage
from speechtrain.backends.torch.batch_loss import OPS, BatchLoss, to_outputs
from speechtrain.backends.torch.devices import broadcast_from_rank0, gather_from_ranks, sum_over_ranks, value_of_rank0
from speechtrain.backends.torch.encoder import Encoder
from speechtrain.backends.torch.internals import copy_all
from speechtrain.backends.torch.random_state import random_state, restored, set_random_state
from speechtrain.backends.torch.speech_model import SpeechModel
from speechtrain.config.build import construct
from speechtrain.data.batches import Batch
from speechtrain.data.loader import Loader
from speechtrain.processes import interrupts
from speechtrain.tasks.base import Scorer, Task

log = logging.getLogger(__name__)


class TrainingModule(pl.LightningModule):
    """Computes training and validation steps, gathers the metrics of an epoch and passes them to the callbacks.

    Args:
        model: trained in place.
        task: knows the loss and counts errors.
        plan: plan of the training.
        callbacks: receive the events, and may ask to stop.
        loader: training batches.
        compiled: whether `torch.compile` makes the model, and training batches are rounded up to few shapes for it.

    Attributes:
        batch: the one that is computed now or was last.
        begun: whether the callbacks know which epoch comes first.
        whole_weights: weights of a sharded training that has ended, gathered from all ranks.
    """

    def __init__(
        self, model: SpeechModel, task: Task, plan: TrainingPlan, callbacks: Sequence[Callback], loader: Loader, *, compiled: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self.batch_loss = BatchLoss(model, task, compiled=compiled)
        self.plan = plan
        self.callbacks = callbacks
        self.control = Control()
        self.history: list[dict[str, float]] = []
        self.validation: dict[str, float] = {}
        self._scorer: Scorer | None = None
        self.clock = EpochClock()
        self.average = MovingAverage(model, plan.trainer.ema_decay) if plan.trainer.ema_decay is not None else None
        self._skipped_in_row = 0
        self.batch: Batch | None = None
        self.loader = loader
        self.sharded = False
        self.begun = False
        self.whole_weights: dict[str, torch.Tensor] = {}
        self._good_buffers: list[torch.Tensor] = []
        self._passes = ExitStack()
        self._halfway: dict[str, Any] | None = None
        self._random: Sequence[torch.Tensor] = ()
        self._changed: dict[str, Any] = {}
        self._batches_done = 0  # while a checkpoint is written inside an epoch
        self._reset()

    def _reset(self) -> None:
        self._loss_sum = torch.zeros((), dtype=torch.float64)
        self._label_count = 0
        self._norm_sum = torch.zeros((), dtype=torch.float64)
        self._norm_count = 0
        self._skipped = 0

    def shard(self, device: torch.device, ranks: int) -> None:
        """Divide the model between ranks, and its average with it."""
        sharding.shard(self.model, device, ranks)
        self.sharded = True
        if self.average is not None:
            self.average.shard()

    # --- the step ---------------------------------------------------------------------------------------------------------------------

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:  # noqa: ARG002
        """Return the batch unchanged; the step moves the arrays that it uses."""
        return batch

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Return the mean loss a label, so that neither the size of a batch nor its padding weighs."""
        start = time.perf_counter()
        self.batch = batch
        if batch_idx == 0:
            # dropout follows from (seed, epoch), so that a run resumed at an epoch goes on as if it had never stopped
            torch.manual_seed(self.plan.seed + 1_000_003 * (self.current_epoch + 1) + 7919 * self.global_rank)
        elif self._halfway is not None:
            set_random_state(self._random, self.device)
        self._halfway = None
        if isinstance(self.model.encoder, Encoder):
            self.model.encoder.at_step(self.global_step)
        factor = self.plan.schedule.factor(self.global_step)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = group["initial_lr"] * factor
        utterance_losses, values, lengths = self.batch_loss(batch, self.device)
        reported = utterance_losses.detach().sum().cpu()
        labels = 0 if batch.is_filler else int(batch.target_lengths.sum())
        if torch.isfinite(reported) and not batch.is_filler:
            self._loss_sum += reported
            self._label_count += labels
        self._step_started = start
        total = self.task.regularised(OPS, utterance_losses, values, lengths).sum()
        if share := self.task.intermediate:
            total = (1 - share) * total + share * self.batch_loss.of_values(self.model.halfway()[: len(lengths)], lengths, batch).sum()
        if self.task.consistency:
            # summed over both views like the CTC loss, of which it takes the share that the paper gives it
            total = total + 2 * self.task.consistency * losses.consistency(values, lengths).sum()
        # gradients are averaged over the ranks: each has its share of the sum over all, divided by the labels of all
        share_of_all = self.trainer.world_size / max(1.0, sum_over_ranks([labels], self.device)[0])
        loss: torch.Tensor = total * (0.0 if batch.is_filler else share_of_all)
        return loss

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip as configured, and add the norm before clipping to `train/grad_norm`; a step whose norm is not finite is skipped."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.grad is not None]
        by_norm = gradient_clip_val is not None and gradient_clip_algorithm == "norm"
        norm = torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val if by_norm and gradient_clip_val is not None else math.inf)
        if gradient_clip_val is not None and not by_norm:
            torch.nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        norm = sharding.whole({"": norm.detach()})[""].cpu()
        if not torch.isfinite(norm):
            self._skip(parameters)
            return
        self._skipped_in_row = 0
        self._save_buffers()
        self._norm_sum += norm
        self._norm_count += 1

    def _save_buffers(self) -> None:
        """Save the running statistics after a good step: those after a bad one are not finite either."""
        buffers = [buffer for buffer in self.model.buffers() if buffer.is_floating_point()]
        if not self._good_buffers:
            self._good_buffers = [torch.empty_like(buffer) for buffer in buffers]
        if buffers:
            copy_all(self._good_buffers, buffers)

    def _skip(self, parameters: Sequence[torch.Tensor]) -> None:
        """Skip a step: the optimizer passes over parameters without a gradient, and running statistics go back.

        Raises:
            NonFiniteLossError: too many steps were skipped in a row.
        """
        for parameter in parameters:
            parameter.grad = None
        buffers = [buffer for buffer in self.model.buffers() if buffer.is_floating_point()]
        for buffer, good in zip(buffers, self._good_buffers, strict=True):
            buffer.copy_(good)
        self._skipped += 1
        self._skipped_in_row += 1
        batch = self.batch
        assert batch is not None
        if self._skipped_in_row > self.plan.trainer.max_skipped_steps:
            raise NonFiniteLossError(batch.ids, self.current_epoch, save_bad_batch(batch, self.plan.folder))
        if self._skipped == 1:
            ids = ", ".join(batch.ids[:4]) + (", ..." if len(batch.ids) > 4 else "")
            log.warning("a gradient is not finite, on the batch of %s; such steps are left out and counted in train/skipped_steps", ids)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Make the step, and take its weights into the moving average."""
        super().optimizer_step(*args, **kwargs)
        if self.average is not None and not self._skipped_in_row:
            self.average.update()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build the optimizer of the plan; its `lr` is the peak of the schedule."""
        optimizer: torch.optim.Optimizer = construct("optimizer", self.plan.optimizer, params=_groups(self.model))
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"] = group["lr"] * group.get(lr_finder.SCALE, 1.0)
        return optimizer

    # --- events -----------------------------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Try the largest batch and find the learning rate if asked for, then pass the event on."""
        self._save_buffers()
        for group in self.trainer.optimizers[0].param_groups:  # as the checkpoint has them
            group |= {name: value for name, value in self._changed.items() if name in group}
            if "lr" in self._changed:
                group["initial_lr"] = self._changed["lr"] * group.get(lr_finder.SCALE, 1.0)
        try_largest = self.plan.trainer.try_largest
        if self.device.type == "cuda" if try_largest is None else try_largest:
            self._try(self.loader.largest())
        if self.plan.trainer.find_lr and self.plan.resume_from is None:
            self._find_lr()
        self.clock.start()  # an epoch that is resumed inside has no start of its own
        self.begin(self.current_epoch)

    def begin(self, first_epoch: int) -> None:
        """Tell the callbacks which epoch comes first."""
        self.begun = True
        for callback in self.callbacks:
            callback.on_train_start(self.trainer.max_epochs or 0, first_epoch)

    @contextmanager
    def _as_in_training(self) -> Iterator[None]:
        """Compute in the precision of the training, and restore everything afterwards."""
        with restored(self.model, self.device), self.trainer.precision_plugin.train_step_context():
            yield

    def _try(self, batch: Batch) -> None:
        """Compute a batch and its gradient, so that one that does not fit into memory fails at once."""
        self.batch = batch
        with self._as_in_training():
            if self.sharded:  # gathering weights needs all processes, and all are here
                torch.autograd.backward(self.batch_loss(batch, self.device)[0].sum())
                self.zero_grad()
            else:
                self.batch_loss.gradient(batch, self.device)

    def _find_lr(self) -> None:
        """Set the peak of the schedule to the rate that a range test finds."""

        def epoch(number: int) -> Loader:
            self.loader.set_epoch(number)
            return self.loader

        def loss_of(batch: Batch) -> torch.Tensor:
            self.batch = batch
            return self.batch_loss(batch, self.device)[0].sum() / max(1, int(batch.target_lengths.sum()))

        with self._as_in_training():
            curve = lr_finder.sweep(self.configure_optimizers(), lr_finder.endless(epoch), loss_of, self.plan.trainer.gradient_clip_val)
        if self.global_rank == 0:
            lr_finder.write(curve, self.plan.folder)
        rate = value_of_rank0(lr_finder.steepest(curve))
        for group in self.trainer.optimizers[0].param_groups:
            group["initial_lr"] = rate * group.get(lr_finder.SCALE, 1.0)
        log.info("learning rate found: %.2e (after %d steps; lr_finder.json)", rate, len(curve))

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Pass the event on, and write a checkpoint inside the epoch where one is due."""
        shares = self.trainer.accumulate_grad_batches  # Lightning gives the share of the step's loss that a batch has
        loss = shares * float(outputs["loss"]) if self.callbacks else 0.0
        rate = float(self.trainer.optimizers[0].param_groups[0]["lr"])
        self.clock.step(time.perf_counter() - self._step_started, batch.seconds)
        batches = int(self.trainer.num_training_batches)
        for callback in self.callbacks:
            callback.on_batch_end(self.current_epoch, batch_idx, batches, loss, rate)
        if self.plan.saves_inside(batch_idx, batches, self.global_step):
            self._batches_done = batch_idx + 1
            self.trainer.save_checkpoint(self.plan.folder / FOLDER / f"{LAST}.ckpt")
            self._batches_done = 0
        interrupts.check()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Tell the callbacks which batch comes next."""
        for callback in self.callbacks:
            callback.on_batch_start(self.current_epoch, batch_idx, int(self.trainer.num_training_batches))

    def on_train_epoch_start(self) -> None:
        """Start the clock of the epoch, and pass the event on."""
        self.clock.start()
        for callback in self.callbacks:
            callback.on_epoch_start(self.current_epoch)

    def on_validation_epoch_start(self) -> None:
        """Start a pass with the averaged weights, if there are any, and with the running statistics of rank 0."""
        self._passes.enter_context(self.clock.evaluating())
        if self.average is not None:
            self.average.swap()
            self._passes.callback(self.average.swap)
        broadcast_from_rank0(self.model.buffers())  # those of batch norm are each rank's own in training
        self._scorer = self.task.scorer()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Count the errors of a batch."""
        assert self._scorer is not None
        self.batch = batch
        if batch.is_filler and not self.sharded:  # gathering sharded weights needs all ranks
            return
        outputs = to_outputs(*self.batch_loss(batch, self.device))
        if not batch.is_filler:
            self._scorer.update(batch, outputs)

    def on_validation_epoch_end(self) -> None:
        """Compute the metrics of the pass over all ranks."""
        assert self._scorer is not None
        if self.trainer.world_size > 1:
            for rank, totals in enumerate(gather_from_ranks(self._scorer.totals())):
                if rank != self.global_rank:
                    self._scorer.add(totals)
        self.validation = {f"val/{name}": float(value) for name, value in self._scorer.compute().items()}
        self._passes.close()

    def on_train_epoch_end(self) -> None:
        """Give the metrics of the epoch to Lightning's monitors, to the schedule and to the callbacks."""
        if self._skipped and not self._norm_count:  # no step of the epoch was good, so none will be
            assert self.batch is not None
            raise NonFiniteLossError(self.batch.ids, self.current_epoch, save_bad_batch(self.batch, self.plan.folder))
        loss, labels = sum_over_ranks([float(self._loss_sum), self._label_count], self.device)
        metrics = {
            "train/loss": loss / max(1, labels),
            "train/lr": float(self.trainer.optimizers[0].param_groups[0]["lr"]),
            "train/grad_norm": float(self._norm_sum) / max(1, self._norm_count),
            **({"train/skipped_steps": float(self._skipped)} if self._skipped else {}),
            **self.validation,
            **self.clock.metrics(),
        }
        self.validation = {}
        metrics["train/audio_s_per_s"] = sum_over_ranks([metrics["train/audio_s_per_s"]], self.device)[0]
        metrics = value_of_rank0(metrics)
        self._reset()
        self.history.append(metrics)
        self.log_dict({**metrics, "epoch": float(self.current_epoch + 1)}, batch_size=1)  # names of files have the number that people read
        self.plan.schedule.epoch_end(metrics.get(self.plan.objective.metric), self.plan.objective.direction == "minimize")
        for callback in self.callbacks:
            callback.on_epoch_end(self.current_epoch, metrics, self.control)
        self.control = value_of_rank0(self.control)
        if self.control.stop_reason is not None:
            self.trainer.should_stop = True

    def on_train_end(self) -> None:
        """Leave the averaged weights in the model, and gather sharded ones."""
        if self.average is not None:
            self.average.swap()
        if self.sharded:
            self.whole_weights = sharding.whole(self.model.state_dict())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is needed to load the model alone, the state of the schedule, and that of an epoch that is not over."""
        checkpoint["extra"] = dict(self.plan.extra)
        checkpoint["schedule"] = self.plan.schedule.state_dict()
        if self._batches_done:
            checkpoint["halfway"] = {
                "epoch": self.current_epoch,
                "batches": self._batches_done,
                "of": int(self.trainer.num_training_batches),
                "ranks": gather_from_ranks(
                    {
                        "random": random_state(self.device),
                        "sums": [float(self._loss_sum), self._label_count, float(self._norm_sum), self._norm_count, self._skipped],
                    }
                ),
            }
        if self.average is not None:  # `state_dict` has the weights to use, `trained` those to go on training
            checkpoint["trained"] = checkpoint["state_dict"]
            checkpoint["state_dict"] = {f"model.{name}": value for name, value in sharding.whole(self.average.weights).items()}
            checkpoint["average_steps"] = self.average.steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the state of the schedule, and that of an epoch which had begun."""
        self.plan.restore_schedule(checkpoint["schedule"], checkpoint["extra"])
        self._changed = self.plan.changed_of_optimizer(checkpoint["extra"])
        if self.average is not None and "trained" in checkpoint:
            averaged = {name.removeprefix("model."): value for name, value in checkpoint["state_dict"].items()}
            self.average.restore(checkpoint["average_steps"], averaged)
        checkpoint["state_dict"] = checkpoint.get("trained", checkpoint["state_dict"])
        self._halfway = checkpoint.get("halfway")
        if self._halfway is not None:
            # earlier versions wrote those of rank 0 alone; with another number of devices the epoch has other batches and is refused
            ranks = self._halfway.get("ranks", [self._halfway])
            mine = ranks[self.global_rank % len(ranks)]
            self._random = mine["random"]
            loss, self._label_count, norm, self._norm_count, *skipped = mine["sums"]
            self._skipped = sum(skipped)  # files of earlier versions have none
            self._loss_sum += loss
            self._norm_sum += norm

    def batches_done(self, epoch: int, batches: int) -> int:
        """Return how many batches of an epoch that is about to begin were trained on before the run was resumed.

        Raises:
            ConfigError: the epoch had another number of batches then.
        """
        if self._halfway is None or self._halfway["epoch"] != epoch:
            return 0
        self.plan.check_epoch_length(self._halfway["of"], batches)
        return int(self._halfway["batches"])


def _groups(model: SpeechModel) -> Any:
    """Return the parameters of a model, in groups where they do not all learn alike: the head and those like it first."""
    scales = model.encoder.lr_scales() if isinstance(model.encoder, Encoder) else {}
    if not scales or set(scales.values()) == {1.0}:
        return model.parameters()
    groups: dict[float, list[torch.nn.Parameter]] = {1.0: []}
    for name, parameter in model.named_parameters():
        groups.setdefault(scales.get(name.removeprefix("encoder."), 1.0), []).append(parameter)
    return [{"params": groups[scale], lr_finder.SCALE: scale} for scale in sorted(groups, reverse=True)]
