"""The training step, and what is measured around it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from hydra.utils import instantiate
from torch import nn

from speechtrain.backends.base import Callback, Control, EpochClock, NonFiniteLossError, Plan, save_bad_batch
from speechtrain.backends.torch import losses, ops
from speechtrain.backends.torch.encoder import Encoder, frame_mask
from speechtrain.data.batches import Batch, Loader
from speechtrain.tasks.base import Head, Ops, Outputs, Scorer, Task

OPS: Ops = ops
LAST = "last.ckpt"


class SpeechModel(nn.Module):
    """An encoder with the head that a task asks for."""

    def __init__(self, encoder: Encoder, head: Head) -> None:
        super().__init__()
        self.encoder = encoder
        self.spec = head
        self.head = nn.Linear(encoder.output_size, head.size * (encoder.subsampling if head.per_input_frame else 1))
        if head.begins_even and getattr(encoder, "receptive_field", None) is not None:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T, F), (B,) -> what the head gives (B, T', V) and its frames (B,)."""
        encoded, encoded_lengths = self.encoder(features.to(self.head.weight.dtype), lengths)
        if self.spec.pool is not None:
            encoded, encoded_lengths = pooled(encoded, encoded_lengths, self.spec.pool)
        values = self.head(encoded).float()
        if self.spec.per_input_frame:
            values = values.reshape(len(values), -1, self.spec.size)[:, : features.shape[1]]
            encoded_lengths = lengths
        return values.log_softmax(-1) if self.spec.log_softmax else values, encoded_lengths


