"""The backend contract on PyTorch and Lightning."""

from __future__ import annotations

import copy
import io
import logging
import pickle
import signal
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from hydra.utils import instantiate
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.flop_counter import FlopCounterMode

from speechtrain.backends.base import Backend, Conversion, Layer, ModelInfo, Plan, default_threads
from speechtrain.backends.callbacks import Callback, TrainResult
from speechtrain.backends.checkpoint_files import BEST, FOLDER, LAST, MEAN
from speechtrain.backends.failures import OutOfMemoryError
from speechtrain.backends.torch.averaging import mean_of
from speechtrain.backends.torch.devices import Companions, OwnProcesses, own_rank
from speechtrain.backends.torch.encoder import Encoder, stacks_of
from speechtrain.backends.torch.lightning_module import Feed, TrainingModule, left_as_it_was, to_outputs
from speechtrain.backends.torch.sharding import FullySharded
from speechtrain.backends.torch.speech_model import ModelStream, SpeechModel
from speechtrain.data.batches import Batch
from speechtrain.data.loader import Loader
from speechtrain.errors import ConfigError, Problem, UserError, first_line
from speechtrain.files import atomically
from speechtrain.tasks.base import Outputs, Task

log = logging.getLogger(__name__)


class TorchBackend(Backend):
    """PyTorch.

    Args:
        threads: of one operation on the CPU; None: as OMP_NUM_THREADS says, else one a core, at most 4.
        compile: whether `torch.compile` makes the model of the training step.
    """

    name: ClassVar[str] = "torch"
    suffix: ClassVar[str] = ".ckpt"
    formats: ClassVar[Mapping[str, str]] = {"torchscript": ".ts", "pt2": ".pt2", "onnx": ".onnx"}

    def __init__(self, threads: int | None = None, compile: bool = False) -> None:  # noqa: A002 # the key's name
        self._compiled = compile
        self.threads = threads or default_threads()
        torch.set_num_threads(self.threads)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def build(self, model: Mapping[str, Any], task: Task, *, input_size: int, seed: int) -> SpeechModel:
        """An encoder from its config node with the task's head, weights drawn from `seed`.

        Raises:
            ConfigError: the target made something else than an encoder.
        """
        torch.manual_seed(seed)
        encoder = instantiate(dict(model), input_size=input_size, _convert_="all")
        if not isinstance(encoder, torch.nn.Module) or not all(
            hasattr(encoder, name) for name in ("output_size", "subsampling", "output_lengths")
        ):
            wanted = f"must make an encoder (see {Encoder.__module__}.Encoder)"
            raise ConfigError([Problem("model._target_", f"{wanted}, received {type(encoder).__name__}", "derive it from Encoder")])
        return SpeechModel(encoder, task.head)  # type: ignore[arg-type]

    def load_pretrained(self, model: SpeechModel) -> None:
        """See `Encoder.load_pretrained`."""
        if isinstance(model.encoder, Encoder):
            model.encoder.load_pretrained()

    def describe(self, model: SpeechModel) -> ModelInfo:
        """Size, subsampling and context of a model."""
        encoder = model.encoder
        parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        return ModelInfo(parameters, encoder.subsampling, getattr(encoder, "receptive_field", None), getattr(encoder, "causal", False))

    def layers(self, model: SpeechModel) -> list[Layer]:
        """The parts of the encoder, layers that stand in a row one by one, and the head."""
        parts: list[tuple[str, torch.nn.Module]] = []
        for name, module in model.encoder.named_children():
            inner = list(module.named_children()) if isinstance(module, torch.nn.ModuleList) else []
            parts += [(f"{name}.{number}", layer) for number, layer in inner] or [(name, module)]
        found = []
        for name, module in [*parts, ("head", model.head)]:
            weights = list(module.parameters())
            size = sum(weight.numel() * weight.element_size() for weight in [*weights, *module.buffers()]) / 1e6
            found.append(Layer(name, type(module).__name__, sum(weight.numel() for weight in weights), size))
        return found

    def multiply_adds(self, model: SpeechModel, features: npt.NDArray[np.float32], lengths: npt.NDArray[np.int64]) -> int:
        """Count those of matrix products and convolutions; see `Backend.multiply_adds`."""
        device = model.head.weight.device
        counter = FlopCounterMode(display=False)
        with torch.inference_mode(), counter:
            model.eval()(torch.from_numpy(features).to(device), torch.from_numpy(lengths).to(device))
        return int(counter.get_total_flops() // 2)

    def output_lengths(self, model: SpeechModel, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Encoder frames (B,) of input frames (B,)."""
        return model.encoder.output_lengths(torch.from_numpy(lengths)).numpy()

    def train(
        self, model: SpeechModel, train: Loader, val: Loader | None, task: Task, plan: Plan, callbacks: Sequence[Callback]
    ) -> TrainResult:
        """Train in place; see `Backend.train`."""
        plan.begin_schedule(len(train))
        _set_up(model, task, plan.trainer)
        sharded = plan.trainer["strategy"] == FullySharded.strategy_name
        if sharded:
            _check_sharded(model, plan.trainer, compiled=self._compiled)
        module = TrainingModule(copy.deepcopy(model) if sharded else model, task, plan, callbacks, compiled=self._compiled)
        module.loader = train
        keepers = _checkpoints(plan)
        monitors: list[pl.Callback] = [*keepers.values()]
        if (stopper := _early_stopping(plan)) is not None:
            monitors.append(stopper)
        with warnings.catch_warnings():
            _hush_lightning()
            environment = OwnProcesses()
            trainer = _trainer(plan, monitors, environment, has_val=val is not None)
            for loader in (train, val):
                if loader is not None:
                    loader.take_part(own_rank(), trainer.world_size)
            others = Companions(trainer.world_size - 1 if own_rank() == 0 else 0, environment.port, plan.folder, plan.resume_from)
            trainer.callbacks.append(others)  # type: ignore[attr-defined]
            if trainer.world_size > 1:  # Lightning would tell the others of a SIGTERM while they wait for something else
                trainer._signal_connector._sigterm_notifier_fn = lambda *_: None  # type: ignore[method-assign]
            module.train()
            self._device = trainer.strategy.root_device

            def position() -> tuple[int, int]:
                epoch = epochs_processed(trainer)
                return epoch, module.batches_done(epoch, len(train))

            on_interrupt = signal.getsignal(signal.SIGINT) or signal.default_int_handler
            try:
                with others:
                    trainer.fit(
                        module,
                        Feed(train, position, module.clock),
                        Feed(val, lambda: (0, 0)) if val is not None else None,
                        ckpt_path=plan.resume_from,
                        weights_only=True if plan.resume_from is not None else None,
                    )
            except SystemExit as error:
                raise KeyboardInterrupt from error  # Lightning leaves this way when interrupted
            except RuntimeError as error:
                if module.batch is not None and _is_out_of_memory(error):
                    raise OutOfMemoryError(module.batch, first_line(error, most=120)) from error
                raise
            except (pickle.UnpicklingError, KeyError, EOFError) as error:
                # a KeyError of another name is a defect of the code
                if plan.resume_from is None or (isinstance(error, KeyError) and error.args[0] not in _PARTS):
                    raise
                raise _damaged(plan.resume_from, error) from error
            finally:
                if threading.current_thread() is threading.main_thread():
                    signal.signal(signal.SIGINT, on_interrupt)  # Lightning switches Ctrl-C off when interrupted
                for loader in (train, val):
                    if loader is not None:
                        loader.take_part(0, 1)
        if module.weights:
            model.load_state_dict(module.weights)
        result = TrainResult(history=module.history, stop_reason=module.control.stop_reason, pruned=module.control.pruned)
        if stopper is not None and stopper.stopped_epoch and result.stop_reason is None:
            result.stop_reason = f"{stopper.monitor} has not improved for {stopper.patience} epochs"
        if "best" in keepers and keepers["best"].best_model_path:
            result.best_checkpoint = Path(keepers["best"].best_model_path)
            score = keepers["best"].best_model_score
            result.best_value = float(score) if score is not None else None
        last = plan.folder / FOLDER / f"{LAST}{self.suffix}"
        result.last_checkpoint = last if "last" in keepers and last.is_file() else None
        if "recent" in keepers and keepers["recent"].best_k_models:
            result.mean_checkpoint = plan.folder / FOLDER / f"{MEAN}{self.suffix}"
            weights = mean_of(sorted(Path(path) for path in keepers["recent"].best_k_models))
            AtomicCheckpointIO().save_checkpoint(_weights_file(weights, plan.extra), result.mean_checkpoint)
        for callback in callbacks:
            callback.on_train_end(result)
        return result

    def step_seconds(self, model: SpeechModel, batch: Batch, task: Task, trainer: Mapping[str, Any]) -> float:
        """The shorter of two steps after a first one; see `Backend.step_seconds`."""
        _set_up(model, task, trainer)
        device = torch.device("cpu") if trainer["accelerator"] == "cpu" else self._device
        module = TrainingModule(model, task, _NO_PLAN, (), compiled=self._compiled).to(device).train()
        kind = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(trainer["precision"])
        took = []
        try:
            with left_as_it_was(model, device), torch.autocast(device.type, kind, enabled=kind is not None):
                kept = [torch.empty_like(each) for each in model.parameters() for _ in range(2)]  # as Adam does
                for _ in range(3):
                    start = time.perf_counter()
                    module.gradient_of(batch)
                    if device.type == "cuda":
                        torch.cuda.synchronize(device)
                    took.append(time.perf_counter() - start)
                del kept
        except RuntimeError as error:
            if _is_out_of_memory(error):
                raise OutOfMemoryError(batch, first_line(error, most=120)) from error
            raise
        finally:
            if device.type == "cuda":
                torch.cuda.empty_cache()
        return min(took[1:])

    def infer(
        self, model: SpeechModel, features: npt.NDArray[np.float32], lengths: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Compute a model's outputs without a loss; see `Backend.infer`."""
        model.to(self._device).eval()
        with torch.inference_mode():
            values, value_lengths = model(torch.from_numpy(features).to(self._device), torch.from_numpy(lengths).to(self._device))
        return values.float().cpu().numpy(), value_lengths.cpu().numpy().astype(np.int64)

    def predict(self, model: SpeechModel, batches: Iterable[Batch], task: Task) -> Iterator[tuple[Batch, Outputs]]:
        """Outputs of each batch in evaluation mode, in order."""
        module = TrainingModule(model, task, _NO_PLAN, ())
        module.to(self._device)
        module.eval()
        for batch in batches:
            with torch.inference_mode():
                outputs = to_outputs(*module.losses_of(batch))
            yield batch, outputs

    def save(self, model: SpeechModel, path: Path, extra: Mapping[str, Any]) -> None:
        """Write weights and `extra`, whole or not at all."""
        AtomicCheckpointIO().save_checkpoint(_weights_file(model.state_dict(), extra), path)

    def load(self, model: SpeechModel, path: Path) -> Mapping[str, Any]:
        """Weights of a file or checkpoint into a model; see `Backend.load`."""
        weights, extra = _read(path)
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            first = str(error).strip().splitlines()[1].strip() if "\n" in str(error) else str(error)
            raise UserError(f"{path} holds another model: {first}\n    -> use the model and data it was trained with") from error
        return extra

    def stream(self, model: SpeechModel) -> ModelStream | None:
        """A fresh state for one live signal, of an encoder that can; see `Backend.stream`."""
        if not hasattr(model.encoder, "stream") or model.spec.pool is not None or model.spec.per_input_frame:
            return None
        try:
            return ModelStream(model, model.encoder.stream())  # type: ignore[operator]
        except ValueError:
            return None

    def convert(self, model: SpeechModel, kind: str, path: Path, options: Conversion) -> None:
        """TorchScript, `torch.export` or ONNX; see `Backend.convert`."""
        from speechtrain.backends.torch.exports import to_onnx, to_pt2, to_torchscript

        write = {"torchscript": to_torchscript, "pt2": to_pt2, "onnx": to_onnx}[kind]
        write(model.cpu().eval(), path, options.input_size)

    def check_file(self, path: Path) -> None:
        """Read a checkpoint without using it; see `Backend.check_file`."""
        _read(path)

    def warm_start(self, model: SpeechModel, path: Path) -> Sequence[str]:
        """Weights of a file as far as they fit; see `Backend.warm_start`."""
        weights, _ = _read(path)
        own = model.state_dict()
        fitting = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
        if not any(name.startswith("encoder.") for name in fitting):
            raise UserError(f"{path} holds another model: none of its encoder's weights fits\n    -> use the model it was trained with")
        model.load_state_dict({**own, **fitting})
        return [name for name in own if name not in fitting]


_PARTS = (
    "pytorch-lightning_version",
    "state_dict",
    "schedule",
    "loops",
    "callbacks",
    "optimizer_states",
    "lr_schedulers",
    "epoch",
    "global_step",
    "extra",
)
"""Of a checkpoint that a training can be gone on with."""


def _set_up(model: SpeechModel, task: Task, trainer: Mapping[str, Any]) -> None:
    """What a training asks of the model itself."""
    if task.intermediate:
        model.tap()
    for stack in stacks_of(model.encoder):
        stack.layer_dropout = trainer["layer_dropout"]
        stack.checkpointing = trainer["gradient_checkpointing"]


def _check_sharded(model: SpeechModel, options: Mapping[str, Any], *, compiled: bool) -> None:
    """Whether a training can divide a model's weights.

    Raises:
        ConfigError: not with all that is asked of it.
    """
    problems = []
    if options["devices"] in (1, "1"):
        problems.append(Problem("trainer.strategy", "is fsdp, and there is one device", "set trainer.devices, or trainer.strategy=auto"))
    if "16-mixed" in str(options["precision"]) and "bf16" not in str(options["precision"]):
        message = f"is {options['precision']}; losses of sharded weights are not scaled"
        problems.append(Problem("trainer.precision", message, "set trainer.precision=bf16-mixed, or trainer.strategy=ddp"))
    if options["find_lr"]:
        message = "is true; sharded weights cannot be tried out"
        problems.append(Problem("trainer.find_lr", message, "find the rate once with trainer.strategy=ddp"))
    for name in (name for name, parameter in model.named_parameters() if parameter.ndim == 0):
        message = f"is fsdp, and {name} is a single number, which has no dimension to divide"
        problems.append(Problem("trainer.strategy", message, "make it a tensor of one element, or set trainer.strategy=ddp"))
    if compiled:
        problems.append(Problem("backend.compile", "is true; sharded weights are not compiled", "set trainer.strategy=ddp"))
    if problems:
        raise ConfigError(problems)


def _weights_file(weights: Mapping[str, torch.Tensor], extra: Mapping[str, Any]) -> dict[str, Any]:
    return {"state_dict": {f"model.{name}": value for name, value in weights.items()}, "extra": dict(extra)}


def _read(path: Path) -> tuple[dict[str, torch.Tensor], Mapping[str, Any]]:
    """Weights and `extra` of a checkpoint.

    Raises:
        UserError: it is damaged, or none.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return {name.removeprefix("model."): value for name, value in content["state_dict"].items()}, content["extra"]
    except (pickle.UnpicklingError, RuntimeError, KeyError, EOFError, OSError, AttributeError, TypeError) as error:
        raise _damaged(path, error) from error


class AtomicCheckpointIO(TorchCheckpointIO):
    """A checkpoint appears under its name whole or not at all."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:  # noqa: ARG002
        """Write beside the name, then rename."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        with atomically(target, durable=True) as temporary:
            temporary.write_bytes(buffer.getbuffer())


def epochs_processed(trainer: pl.Trainer) -> int:
    """The epoch that comes, also just after a restart, when Lightning's `current_epoch` is still one behind."""
    return int(trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error) or "not enough memory" in str(error)


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} is not a checkpoint that can be read ({first_line(error, most=120)})\n    -> give another checkpoint of the run"
    )


