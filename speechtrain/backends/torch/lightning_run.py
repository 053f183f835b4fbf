"""Sets Lightning up for one training, runs it and collects the result: checkpoints, early stopping, ranks, and errors for users."""

from __future__ import annotations

import io
import logging
import pickle
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from speechtrain.backends.base import TrainingPlan
from speechtrain.backends.callbacks import Callback, EpochClock, TrainResult
from speechtrain.backends.checkpoint_files import BEST, FOLDER, LAST, MEAN, RECENT
from speechtrain.backends.failures import OutOfMemoryError
from speechtrain.backends.torch import checkpoint as checkpoints
from speechtrain.backends.torch.averaging import mean_of
from speechtrain.backends.torch.batch_loss import is_out_of_memory
from speechtrain.backends.torch.checkpoint import write_weights
from speechtrain.backends.torch.devices import ExternalRanks, RankProcesses, bytes_of_rank0, own_rank, value_of_rank0
from speechtrain.backends.torch.internals import epochs_processed, ignore_sigterm_notices
from speechtrain.backends.torch.launched_ranks import LaunchedRanks
from speechtrain.backends.torch.lightning_module import TrainingModule
from speechtrain.backends.torch.rendezvous import current
from speechtrain.backends.torch.sharding import FullySharded
from speechtrain.data.batches import Batch
from speechtrain.data.loader import Loader
from speechtrain.errors import ConfigError, Problem, UserError, first_line


class LightningRun:
    """Runs one training with Lightning.

    Args:
        plan: plan of the training.
        has_val: whether there is validation data.

    Raises:
        ConfigError: Lightning does not accept the devices, the strategy or the precision.
    """

    def __init__(self, plan: TrainingPlan, *, has_val: bool) -> None:
        self._plan = plan
        self._folder = plan.folder / FOLDER
        self._checkpoints = _checkpoints(plan, self._folder)
        self._stopper = _early_stopping(plan)
        monitors: list[pl.Callback] = [*self._checkpoints.values(), *([self._stopper] if self._stopper is not None else [])]
        self._files = AtomicCheckpointIO()
        with silenced_lightning():
            self._trainer = _trainer(plan, monitors, self._files, has_val=has_val)
        self._processes: LaunchedRanks | RankProcesses
        if (rendezvous := current()) is not None:
            self._processes = LaunchedRanks(rendezvous, self.device)
        else:
            self._processes = RankProcesses(self._trainer.world_size, self.device, plan.folder, plan.resume_from)
        self._trainer.callbacks.append(self._processes)  # type: ignore[attr-defined]
        if self._trainer.world_size > 1:
            ignore_sigterm_notices(self._trainer)
            self._trainer.strategy.broadcast = _value_of  # type: ignore[method-assign, assignment] # its own pickles

    @property
    def device(self) -> torch.device:
        """Return the device that this process trains on."""
        device: torch.device = self._trainer.strategy.root_device
        return device

    def fit(self, module: TrainingModule, train: Loader, val: Loader | None) -> None:
        """Train and validate every epoch; of several ranks, each on its share of the batches.

        Raises:
            OutOfMemoryError: a batch does not fit into memory.
            UserError: the checkpoint to resume from is damaged.
            RunError: another rank failed.
            KeyboardInterrupt: the user stopped it.
        """

        def position() -> tuple[int, int]:
            epoch = epochs_processed(self._trainer)
            return epoch, module.batches_done(epoch, len(train))

        self._files.callbacks = module.callbacks
        loaders = [loader for loader in (train, val) if loader is not None]
        with (
            silenced_lightning(),
            _ctrl_c_restored(),
            _explained(module, self._plan.resume_from),
            _share_of(loaders, own_rank(), self._trainer.world_size),
            self._processes,
        ):
            self._trainer.fit(
                module,
                EpochLoader(train, position, module.clock),
                EpochLoader(val, lambda: (0, 0)) if val is not None else None,
                ckpt_path=self._plan.resume_from,
                weights_only=True if self._plan.resume_from is not None else None,
            )
            if not module.begun:  # Lightning calls nothing where no epoch is left of a run that is resumed
                module.begin(epochs_processed(self._trainer))
                module.on_train_end()

    def result(self, module: TrainingModule) -> TrainResult:
        """Return what the training left; the mean of the last checkpoints is written here."""
        stop_reason = module.control.stop_reason
        if stop_reason is None and self._stopper is not None and self._stopper.stopped_epoch:
            stop_reason = f"{self._stopper.monitor} has not improved for {self._stopper.patience} epochs"
        control = module.control
        result = TrainResult(history=module.history, stop_reason=stop_reason, pruned=control.pruned, paused=control.paused)
        best = self._checkpoints.get("best")
        if best is not None and best.best_path is not None:
            result.best_checkpoint = best.best_path
            result.best_value = float(best.best_model_score) if best.best_model_score is not None else None
        last = self._folder / f"{LAST}.ckpt"
        result.last_checkpoint = last if "last" in self._checkpoints and last.is_file() else None
        recent = self._checkpoints.get("recent")
        if recent is not None and recent.best_k_models:
            result.mean_checkpoint = self._folder / f"{MEAN}.ckpt"
            write_weights(mean_of(sorted(Path(path) for path in recent.best_k_models)), self._plan.extra, result.mean_checkpoint)
        return result


