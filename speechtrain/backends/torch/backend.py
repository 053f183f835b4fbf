"""The backend contract on PyTorch; Lightning is imported where a training begins, never for inference."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch.overrides import TorchFunctionMode

from speechtrain.backends.base import Backend, Conversion, LayerSize, LayerWeights, ModelInfo, TrainingPlan, default_threads
from speechtrain.backends.callbacks import Callback, TrainResult
from speechtrain.backends.checkpoint_files import another_model, check_depth, label_pairs
from speechtrain.backends.failures import OutOfMemoryError
from speechtrain.backends.torch.batch_loss import BatchLoss, is_out_of_memory, to_outputs
from speechtrain.backends.torch.checkpoint import check_resumable, read_weights, write_weights
from speechtrain.backends.torch.encoder import Encoder, stacks_of
from speechtrain.backends.torch.internals import hide_transformers_from_metrics
from speechtrain.backends.torch.random_state import restored
from speechtrain.backends.torch.speech_model import ModelStream, SpeechModel
from speechtrain.config.build import construct
from speechtrain.config.schemas.training import Trainer
from speechtrain.config.stored import known_targets
from speechtrain.data.batches import Batch
from speechtrain.errors import ConfigError, Problem, UserError, first_line
from speechtrain.tasks.base import Outputs, Task

if TYPE_CHECKING:
    from speechtrain.data.loader import Loader

_ENCODER = "encoder."  # what the names of its weights begin with


class TorchBackend(Backend):
    """Trains with PyTorch Lightning, and predicts with PyTorch alone.

    Args:
        threads: threads of one operation on the CPU; None: OMP_NUM_THREADS, else one a core and at most 4.
        compile: whether `torch.compile` makes the model of the training step.
    """

    name: ClassVar[str] = "torch"
    suffix: ClassVar[str] = ".ckpt"
    formats: ClassVar[Mapping[str, str]] = {"torchscript": ".ts", "pt2": ".pt2", "onnx": ".onnx", "huggingface": "", "tflite_micro": ""}

    def __init__(self, threads: int | None = None, compile: bool = False) -> None:  # noqa: A002 # the key's name
        self._compiled = compile
        self.threads = threads or default_threads()
        torch.set_num_threads(self.threads)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def build(self, model: Mapping[str, Any], task: Task, *, input_size: int, seed: int) -> SpeechModel:
        """Build an encoder from its config node, with the task's head and weights drawn from `seed`.

        Raises:
            ConfigError: the target made something that is not an encoder.
        """
        torch.manual_seed(seed)
        encoder = construct("model", model, input_size=input_size)
        if not isinstance(encoder, torch.nn.Module) or not all(
            hasattr(encoder, name) for name in ("output_size", "subsampling", "output_lengths")
        ):
            wanted = f"must make an encoder (see {Encoder.__module__}.Encoder)"
            raise ConfigError([Problem("model._target_", f"{wanted}, received {type(encoder).__name__}", "derive it from Encoder")])
        return SpeechModel(encoder, task.head)  # type: ignore[arg-type]

    def load_pretrained(self, model: SpeechModel, outputs: Sequence[int] | None = None) -> None:
        """Load the weights that the encoder's config names, and those of its head; see `Backend.load_pretrained`."""
        head = model.encoder.load_pretrained() if isinstance(model.encoder, Encoder) else None
        if outputs is not None:
            model.load_head(head, outputs)

    def describe(self, model: SpeechModel) -> ModelInfo:
        """Return the size, subsampling and context of a model."""
        encoder = model.encoder
        parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        context = getattr(encoder, "receptive_field", None), getattr(encoder, "causal", False)
        head_trained = any(each.requires_grad for each in model.head.parameters())
        return ModelInfo(parameters, encoder.subsampling, *context, head_trained=head_trained)

    def layers(self, model: SpeechModel) -> list[LayerSize]:
        """Measure the parts of the encoder, each layer of a stack by itself, and the head."""
        parts: list[tuple[str, torch.nn.Module]] = []
        for name, module in model.encoder.named_children():
            inner = list(module.named_children()) if isinstance(module, torch.nn.ModuleList) else []
            parts += [(f"{name}.{number}", layer) for number, layer in inner] or [(name, module)]
        sizes = []
        for name, module in [*parts, ("head", model.head)]:
            weights = list(module.parameters())
            megabytes = sum(weight.numel() * weight.element_size() for weight in [*weights, *module.buffers()]) / 1e6
            sizes.append(LayerSize(name, type(module).__name__, sum(weight.numel() for weight in weights), megabytes))
        return sizes

    def layer_weights(self, model: SpeechModel) -> LayerWeights:
        """Return the weights of a model as Keras holds them; see `Backend.layer_weights`."""
        from speechtrain.backends.torch.layer_weights import layer_weights

        return layer_weights(model)

    def multiply_adds(self, model: SpeechModel, features: npt.NDArray[np.float32], lengths: npt.NDArray[np.int64]) -> int:
        """Count those of matrix products and convolutions; see `Backend.multiply_adds`."""
        from torch.utils.flop_counter import FlopCounterMode  # imports Triton

        device = model.head.weight.device
        counter = FlopCounterMode(display=False)
        with torch.inference_mode(), counter:
            model.eval()(torch.from_numpy(features).to(device), torch.from_numpy(lengths).to(device))
        return int(counter.get_total_flops() // 2)

    def output_lengths(self, model: SpeechModel, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the encoder frames (B,) of input frames (B,)."""
        return model.encoder.output_lengths(torch.from_numpy(lengths)).numpy()

    def train(
        self, model: SpeechModel, train: Loader, val: Loader | None, task: Task, plan: TrainingPlan, callbacks: Sequence[Callback]
    ) -> TrainResult:
        """Train in place; see `Backend.train`."""
        hide_transformers_from_metrics()
        from speechtrain.backends.torch.lightning_module import TrainingModule
        from speechtrain.backends.torch.lightning_run import LightningRun
        from speechtrain.backends.torch.sharding import FullySharded, check_shardable

        plan.begin_schedule(len(train))
        _prepare(model, task, plan.trainer)
        sharded = plan.trainer.strategy == FullySharded.strategy_name
        if sharded:
            check_shardable(model, plan.trainer, compiled=self._compiled)
        module = TrainingModule(copy.deepcopy(model) if sharded else model, task, plan, callbacks, train, compiled=self._compiled)
        module.train()
        run = LightningRun(plan, has_val=val is not None)
        self._device = run.device
        run.fit(module, train, val)
        if module.whole_weights:
            model.load_state_dict(module.whole_weights)
        result = run.result(module)
        for callback in callbacks:
            callback.on_train_end(result)
        return result

    def step_seconds(self, model: SpeechModel, batch: Batch, task: Task, trainer: Trainer) -> float:
        """Measure the shorter of two steps after a first one, without what other programs take of the CPU; see `Backend.step_seconds`."""
        _prepare(model, task, trainer)
        device = torch.device("cpu") if trainer.accelerator == "cpu" else self._device
        batch_loss = BatchLoss(model.to(device).train(), task, compiled=self._compiled)
        kind = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(trainer.precision)
        durations = []
        try:
            with restored(model, device), torch.autocast(device.type, kind, enabled=kind is not None):
                adam_state = [torch.empty_like(each) for each in model.parameters() for _ in range(2)]
                for _ in range(3):
                    wall, cpu = time.perf_counter(), time.process_time()
                    batch_loss.gradient(batch, device)
                    if device.type == "cuda":
                        torch.cuda.synchronize(device)
                    spent = time.perf_counter() - wall
                    durations.append(min(spent, time.process_time() - cpu) if device.type == "cpu" else spent)
                del adam_state
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise OutOfMemoryError(batch, first_line(error, most=120)) from error
            raise
        finally:
            if device.type == "cuda":
                torch.cuda.empty_cache()
        return min(durations[1:])

    def infer(
        self, model: SpeechModel, features: npt.NDArray[np.float32], lengths: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Compute a model's outputs without a loss; see `Backend.infer`."""
        model.to(self._device).eval()
        with torch.inference_mode():
            values, value_lengths = model(torch.from_numpy(features).to(self._device), torch.from_numpy(lengths).to(self._device))
        return values.float().cpu().numpy(), value_lengths.cpu().numpy().astype(np.int64)

    def predict(self, model: SpeechModel, batches: Iterable[Batch], task: Task) -> Iterator[tuple[Batch, Outputs]]:
        """Yield each batch with its outputs in evaluation mode, in order."""
        batch_loss = BatchLoss(model.to(self._device).eval(), task)
        for batch in batches:
            with torch.inference_mode():
                outputs = to_outputs(*batch_loss(batch, self._device))
            yield batch, outputs

    def save(self, model: SpeechModel, path: Path, extra: Mapping[str, Any]) -> None:
        """Write weights and `extra` to a file that appears whole or not at all."""
        write_weights(model.state_dict(), extra, path)

    def load(self, model: SpeechModel, path: Path) -> Mapping[str, Any]:
        """Put the weights of a file or checkpoint into a model; see `Backend.load`."""
        weights, extra = read_weights(path)
        _put(model, weights, path)
        return extra

    def restore(self, model: Mapping[str, Any], task: Task, path: Path, *, input_size: int) -> SpeechModel:
        """Build a model with the weights of a file, once its outline is known to be that of the file; see `Backend.restore`."""
        weights, _ = read_weights(path)
        if model["_target_"] in known_targets("model"):  # one of the user's own may need numbers to be built
            check_depth(model, len(weights), path)
            _check_shapes(outline(model, task, input_size=input_size), weights, path)
        built = self.build(model, task, input_size=input_size, seed=0)
        _put(built, weights, path)
        return built

    def stream(self, model: SpeechModel) -> ModelStream | None:
        """Return a fresh state for one live signal, if the encoder can stream; see `Backend.stream`."""
        if not hasattr(model.encoder, "stream") or model.spec.pool is not None or model.spec.per_input_frame:
            return None
        try:
            return ModelStream(model, model.encoder.stream())  # type: ignore[operator]
        except ValueError:
            return None

    def convert(self, model: SpeechModel, kind: str, path: Path, options: Conversion) -> None:
        """Write TorchScript, `torch.export` or ONNX; see `Backend.convert`."""
        from speechtrain.backends.torch.exports import to_onnx, to_pt2, to_torchscript

        write = {"torchscript": to_torchscript, "pt2": to_pt2, "onnx": to_onnx}[kind]
        write(model.cpu().eval(), path, options.input_size)

    def check_file(self, path: Path) -> None:
        """Read a checkpoint without using it; see `Backend.check_file`."""
        check_resumable(path)

    def warm_start(self, model: SpeechModel, path: Path, labels: Sequence[int | None] | None = None) -> Sequence[str]:
        """Put those weights of a file that fit into a model; see `Backend.warm_start`."""
        weights, _ = read_weights(path)
        _check_kinds(model, weights, path)
        own = model.state_dict()
        if isinstance(model.encoder, Encoder):
            of_encoder = {name.removeprefix(_ENCODER): value for name, value in weights.items() if name.startswith(_ENCODER)}
            others = {name: value for name, value in weights.items() if not name.startswith(_ENCODER)}
            weights = {**others, **{f"{_ENCODER}{name}": value for name, value in model.encoder.adapt_warm_start(of_encoder).items()}}
        if labels is not None:
            for name in ("head.weight", "head.bias"):
                former = weights.pop(name, None)
                if former is not None and former.shape[1:] == own[name].shape[1:]:
                    weights[name] = own[name].clone()
                    into, taken = label_pairs(labels, len(former), path)
                    weights[name][into] = former[taken].to(own[name])
        fitting = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
        if not any(name.startswith(_ENCODER) for name in fitting):
            raise another_model(path, "none of its encoder's weights fits")
        model.load_state_dict({**own, **fitting})
        return [name for name in own if name not in fitting]


def _prepare(model: SpeechModel, task: Task, trainer: Trainer) -> None:
    """Set what a training asks of the model itself: a head in the middle, layer dropout, checkpointed gradients."""
    if task.intermediate:
        model.tap()
    for stack in stacks_of(model.encoder):
        stack.layer_dropout = trainer.layer_dropout
        stack.checkpointing = trainer.gradient_checkpointing
    if isinstance(model.encoder, Encoder):
        model.encoder.prepare(layer_dropout=trainer.layer_dropout, checkpointing=trainer.gradient_checkpointing)


def _check_kinds(model: SpeechModel, weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Check that numbers are read as what they are, and that no parameter is infinite; a buffer may be, as the mask of an attention.

    Raises:
        UserError: they are of another kind.
    """
    parameters = dict(model.named_parameters())
    for name, own in model.state_dict().items():
        stored = weights.get(name)
        if stored is None:
            continue
        if (stored.is_floating_point(), stored.is_complex()) != (own.is_floating_point(), own.is_complex()):
            raise another_model(path, f"{name} is of {stored.dtype}, and must be of {own.dtype}")
        if name in parameters and bool(stored.isinf().any()):
            raise UserError(f"{path} is damaged: its weight '{name}' holds infinity\n    -> give another checkpoint of the run")


class _NoNumbers(TorchFunctionMode):
    """Leaves out normally distributed weights, which on a device without memory import PyTorch's compiler to draw nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return the tensor as it is, or what another function returns."""
        given = dict(kwargs or {})
        if func not in (torch.nn.init.normal_, torch.Tensor.normal_):
            return func(*args, **given)
        return args[0] if args else given["tensor"]


def outline(model: Mapping[str, Any], task: Task, *, input_size: int) -> SpeechModel:
    """Build a model of the shapes that a config asks for, without memory for its weights."""
    with torch.device("meta"), _NoNumbers():
        return SpeechModel(construct("model", model, input_size=input_size), task.head)


def _check_shapes(model: SpeechModel, weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Check that the weights of a file have the names and shapes of a model.

    Raises:
        UserError: they have not.
    """
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name, shape in own.items():
        if name not in weights:
            raise another_model(path, f"it has no weight {name}")
        if tuple(weights[name].shape) != shape:
            raise another_model(path, f"{name} has the shape {tuple(weights[name].shape)}, and its config asks for {shape}")
    if more := [name for name in weights if name not in own]:
        raise another_model(path, f"its config has no weight {more[0]!s:.80}")


def _put(model: SpeechModel, weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Put weights into a model of the same shape.

    Raises:
        UserError: they are of another one.
    """
    _check_shapes(model, weights, path)
    _check_kinds(model, weights, path)
    model.load_state_dict(weights)