def _trainer(plan: Plan, callbacks: list[pl.Callback], environment: OwnProcesses, *, has_val: bool) -> pl.Trainer:
    options = plan.trainer
    if "fsdp" in str(options["strategy"]) and options["strategy"] != FullySharded.strategy_name:
        raise ConfigError([Problem("trainer.strategy", f"is {options['strategy']}, which is not one", "set trainer.strategy=fsdp")])
    try:
        trainer = pl.Trainer(
            accelerator=options["accelerator"],
            devices=options["devices"],
            strategy=FullySharded() if options["strategy"] == FullySharded.strategy_name else options["strategy"],
            precision=options["precision"],
            max_epochs=options["epochs"],
            max_steps=options["max_steps"] or -1,
            accumulate_grad_batches=options["accumulate_grad_batches"],
            gradient_clip_val=options["gradient_clip_val"],
            gradient_clip_algorithm=options["gradient_clip_algorithm"],
            deterministic=options["deterministic"],
            check_val_every_n_epoch=options["val_every_n_epochs"],
            limit_val_batches=1.0 if has_val else 0,
            num_sanity_val_steps=0,
            default_root_dir=plan.folder,
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO(), *([environment] if options["devices"] not in (1, "1") else [])],
            sync_batchnorm=options["sync_batchnorm"],
            logger=False,
            enable_checkpointing=any(isinstance(item, ModelCheckpoint) for item in callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ValueError, ModuleNotFoundError) as error:
        message = str(error).strip().splitlines()[0]
        raise ConfigError([Problem("trainer", message, "look at trainer.accelerator, devices, strategy and precision")]) from error
    return trainer


