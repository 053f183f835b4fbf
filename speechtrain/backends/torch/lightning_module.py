"""The training step, and what is measured around it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from hydra.utils import instantiate
from torch import nn

from speechtrain.backends.base import Plan
from speechtrain.backends.callbacks import Callback, Control, EpochClock
from speechtrain.backends.checkpoint_files import FOLDER, LAST
from speechtrain.backends.failures import NonFiniteLossError, save_bad_batch
from speechtrain.backends.schedules import round_up
from speechtrain.backends.torch import losses, lr_finder, ops, sharding
from speechtrain.backends.torch.averaging import MovingAverage
from speechtrain.backends.torch.devices import as_in_first, from_first, gathered, summed
from speechtrain.backends.torch.encoder import compile_layers
from speechtrain.backends.torch.speech_model import SpeechModel
from speechtrain.data.batches import Batch
from speechtrain.data.loader import Loader
from speechtrain.processes import interrupts
from speechtrain.tasks.base import Ops, Outputs, Scorer, Task

log = logging.getLogger(__name__)

OPS: Ops = ops


class TrainingModule(pl.LightningModule):
    """One training step, one validation step; metrics of an epoch are gathered here and given to the callbacks.

    Args:
        model: trained in place.
        task: knows the loss and counts errors.
        callbacks: told of each epoch; may ask to stop.
        compiled: whether `torch.compile` makes the model, and training batches are rounded up to few shapes for it.
    """

    def __init__(self, model: SpeechModel, task: Task, plan: Plan, callbacks: Sequence[Callback], *, compiled: bool = False) -> None:
        super().__init__()
        self._compiled: Callable[..., Any] | None = _compiled(model) if compiled else None
        self.model = model
        self.task = task
        self.plan = plan
        self.listeners = callbacks
        self.control = Control()
        self.history: list[dict[str, float]] = []
        self.validation: dict[str, float] = {}
        self._scorer: Scorer | None = None
        self.clock = EpochClock()
        self.average = MovingAverage(model, plan.trainer["ema_decay"]) if plan.trainer.get("ema_decay") else None
        self._skipped_in_row = 0
        self.batch: Batch | None = None
        self.loader: Loader | None = None  # of training
        self.sharded = False
        self.weights: dict[str, torch.Tensor] = {}  # of a sharded training that had something to do, and ended: whole
        self._kept: list[torch.Tensor] = []
        self._passes = ExitStack()
        self._halfway: dict[str, Any] | None = None
        self._batches_done = 0  # while a checkpoint is written inside an epoch
        self._reset()

    def _reset(self) -> None:
        self._loss_sum = torch.zeros((), dtype=torch.float64)
        self._label_count = 0
        self._norm_sum = torch.zeros((), dtype=torch.float64)
        self._norm_count = 0
        self._skipped = 0

    def shard(self, device: torch.device, processes: int) -> None:
        """Divide the model between processes, and what goes with it."""
        sharding.shard(self.model, device, processes)
        self.sharded = True
        if self.average is not None:
            self.average.shard()

    # --- the step ---------------------------------------------------------------------------------------------------------------------

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:  # noqa: ARG002
        """Batches stay as they are; the step moves the arrays it uses."""
        return batch

    def losses_of(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Loss of each utterance (B,), what the head gives (B, T', V), frames of it (B,)."""
        if self._compiled is not None and self.training:
            rows = len(batch.ids)
            values, lengths = (each[:rows] for each in self._compiled(*(self._there(array) for array in _rounded_up(batch))))
        else:
            values, lengths = self.model(self._there(batch.features), self._there(batch.feature_lengths))
        return self._loss(values, lengths, batch), values, lengths

    def _loss(self, values: torch.Tensor, lengths: torch.Tensor, batch: Batch) -> torch.Tensor:
        found: torch.Tensor = self.task.loss(OPS, values, lengths, self._there(batch.targets), self._there(batch.target_lengths))
        return found

    def _there(self, array: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Mean loss a target, so that neither the batch's size nor its padding weighs."""
        start = time.perf_counter()
        self.batch = batch
        if batch_idx == 0:
            # dropout follows from (seed, epoch), so that a run resumed at an epoch goes on as if it had never stopped
            torch.manual_seed(self.plan.seed + 1_000_003 * (self.current_epoch + 1) + 7919 * self.global_rank)
        elif self._halfway is not None:
            _set_random_state(self._halfway["random"], self.device)
        self._halfway = None
        factor = self.plan.schedule.factor(self.global_step)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = group["initial_lr"] * factor
        utterance_losses, values, lengths = self.losses_of(batch)
        reported = utterance_losses.detach().sum().cpu()
        labels = 0 if batch.stands_in else int(batch.target_lengths.sum())
        if torch.isfinite(reported) and not batch.stands_in:
            self._loss_sum += reported
            self._label_count += labels
        self._step_started = start
        total = self.task.regularised(OPS, utterance_losses, values, lengths).sum()
        if share := self.task.intermediate:
            total = (1 - share) * total + share * self._loss(self.model.halfway()[: len(lengths)], lengths, batch).sum()
        if self.task.consistency:
            # summed over both views like the CTC loss, of which it takes the share that the paper gives it
            total = total + 2 * self.task.consistency * losses.consistency(values, lengths).sum()
        # gradients are averaged over the processes: each has its share of the sum over all, divided by the labels of all
        share_of_all = self.trainer.world_size / max(1.0, summed([labels], self.device)[0])
        loss: torch.Tensor = total * (0.0 if batch.stands_in else share_of_all)
        return loss

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip as configured, and keep the norm before clipping for `train/grad_norm`."""
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
        self._keep_buffers()
        self._norm_sum += norm
        self._norm_count += 1

    def _keep_buffers(self) -> None:
        """Running statistics as they are after a good step: those of a bad one are as little finite as its gradient."""
        buffers = [buffer for buffer in self.model.buffers() if buffer.is_floating_point()]
        if not self._kept:
            self._kept = [torch.empty_like(buffer) for buffer in buffers]
        if buffers:
            torch._foreach_copy_(self._kept, buffers)

    def _skip(self, parameters: Sequence[torch.Tensor]) -> None:
        """Leave a step out; the optimizer passes over parameters without a gradient.

        Raises:
            NonFiniteLossError: too many in a row.
        """
        for parameter in parameters:
            parameter.grad = None
        buffers = [buffer for buffer in self.model.buffers() if buffer.is_floating_point()]
        for buffer, kept in zip(buffers, self._kept, strict=True):
            buffer.copy_(kept)
        self._skipped += 1
        self._skipped_in_row += 1
        batch = self.batch
        assert batch is not None
        if self._skipped_in_row > self.plan.trainer["max_skipped_steps"]:
            raise NonFiniteLossError(batch.ids, self.current_epoch, save_bad_batch(batch, self.plan.folder))
        if self._skipped == 1:
            shown = ", ".join(batch.ids[:4]) + (", ..." if len(batch.ids) > 4 else "")
            log.warning("a gradient is not finite, on the batch of %s; such steps are left out and counted in train/skipped_steps", shown)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, and let the average follow."""
        super().optimizer_step(*args, **kwargs)
        if self.average is not None and not self._skipped_in_row:
            self.average.update()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer of the plan; its `lr` is the schedule's peak."""
        optimizer: torch.optim.Optimizer = instantiate(dict(self.plan.optimizer), params=self.model.parameters(), _convert_="all")
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        return optimizer

    # --- events -----------------------------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Tell the callbacks."""
        self._keep_buffers()
        wanted = self.plan.trainer["try_largest"]
        if self.loader is not None and (self.device.type == "cuda" if wanted is None else wanted):
            self._try(self.loader.largest())
        if self.loader is not None and self.plan.trainer["find_lr"] and self.plan.resume_from is None:
            self._find_lr(self.loader)
        self.clock.start()  # an epoch that is resumed inside has no start of its own
        for listener in self.listeners:
            listener.on_train_start(self.trainer.max_epochs or 0, self.current_epoch)

    @contextmanager
    def _trying(self) -> Iterator[None]:
        """Compute as training does, and leave everything as it was."""
        with left_as_it_was(self.model, self.device), self.trainer.precision_plugin.train_step_context():
            yield

    def _try(self, batch: Batch) -> None:
        """Compute a batch and its gradient, so that too large a one shows at once."""
        self.batch = batch
        with self._trying():
            self.gradient_of(batch)

    def gradient_of(self, batch: Batch) -> None:
        """Compute the loss of a batch and its gradient, for nothing."""
        total = self.losses_of(batch)[0].sum()
        if self.sharded:  # all processes are here
            torch.autograd.backward(total)
            self.zero_grad()
            return
        # not backward(): several processes would wait for each other's gradients
        torch.autograd.grad(total, [each for each in self.model.parameters() if each.requires_grad], allow_unused=True)

    def _find_lr(self, loader: Loader) -> None:
        """Set the schedule's peak to what a range test says."""

        def epoch(number: int) -> Loader:
            loader.set_epoch(number)
            return loader

        def loss_of(batch: Batch) -> torch.Tensor:
            self.batch = batch
            return self.losses_of(batch)[0].sum() / max(1, int(batch.target_lengths.sum()))

        with self._trying():
            curve = lr_finder.sweep(self.configure_optimizers(), lr_finder.endless(epoch), loss_of, self.plan.trainer["gradient_clip_val"])
        if self.global_rank == 0:
            lr_finder.write(curve, self.plan.folder)
        found = from_first(lr_finder.steepest(curve))
        for group in self.trainer.optimizers[0].param_groups:
            group["initial_lr"] = found
        log.info("learning rate found: %.2e (after %d steps; lr_finder.json)", found, len(curve))

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
            self.trainer.save_checkpoint(self.plan.folder / FOLDER / f"{LAST}.ckpt")
            self._batches_done = 0
        interrupts.check()

    def on_train_epoch_start(self) -> None:
        """The clock runs."""
        self.clock.start()

    def on_validation_epoch_start(self) -> None:
        """A fresh count."""
        self._passes.enter_context(self.clock.evaluating())
        if self.average is not None:
            self.average.swap()
            self._passes.callback(self.average.swap)
        as_in_first(self.model.buffers())  # the running statistics of batch norm are each process's own in training
        self._scorer = self.task.scorer()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Count a batch."""
        assert self._scorer is not None
        self.batch = batch
        if batch.stands_in and not self.sharded:  # weights that are gathered need all processes
            return
        outputs = to_outputs(*self.losses_of(batch))
        if not batch.stands_in:
            self._scorer.update(batch, outputs)

    def on_validation_epoch_end(self) -> None:
        """Metrics of the pass."""
        assert self._scorer is not None
        if self.trainer.world_size > 1:
            for rank, totals in enumerate(gathered(self._scorer.totals())):
                if rank != self.global_rank:
                    self._scorer.add(totals)
        self.validation = {f"val/{name}": float(value) for name, value in self._scorer.compute().items()}
        self._passes.close()

    def on_train_epoch_end(self) -> None:
        """Close the epoch: metrics to Lightning's monitors, to the callbacks, to the schedule."""
        if self._skipped and not self._norm_count:  # no step of the epoch was good, so none will be
            assert self.batch is not None
            raise NonFiniteLossError(self.batch.ids, self.current_epoch, save_bad_batch(self.batch, self.plan.folder))
        loss, labels = summed([float(self._loss_sum), self._label_count], self.device)
        metrics = {
            "train/loss": loss / max(1, labels),
            "train/lr": float(self.trainer.optimizers[0].param_groups[0]["lr"]),
            "train/grad_norm": float(self._norm_sum) / max(1, self._norm_count),
            **({"train/skipped_steps": float(self._skipped)} if self._skipped else {}),
            **self.validation,
            **self.clock.metrics(),
        }
        self.validation = {}
        metrics["train/audio_s_per_s"] = summed([metrics["train/audio_s_per_s"]], self.device)[0]
        metrics = from_first(metrics)
        self._reset()
        self.history.append(metrics)
        self.log_dict(metrics, batch_size=1)
        self.plan.schedule.epoch_end(metrics.get(self.plan.monitor), self.plan.direction == "minimize")
        for listener in self.listeners:
            listener.on_epoch_end(self.current_epoch, metrics, self.control)
        self.control = from_first(self.control)
        if self.control.stop_reason is not None:
            self.trainer.should_stop = True

    def on_train_end(self) -> None:
        """The model keeps the average."""
        if self.average is not None:
            self.average.swap()
        if self.sharded:
            self.weights = sharding.whole(self.model.state_dict())

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
                "sums": [float(self._loss_sum), self._label_count, float(self._norm_sum), self._norm_count, self._skipped],
            }
        if self.average is not None:  # the file's weights are those to use; those that are trained stand beside them
            checkpoint["trained"] = checkpoint["state_dict"]
            checkpoint["state_dict"] = {f"model.{name}": value for name, value in sharding.whole(self.average.weights).items()}
            checkpoint["average_steps"] = self.average.steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The schedule's state, and that of an epoch which had begun."""
        self.plan.schedule.load_state_dict(checkpoint["schedule"])
        if self.average is not None and "trained" in checkpoint:
            averaged = {name.removeprefix("model."): value for name, value in checkpoint["state_dict"].items()}
            self.average.restore(checkpoint["average_steps"], averaged)
        checkpoint["state_dict"] = checkpoint.get("trained", checkpoint["state_dict"])
        self._halfway = checkpoint.get("halfway")
        if self._halfway is not None:
            loss, self._label_count, norm, self._norm_count, *skipped = self._halfway["sums"]
            self._skipped = sum(skipped)  # files of before have none
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


