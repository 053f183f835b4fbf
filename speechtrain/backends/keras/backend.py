"""The backend contract on Keras 3."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
from hydra.utils import instantiate

from speechtrain.backends.base import Backend, Conversion, Layer, ModelInfo, Plan, default_threads
from speechtrain.backends.callbacks import Callback, TrainResult
from speechtrain.backends.checkpoint_files import LAST
from speechtrain.backends.keras import engine as engines
from speechtrain.data.batches import Batch
from speechtrain.data.loader import Loader
from speechtrain.errors import ConfigError, Problem
from speechtrain.tasks.base import Outputs, Task

if TYPE_CHECKING:
    from speechtrain.backends.keras.speech_model import SpeechModel, Step

_POLICIES = {
    "32-true": "float32",
    "16-mixed": "mixed_float16",
    "bf16-mixed": "mixed_bfloat16",
    "bf16-true": "bfloat16",
    "64-true": "float64",
}


_ONLY_TORCH: Mapping[str, Any] = {
    "ema_decay": None,
    "average_last": None,
    "layer_dropout": 0,
    "find_lr": False,
    "gradient_checkpointing": False,
    "sync_batchnorm": False,
}
"""Keys of the trainer that it has not, and what they are then."""


class KerasBackend(Backend):
    """Keras 3.

    Args:
        engine: `tensorflow`, `jax` or `torch`; the process keeps it.
        threads: of one operation on the CPU; None: as OMP_NUM_THREADS says, else one a core, at most 4.
        jit_compile: whether XLA compiles the step for each shape; None: where the engine does nothing else (JAX).
        precision: of the weights and of what is computed with them, in the words of `trainer.precision`.
        deterministic: refuse or replace operations that give other numbers each time.
    """

    name: ClassVar[str] = "keras"
    suffix: ClassVar[str] = ".keras"
    formats: ClassVar[Mapping[str, str]] = {"keras": ".keras", "onnx": ".onnx", "tflite": ".tflite", "tflite_int8": ".tflite"}

    def __init__(
        self,
        engine: str = "tensorflow",
        threads: int | None = None,
        jit_compile: bool | None = None,
        precision: str = "32-true",
        deterministic: bool = False,
    ) -> None:
        self.threads = threads or default_threads()
        self._keras = engines.start(engine, self.threads, deterministic=deterministic)
        self.engine = engine
        self._compiled = engine == engines.JAX or (jit_compile or False)
        self._policy = _POLICIES[precision]

    def build(self, model: Mapping[str, Any], task: Task, *, input_size: int, seed: int) -> SpeechModel:
        """An encoder from its config node with the task's head, weights drawn from `seed`.

        Raises:
            ConfigError: the target made something else than an encoder.
        """
        from speechtrain.backends.keras.layers import Encoder
        from speechtrain.backends.keras.speech_model import SpeechModel

        self._keras.utils.set_random_seed(seed)
        before = self._keras.config.dtype_policy()
        self._keras.config.set_dtype_policy(self._policy)
        try:
            encoder = instantiate(dict(model), input_size=input_size, _convert_="all")
            if not isinstance(encoder, self._keras.layers.Layer) or not all(
                hasattr(encoder, name) for name in ("output_size", "subsampling", "output_lengths")
            ):
                wanted = f"must make an encoder (see {Encoder.__module__}.Encoder)"
                raise ConfigError([Problem("model._target_", f"{wanted}, received {type(encoder).__name__}", "derive it from Encoder")])
            built = SpeechModel(encoder, asdict(task.head), input_size)
            built.make_weights()
        finally:
            self._keras.config.set_dtype_policy(before)
        return built

    def describe(self, model: SpeechModel) -> ModelInfo:
        """Size, subsampling and context of a model."""
        encoder = model.encoder
        parameters = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
        return ModelInfo(parameters, encoder.subsampling, getattr(encoder, "receptive_field", None), getattr(encoder, "causal", False))

    def layers(self, model: SpeechModel) -> list[Layer]:
        """The parts of the encoder and the head; see `Backend.layers`."""
        found = []
        for layer in [*model.encoder._flatten_layers(include_self=False, recursive=False), model.head]:
            if count := layer.count_params():
                size = sum(
                    int(np.prod(weight.shape)) * np.dtype(self._keras.backend.standardize_dtype(weight.dtype)).itemsize
                    for weight in layer.weights
                )
                found.append(Layer(layer.name, type(layer).__name__, count, size / 1e6))
        return found

    def output_lengths(self, model: SpeechModel, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Encoder frames (B,) of input frames (B,)."""
        return np.asarray(model.encoder.output_lengths(lengths), dtype=np.int64)

    def train(
        self, model: SpeechModel, train: Loader, val: Loader | None, task: Task, plan: Plan, callbacks: Sequence[Callback]
    ) -> TrainResult:
        """Train in place; see `Backend.train`."""
        from speechtrain.backends.keras import files, optimizers
        from speechtrain.backends.keras.callbacks import Checkpoints, EarlyStopping, Epochs
        from speechtrain.backends.keras.feed import Feed, Shapes

        options = plan.trainer
        _check(options, task, self._keras)
        steps, accumulate = len(train), options["accumulate_grad_batches"]
        plan.begin_schedule(steps)

        step = self._step(model, task)
        optimizer = instantiate(dict(plan.optimizer), _convert_="all")
        optimizers.measured(
            optimizer, options["gradient_clip_val"], by_norm=options["gradient_clip_algorithm"] == "norm", accumulate=accumulate
        )
        peak = float(self._keras.ops.convert_to_numpy(optimizer.learning_rate))
        step.compile(optimizer=optimizer, jit_compile=self._compiled)
        step.optimizer.build(step.trainable_variables)
        state: dict[str, Any] = {}
        if plan.resume_from is not None:
            state = files.read_state(plan.resume_from).get("training") or {}
            files.read_weights(model, plan.resume_from)
            files.read_optimizer(step.optimizer, plan.resume_from)
            plan.schedule.load_state_dict(state["schedule"])
        first, last = int(state.get("epochs", 0)), int(options["epochs"])
        if (inside := state.get("inside")) is not None:
            plan.check_inside(inside["of"], steps)
        shapes, views = Shapes(active=self._compiled), 2 if task.consistency else 1

        def validate() -> dict[str, float]:
            scorer = task.scorer()
            assert val is not None
            for batch, outputs in self.predict(model, val, task):
                scorer.update(batch, outputs)
            return scorer.compute()

        def write(path: Path, epoch: int, kept: dict[str, Any], inside: Mapping[str, Any] | None) -> None:
            training = {
                "epochs": epoch if inside is not None else epoch + 1,
                "inside": inside,
                "schedule": plan.schedule.state_dict(),
                "checkpoints": kept,
                "early_stopping": stopper.state() if stopper is not None else None,
            }
            files.write(model, path, {"extra": dict(plan.extra), "training": training}, step.optimizer)

        def write_inside() -> None:
            if self.engine == engines.JAX:
                step.jax_state_sync()
            keeper.write_last(epochs.epoch, epochs.inside())

        validation = validate if val is not None else None
        epochs = Epochs(plan, optimizer, peak, callbacks, steps, first, validation, model.random_states(), inside, write_inside)
        patience = options["early_stopping"]["patience"]
        stopper = EarlyStopping(options["early_stopping"], state.get("early_stopping")) if patience is not None else None
        keeper = Checkpoints(plan, write, state.get("checkpoints"))
        parts = [(first, first + 1, epochs.done), (first + 1, last, 0)] if epochs.done else [(first, last, 0)]
        for begin, end, done in parts:
            if begin < end and not (begin > first and step.stop_training):
                epochs.feed = Feed(train, shapes, views, range(begin, end), done)
                step.fit(
                    epochs.feed.source(self.engine),
                    steps_per_epoch=steps - done,
                    epochs=end,
                    initial_epoch=begin,
                    shuffle=False,
                    verbose=0,
                    callbacks=[epochs, *([stopper] if stopper is not None else []), keeper],
                )
        result = TrainResult(history=epochs.history, stop_reason=epochs.control.stop_reason, pruned=epochs.control.pruned)
        if stopper is not None and result.stop_reason is None:
            result.stop_reason = stopper.reason
        if keeper.best:
            name, result.best_value = keeper.best[0]
            result.best_checkpoint = keeper.folder / name
        kept = keeper.folder / f"{LAST}{self.suffix}"
        result.last_checkpoint = kept if options["checkpoint"]["save_last"] and kept.is_file() else None
        for callback in callbacks:
            callback.on_train_end(result)
        return result

    def infer(
        self, model: SpeechModel, features: npt.NDArray[np.float32], lengths: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Compute a model's outputs without a loss; see `Backend.infer`."""
        from speechtrain.backends.keras.feed import Shapes

        inputs = Shapes(active=self._compiled).features(features, lengths)
        values, value_lengths = model.inference(compiled=self._compiled).predict_on_batch(inputs)
        value_lengths = np.asarray(value_lengths, dtype=np.int64)[: len(lengths)]
        return np.asarray(values, dtype=np.float32)[: len(lengths), : int(value_lengths.max())], value_lengths

    def predict(self, model: SpeechModel, batches: Iterable[Batch], task: Task) -> Iterator[tuple[Batch, Outputs]]:
        """Outputs of each batch in evaluation mode, in order."""
        from speechtrain.backends.keras.feed import Shapes

        shapes = Shapes(active=self._compiled)
        step = self._step(model, task)
        for batch in batches:
            found = shapes.outputs(step.predict_on_batch(shapes.inputs(batch)), batch)
            lengths = np.asarray(found["lengths"], dtype=np.int64)
            yield (
                batch,
                Outputs(
                    values=np.asarray(found["values"], dtype=np.float32)[:, : int(lengths.max())],
                    lengths=lengths,
                    losses=np.asarray(found["losses"], dtype=np.float32),
                ),
            )

    def save(self, model: SpeechModel, path: Path, extra: Mapping[str, Any]) -> None:
        """Write weights and `extra`, whole or not at all."""
        from speechtrain.backends.keras import files

        files.write(model, path, {"extra": dict(extra)})

    def export(self, model: SpeechModel, folder: Path, extra: Mapping[str, Any], *, blank_last: bool) -> Path | None:
        """`model.keras` with the blank last; a checkpoint has it first, and is otherwise as good."""
        from speechtrain.backends.keras import files

        if not blank_last:
            return None
        path = folder / "model.keras"
        files.write(model.with_blank_last(), path, {"extra": {**extra, "blank": "last"}})
        return path

    def convert(self, model: SpeechModel, kind: str, path: Path, options: Conversion) -> None:
        """Keras' own file, ONNX or LiteRT; all but the first need the TensorFlow engine. See `Backend.convert`."""
        if kind == "keras":
            self._keras.saving.save_model(model, path)
            return
        from speechtrain.backends.keras import exports

        if kind == "onnx":
            exports.to_onnx(model, path, options)
        else:
            exports.to_tflite(model, path, options, int8=kind == "tflite_int8")

    def check_file(self, path: Path) -> None:
        """Read a checkpoint without using it; see `Backend.check_file`."""
        from speechtrain.backends.keras import files

        files.read_state(path)

    def warm_start(self, model: SpeechModel, path: Path) -> Sequence[str]:
        """Weights of a file as far as they fit; see `Backend.warm_start`."""
        from speechtrain.backends.keras import files

        files.read_state(path)
        return files.read_fitting_weights(model, path)

    def load(self, model: SpeechModel, path: Path) -> Mapping[str, Any]:
        """Weights of a file or checkpoint into a model; see `Backend.load`."""
        from speechtrain.backends.keras import files

        extra: Mapping[str, Any] = files.read_state(path)["extra"]
        files.read_weights(model, path)
        return extra

    def _step(self, model: SpeechModel, task: Task) -> Step:
        return model.step(task, compiled=self._compiled)


def _check(options: Mapping[str, Any], task: Task, keras: Any) -> None:
    """Refuse what the Torch backend has and this one has not.

    Raises:
        ConfigError: devices, a strategy or an accelerator that is not there; ways to train that are not.
    """
    problems = []
    for key, off in _ONLY_TORCH.items():
        if options[key] != off:
            message = f"is {options[key]}; the Keras backend has no such thing"
            problems.append(Problem(f"trainer.{key}", message, f"set trainer.{key}={'null' if off is None else off}, or backend=torch"))
    if task.intermediate:
        message = f"is {task.intermediate}; the Keras backend has no head in the middle"
        problems.append(Problem("task.intermediate", message, "set task.intermediate=0, or backend=torch"))
    if options["devices"] not in (1, "1", "auto"):
        message = f"is {options['devices']}; the Keras backend trains on one device"
        problems.append(Problem("trainer.devices", message, "set trainer.devices=1"))
    if options["strategy"] != "auto":
        problems.append(Problem("trainer.strategy", f"is {options['strategy']}; that is Lightning's", "set trainer.strategy=auto"))
    accelerator = options["accelerator"]
    if accelerator not in ("auto", "cpu", "gpu", "cuda"):
        message = f"must be auto, cpu or gpu, received {accelerator!r}"
        problems.append(Problem("trainer.accelerator", message, "set trainer.accelerator=auto"))
    elif accelerator in ("gpu", "cuda") and not any("gpu" in device for device in keras.distribution.list_devices()):
        message = "is gpu, but the engine sees none"
        problems.append(Problem("trainer.accelerator", message, "set trainer.accelerator=auto, or install the engine with CUDA"))
    if problems:
        raise ConfigError(problems)