class EpochLoader:
    """A `Loader` as Lightning takes one: a sized iterable that sets the epoch, and the batches of it that are done, by itself.

    Args:
        position: gives the coming epoch and how many of its batches are done.
        clock: measures how long each batch is waited for; None: nothing is measured.
    """

    def __init__(self, loader: Loader, position: Callable[[], tuple[int, int]], clock: EpochClock | None = None) -> None:
        self._loader = loader
        self._position = position
        self._clock = clock

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        self._loader.set_epoch(*self._position())
        return iter(self._loader) if self._clock is None else self._clock.waiting(self._loader)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints whole or not at all, see `checkpoint.write`."""

    def __init__(self) -> None:
        super().__init__()
        self.callbacks: Sequence[Callback] = ()
        """Those that receive the last checkpoint when it is written, which it is behind the others of its epoch."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:  # noqa: ARG002
        """Write to a temporary name beside the path, then rename."""
        checkpoints.write(checkpoint, Path(path))
        for callback in self.callbacks if Path(path).stem == LAST else ():
            callback.on_checkpoint(Path(path))

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint, which rank 0 does for ranks on other machines."""
        content = bytes_of_rank0(Path(path))
        if content is None:
            return super().load_checkpoint(path, weights_only=weights_only)
        loaded: dict[str, Any] = torch.load(io.BytesIO(content), map_location=map_location or "cpu", weights_only=True)
        return loaded


_PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")
"""Keys of the state of Lightning's ModelCheckpoint that hold the path of a file."""


class NamedCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint with a role, which tells its state from that of another one with the same settings."""

    def __init__(self, role: str, **options: Any) -> None:
        super().__init__(**options)
        self.role = role

    @property
    def state_key(self) -> str:
        """Return the role in front of the key that Lightning makes of the settings."""
        key = super().state_key.replace(type(self).__qualname__, "Keeper", 1)  # as checkpoints have it since the class was called so
        return f"{self.role} {key}"

    def check_monitor_top_k(self, trainer: pl.Trainer, current: torch.Tensor | None = None) -> bool:
        """Return whether a value belongs to the best; of equal ones the last does, where Lightning keeps the first."""
        worst = self.best_k_models.get(self.kth_best_model_path)
        equal = current is not None and worst is not None and float(current) == float(worst)  # they may lie on two devices
        if equal and self.save_top_k > 0:
            return trainer.strategy.reduce_boolean_decision(decision=True)
        return super().check_monitor_top_k(trainer, current)

    @property
    def best_path(self) -> Path | None:
        """Return the best checkpoint, the last one of those with the same value; None: there is none yet."""
        best = [path for path, value in self.best_k_models.items() if value == self.best_model_score]
        return Path(best[-1]) if best else None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state, also of a run whose folder was moved, in which Lightning would look for the checkpoints where they were."""
        folder = Path(str(self.dirpath))
        names = [Path(path).name for path in (*state_dict["best_k_models"], state_dict["best_model_path"]) if path]
        if state_dict["dirpath"] != self.dirpath and names and all((folder / name).is_file() for name in names):
            paths = {key: str(folder / Path(state_dict[key]).name) for key in _PATHS if state_dict[key]}
            best = {str(folder / Path(path).name): value for path, value in state_dict["best_k_models"].items()}
            state_dict = {**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath}
        super().load_state_dict(state_dict)