def pooled(x: torch.Tensor, lengths: torch.Tensor, how: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T', D), (B,) -> (B, 1, D) over the frames inside each row (`mean`, `max`) or of its last one (`last`), and lengths of 1."""
    if how == "last":
        index = (lengths.clamp_min(1) - 1).long()
        found = x[torch.arange(len(x), device=x.device), index]
    else:
        inside = frame_mask(lengths, x.shape[1])[:, :, None]
        if how == "max":
            found = x.masked_fill(~inside, torch.finfo(x.dtype).min).amax(1)
        else:
            found = (x * inside).sum(1) / lengths.clamp_min(1)[:, None]
    return found[:, None], torch.ones_like(lengths)


class TrainingModule(pl.LightningModule):
    """One training step, one validation step; metrics of an epoch are gathered here and given to the callbacks.

    Args:
        model: trained in place.
        task: knows the loss and counts errors.
        callbacks: told of each epoch; may ask to stop.
    """

    def __init__(self, model: SpeechModel, task: Task, plan: Plan, callbacks: Sequence[Callback]) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self.plan = plan
        self.listeners = callbacks
        self.control = Control()
        self.history: list[dict[str, float]] = []
        self.validation: dict[str, float] = {}
        self._scorer: Scorer | None = None
        self.clock = EpochClock()
        self._passes = ExitStack()
        self._halfway: dict[str, Any] | None = None
        self._batches_done = 0  # while a checkpoint is written inside an epoch
        self._reset()

    def _reset(self) -> None:
        self._loss_sum = torch.zeros((), dtype=torch.float64)
        self._label_count = 0
        self._norm_sum = torch.zeros((), dtype=torch.float64)
        self._norm_count = 0

    # --- the step ---------------------------------------------------------------------------------------------------------------------

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:  # noqa: ARG002
        """Batches stay as they are; the step moves the arrays it uses."""
        return batch

    def losses_of(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Loss of each utterance (B,), what the head gives (B, T', V), frames of it (B,)."""
        features, lengths, targets, target_lengths = (
            torch.from_numpy(array).to(self.device, non_blocking=True)
            for array in (batch.features, batch.feature_lengths, batch.targets, batch.target_lengths)
        )
        values, lengths = self.model(features, lengths)
        return self.task.loss(OPS, values, lengths, targets, target_lengths), values, lengths

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Mean loss a target, so that neither the batch's size nor its padding weighs."""
        start = time.perf_counter()
        if batch_idx == 0:
            # dropout follows from (seed, epoch), so that a run resumed at an epoch goes on as if it had never stopped
            torch.manual_seed(self.plan.seed + 1_000_003 * (self.current_epoch + 1))
        elif self._halfway is not None:
            _set_random_state(self._halfway["random"], self.device)
        self._halfway = None
        factor = self.plan.schedule.factor(self.global_step)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = group["initial_lr"] * factor
        utterance_losses, values, lengths = self.losses_of(batch)
        total = utterance_losses.sum()
        if not torch.isfinite(total):
            raise NonFiniteLossError(batch.ids, self.current_epoch, save_bad_batch(batch, self.plan.folder))
        labels = max(1, int(batch.target_lengths.sum()))
        self._loss_sum += total.detach().cpu()
        self._label_count += labels
        self._step_started = start
        if self.task.consistency:
            # summed over both views like the CTC loss, of which it takes the share that the paper gives it
            total = total + 2 * self.task.consistency * losses.consistency(values, lengths).sum()
        return total / labels

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip as configured, and keep the norm before clipping for `train/grad_norm`."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.grad is not None]
        by_norm = gradient_clip_val is not None and gradient_clip_algorithm == "norm"
        norm = torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val if by_norm and gradient_clip_val is not None else math.inf)
        if gradient_clip_val is not None and not by_norm:
            torch.nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        self._norm_sum += norm.detach().cpu()
        self._norm_count += 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer of the plan; its `lr` is the schedule's peak."""
        optimizer: torch.optim.Optimizer = instantiate(dict(self.plan.optimizer), params=self.model.parameters(), _convert_="all")
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        return optimizer

    # --- events -----------------------------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Tell the callbacks."""
        self.clock.start()  # an epoch that is resumed inside has no start of its own
        for listener in self.listeners:
            listener.on_train_start(self.trainer.max_epochs or 0, self.current_epoch)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Tell the callbacks."""
        loss = float(outputs["loss"]) if self.listeners else 0.0
        rate = float(self.trainer.optimizers[0].param_groups[0]["lr"])
        self.clock.step(time.perf_counter() - self._step_started, batch.seconds)
        batches = int(self.trainer.num_training_batches)
        for listener in self.listeners:
            listener.on_batch_end(self.current_epoch, batch_idx, batches, loss, rate)
        if self.plan.saves_inside(batch_idx, batches, self.global_step):
            self._batches_done = batch_idx + 1
            self.trainer.save_checkpoint(self.plan.folder / "checkpoints" / LAST)
            self._batches_done = 0

    def on_train_epoch_start(self) -> None:
        """The clock runs."""
        self.clock.start()

    def on_validation_epoch_start(self) -> None:
        """A fresh count."""
        self._passes.enter_context(self.clock.evaluating())
        self._scorer = self.task.scorer()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Count a batch."""
        assert self._scorer is not None
        self._scorer.update(batch, to_outputs(*self.losses_of(batch)))

    def on_validation_epoch_end(self) -> None:
        """Metrics of the pass."""
        assert self._scorer is not None
        self.validation = {f"val/{name}": float(value) for name, value in self._scorer.compute().items()}
        self._passes.close()

    def on_train_epoch_end(self) -> None:
        """Close the epoch: metrics to Lightning's monitors, to the callbacks, to the schedule."""
        metrics = {
            "train/loss": float(self._loss_sum) / max(1, self._label_count),
            "train/lr": float(self.trainer.optimizers[0].param_groups[0]["lr"]),
            "train/grad_norm": float(self._norm_sum) / max(1, self._norm_count),
            **self.validation,
            **self.clock.metrics(),
        }
        self.validation = {}
        self._reset()
        self.history.append(metrics)
        self.log_dict(metrics, batch_size=1)
        self.plan.schedule.epoch_end(metrics.get(self.plan.monitor), self.plan.direction == "minimize")
        for listener in self.listeners:
            listener.on_epoch_end(self.current_epoch, metrics, self.control)
        if self.control.stop_reason is not None:
            self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Everything needed to load the model alone, and the schedule's state."""
        checkpoint["extra"] = dict(self.plan.extra)
        checkpoint["schedule"] = self.plan.schedule.state_dict()
        if self._batches_done:
            checkpoint["halfway"] = {
                "epoch": self.current_epoch,
                "batches": self._batches_done,
                "of": int(self.trainer.num_training_batches),
                "random": _random_state(self.device),
                "sums": [float(self._loss_sum), self._label_count, float(self._norm_sum), self._norm_count],
            }

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """The schedule's state, and that of an epoch which had begun."""
        self.plan.schedule.load_state_dict(checkpoint["schedule"])
        self._halfway = checkpoint.get("halfway")
        if self._halfway is not None:
            loss, self._label_count, norm, self._norm_count = self._halfway["sums"]
            self._loss_sum += loss
            self._norm_sum += norm

    def batches_done(self, epoch: int, batches: int) -> int:
        """How many of the batches of an epoch that is about to begin were trained on before the run was resumed.

        Raises:
            ConfigError: it had another number of batches then.
        """
        if self._halfway is None or self._halfway["epoch"] != epoch:
            return 0
        self.plan.check_inside(self._halfway["of"], batches)
        return int(self._halfway["batches"])


def to_outputs(utterance_losses: torch.Tensor, values: torch.Tensor, lengths: torch.Tensor) -> Outputs:
    """Tensors of a batch as arrays."""
    return Outputs(
        values=values.detach().float().cpu().numpy(),
        lengths=lengths.cpu().numpy().astype(np.int64),
        losses=utterance_losses.detach().float().cpu().numpy(),
    )


def _random_state(device: torch.device) -> list[torch.Tensor]:
    """What dropout is drawn from: of the CPU, and of the device if that is another."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_random_state(state: Sequence[torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0].cpu())
    if device.type == "cuda" and len(state) > 1:
        torch.cuda.set_rng_state(state[1].cpu(), device)


class Feed:
    """A `Loader` as Lightning takes one: a sized iterable that knows by itself which epoch comes, and how much of it is done."""

    def __init__(self, loader: Loader, position: Callable[[], tuple[int, int]], clock: EpochClock | None = None) -> None:
        self._clock = clock
        self._loader = loader
        self._position = position

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        self._loader.set_epoch(*self._position())
        return iter(self._loader) if self._clock is None else self._clock.waiting(self._loader)