class Keeper(ModelCheckpoint):
    """A ModelCheckpoint with a name, by which its state is told from that of another with the same settings."""

    def __init__(self, role: str, **options: Any) -> None:
        super().__init__(**options)
        self.role = role

    @property
    def state_key(self) -> str:
        """The name, and what Lightning goes by."""
        return f"{self.role} {super().state_key}"


def _checkpoints(plan: Plan) -> dict[str, ModelCheckpoint]:
    options = plan.trainer["checkpoint"]
    common: dict[str, Any] = {
        "dirpath": plan.folder / FOLDER,
        "auto_insert_metric_name": False,
        "save_on_train_epoch_end": True,
        "enable_version_counter": False,
    }
    keepers: dict[str, ModelCheckpoint] = {}
    if options["save_top_k"]:
        keepers["best"] = Keeper(
            "best",
            monitor=options["monitor"],
            mode=options["mode"],
            save_top_k=options["save_top_k"],
            filename=f"{BEST}{options['filename']}",
            **common,
        )
    if options["every_n_epochs"]:
        keepers["every"] = Keeper("every", save_top_k=-1, every_n_epochs=options["every_n_epochs"], filename=options["filename"], **common)
    if plan.trainer["average_last"]:
        keepers["recent"] = Keeper(
            "recent", monitor="epoch", mode="max", save_top_k=plan.trainer["average_last"], filename="recent-epoch={epoch:03d}", **common
        )
    if options["save_last"]:
        keepers["last"] = Keeper("last", save_top_k=1, monitor=None, filename=LAST, **common)
    return keepers


def _early_stopping(plan: Plan) -> EarlyStopping | None:
    options = plan.trainer["early_stopping"]
    if options["patience"] is None:
        return None
    return EarlyStopping(
        monitor=options["monitor"],
        mode=options["mode"],
        patience=options["patience"],
        min_delta=options["min_delta"],
        check_on_train_epoch_end=True,
        check_finite=True,
    )


def _hush_lightning() -> None:
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*num_workers.*")


class _NoPlan:
    """Prediction needs no plan."""

    trainer: ClassVar[Mapping[str, Any]] = {}


_NO_PLAN: Any = _NoPlan()