class ResumedStopping(EarlyStopping):
    """An EarlyStopping by which a run that had been stopped and is resumed ends as it did, unless it is given more patience."""

    @property
    def state_key(self) -> str:
        """Return Lightning's key for its own class."""
        return super().state_key.replace(type(self).__qualname__, EarlyStopping.__qualname__, 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the count, but not the patience, which the config may have changed."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Stop before the first epoch if the run had been stopped after its last one."""
        if self.wait_count >= self.patience or self.stopping_reason == EarlyStoppingReason.NON_FINITE_METRIC:
            trainer.should_stop = True
        else:
            self.stopped_epoch = 0


@contextmanager
def silenced_lightning() -> Iterator[None]:
    """Hide what Lightning logs below an error, and its warnings while the block runs."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning.*")
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
        warnings.filterwarnings("ignore", message=".*num_workers.*")
        yield


@contextmanager
def _ctrl_c_restored() -> Iterator[None]:
    """Let Ctrl-C leave as KeyboardInterrupt, and work afterwards as before: Lightning exits by itself, and switches it off."""
    handler = signal.getsignal(signal.SIGINT) or signal.default_int_handler
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


@contextmanager
def _explained(module: TrainingModule, resume_from: Path | None) -> Iterator[None]:
    """Turn errors of the framework into ours where they are a user's: too large a batch, a checkpoint of another training."""
    try:
        yield
    except (RuntimeError, pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError, AttributeError) as error:
        if module.batch is not None and isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise OutOfMemoryError(module.batch, first_line(error, most=120)) from error
        if resume_from is None or module.begun or module.batch is not None:  # a defect of the code
            raise
        message = f"{resume_from}: training cannot go on from it ({first_line(error)})"
        fix = "resume with the model, optimizer and callbacks that it was written with, or give another checkpoint of the run"
        raise UserError(f"{message}\n    -> {fix}") from error


@contextmanager
def _share_of(loaders: Sequence[Loader], rank: int, ranks: int) -> Iterator[None]:
    """Make loaders return one rank's share of each batch."""
    for loader in loaders:
        loader.take_share(rank, ranks)
    try:
        yield
    finally:
        for loader in loaders:
            loader.take_share(0, 1)


def _value_of(value: Any, src: int = 0) -> Any:  # noqa: ARG001 # it is always rank 0
    """Return the value of rank 0, as a strategy of Lightning does."""
    return value_of_rank0(value)


def _trainer(plan: TrainingPlan, callbacks: list[pl.Callback], files: AtomicCheckpointIO, *, has_val: bool) -> pl.Trainer:
    options = plan.trainer
    if "fsdp" in options.strategy and options.strategy != FullySharded.strategy_name:
        raise ConfigError([Problem("trainer.strategy", f"is {options.strategy}, which is not available", "set trainer.strategy=fsdp")])
    rendezvous = current()
    several = options.devices not in (1, "1") or rendezvous is not None
    try:
        return pl.Trainer(
            accelerator=options.accelerator,
            devices=options.devices if rendezvous is None else rendezvous.local_count,
            num_nodes=1 if rendezvous is None else rendezvous.nodes,
            strategy=FullySharded() if options.strategy == FullySharded.strategy_name else options.strategy,
            precision=options.precision,  # type: ignore[arg-type] # one of the words that the schema allows
            max_epochs=options.epochs,
            max_steps=options.max_steps or -1,
            accumulate_grad_batches=options.accumulate_grad_batches,
            gradient_clip_val=options.gradient_clip_val,
            gradient_clip_algorithm=options.gradient_clip_algorithm,
            deterministic=options.deterministic,
            check_val_every_n_epoch=options.val_every_n_epochs,
            limit_val_batches=1.0 if has_val else 0,
            num_sanity_val_steps=0,
            default_root_dir=plan.folder,
            callbacks=callbacks,
            plugins=[files, *([ExternalRanks()] if several else [])],
            sync_batchnorm=options.sync_batchnorm,
            logger=False,
            enable_checkpointing=any(isinstance(item, ModelCheckpoint) for item in callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ValueError, ModuleNotFoundError) as error:
        message = str(error).strip().splitlines()[0]
        raise ConfigError([Problem("trainer", message, "look at trainer.accelerator, devices, strategy and precision")]) from error


def _checkpoints(plan: TrainingPlan, folder: Path) -> dict[str, NamedCheckpoint]:
    """Return the kinds of checkpoints that are asked for, by their roles."""
    options, monitor = plan.trainer.checkpoint, plan.checkpoint_monitor
    wanted: dict[str, dict[str, Any]] = {}
    if options.save_top_k:
        best = {"monitor": monitor.metric, "mode": monitor.mode, "save_top_k": options.save_top_k}
        wanted["best"] = {**best, "filename": f"{BEST}{options.filename}"}
    if options.every_n_epochs:
        wanted["every"] = {"save_top_k": -1, "every_n_epochs": options.every_n_epochs, "filename": options.filename}
    if plan.trainer.average_last:
        latest = {"monitor": "epoch", "mode": "max", "save_top_k": plan.trainer.average_last}
        wanted["recent"] = {**latest, "filename": f"{RECENT}epoch={{epoch:03d}}"}
    if options.save_last:
        wanted["last"] = {"save_top_k": 1, "monitor": None, "filename": LAST}
    common = {"auto_insert_metric_name": False, "save_on_train_epoch_end": True, "enable_version_counter": False}
    return {role: NamedCheckpoint(role, dirpath=folder, **settings, **common) for role, settings in wanted.items()}


def _early_stopping(plan: TrainingPlan) -> ResumedStopping | None:
    options, monitor = plan.trainer.early_stopping, plan.stopping_monitor
    if options.patience is None:
        return None
    return ResumedStopping(
        monitor=monitor.metric,
        mode=monitor.mode,
        patience=options.patience,
        min_delta=options.min_delta,
        check_on_train_epoch_end=True,
        check_finite=True,
    )