def _compiled(model: SpeechModel) -> Callable[..., Any]:
    """The model as `torch.compile` makes it.

    Layers that stand in a row are compiled one for all, and once more for all shapes; a model without such is compiled as a whole, for
    each shape.
    """
    dynamo: Any = torch._dynamo
    dynamo.config.recompile_limit = max(_SHAPES, dynamo.config.recompile_limit)

    def call(features: torch.Tensor, lengths: torch.Tensor) -> Any:  # what compiling makes of a module is a module, and would be saved
        return model(features, lengths)

    found: Callable[..., Any] = call if compile_layers(model.encoder) else torch.compile(call, dynamic=False)
    return found


_SHAPES = 64  # that are compiled at most; later ones are computed as without compiling


def _rounded_up(batch: Batch) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Features and lengths with rows of one frame and frames of zeros behind, so that there are few shapes."""
    rows, frames = (round_up(size, 4) - size for size in batch.features.shape[:2])
    features = np.pad(batch.features, ((0, rows), (0, frames), (0, 0)))
    return features, np.pad(batch.feature_lengths, (0, rows), constant_values=1)


def to_outputs(utterance_losses: torch.Tensor, values: torch.Tensor, lengths: torch.Tensor) -> Outputs:
    """Tensors of a batch as arrays."""
    return Outputs(
        values=values.detach().float().cpu().numpy(),
        lengths=lengths.cpu().numpy().astype(np.int64),
        losses=utterance_losses.detach().float().cpu().numpy(),
    )


@contextmanager
def left_as_it_was(model: nn.Module, device: torch.device) -> Iterator[None]:
    """What is computed in here leaves weights, statistics and random numbers as they were."""
    state = _random_state(device)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        with torch.enable_grad():
            yield
    finally:
        model.load_state_dict(before)
        _set_random_state(state, device)


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
