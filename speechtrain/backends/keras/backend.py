"""The backend contract on Keras 3."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from speechtrain.backends.base import Backend, Conversion, LayerSize, LayerWeights, ModelInfo, TrainingPlan, default_threads
from speechtrain.backends.callbacks import Callback, TrainResult
from speechtrain.backends.keras import engine as engines
from speechtrain.config.build import construct
from speechtrain.data.batches import Batch
from speechtrain.errors import ConfigError, Problem
from speechtrain.tasks.base import Outputs, Task

if TYPE_CHECKING:
    from speechtrain.backends.keras.speech_model import Inference, SpeechModel, Step
    from speechtrain.data.loader import Loader

_POLICIES = {
    "32-true": "float32",
    "16-mixed": "mixed_float16",
    "bf16-mixed": "mixed_bfloat16",
    "bf16-true": "bfloat16",
    "64-true": "float64",
}


class KerasBackend(Backend):
    """Trains and predicts with Keras 3.

    Args:
        engine: `tensorflow`, `jax` or `torch`; a process cannot change it.
        threads: threads of one operation on the CPU; None: OMP_NUM_THREADS, else one a core and at most 4.
        jit_compile: whether XLA compiles the step for each shape; None: where the engine does nothing else (JAX).
        precision: number format of the weights and of computing, one of the values of `trainer.precision`.
        deterministic: refuse or replace operations that give other numbers each time.
    """

    name: ClassVar[str] = "keras"
    suffix: ClassVar[str] = ".keras"
    formats: ClassVar[Mapping[str, str]] = {
        "keras": ".keras",
        "onnx": ".onnx",
        "tflite": ".tflite",
        "tflite_int8": ".tflite",
        "tflite_micro": "",
    }

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
        """Build an encoder from its config node, with the task's head and weights drawn from `seed`.

        Raises:
            ConfigError: the target made something that is not an encoder.
        """
        from speechtrain.backends.keras.layers import Encoder
        from speechtrain.backends.keras.speech_model import SpeechModel

        self._keras.utils.set_random_seed(seed)
        before = self._keras.config.dtype_policy()
        self._keras.config.set_dtype_policy(self._policy)
        try:
            encoder = construct("model", model, input_size=input_size)
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
        """Return the size, subsampling and context of a model."""
        encoder = model.encoder
        parameters = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
        context = getattr(encoder, "receptive_field", None), getattr(encoder, "causal", False)
        return ModelInfo(parameters, encoder.subsampling, *context, head_trained=bool(model.head.trainable_weights))

    def layers(self, model: SpeechModel) -> list[LayerSize]:
        """Measure the parts of the encoder, and the head; see `Backend.layers`."""
        from speechtrain.backends.keras.internals import layers_inside

        sizes = []
        for layer in [*layers_inside(model.encoder), model.head]:
            if count := layer.count_params():
                size = sum(
                    int(np.prod(weight.shape)) * np.dtype(self._keras.backend.standardize_dtype(weight.dtype)).itemsize
                    for weight in layer.weights
                )
                sizes.append(LayerSize(layer.name, type(layer).__name__, count, size / 1e6))
        return sizes

    def output_lengths(self, model: SpeechModel, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the encoder frames (B,) of input frames (B,)."""
        return np.asarray(model.encoder.output_lengths(lengths), dtype=np.int64)

    def train(
        self, model: SpeechModel, train: Loader, val: Loader | None, task: Task, plan: TrainingPlan, callbacks: Sequence[Callback]
    ) -> TrainResult:
        """Train in place; see `Backend.train`."""
        from speechtrain.backends.keras.fit_run import FitRun

        if problems := _accelerator_problems(plan.trainer.accelerator, self._keras):
            raise ConfigError(problems)
        plan.begin_schedule(len(train))

        def validate() -> dict[str, float]:
            scorer = task.scorer()
            assert val is not None
            for batch, outputs in self.predict(model, val, task):
                scorer.update(batch, outputs)
            return scorer.compute()

        step, validation = self._step(model, task), validate if val is not None else None
        run = FitRun(model, step, plan, callbacks, train, validation, engine=self.engine, compiled=self._compiled)
        run.fit(views=task.views)
        result = run.result()
        for callback in callbacks:
            callback.on_train_end(result)
        return result

    def infer(
        self, model: SpeechModel, features: npt.NDArray[np.float32], lengths: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Compute a model's outputs without a loss; see `Backend.infer`."""
        from speechtrain.backends.keras.feed import Shapes

        inputs = Shapes(active=self._compiled).features(features, lengths)
        values, value_lengths = self._predict(model.inference(compiled=self._compiled), inputs)
        value_lengths = np.asarray(value_lengths, dtype=np.int64)[: len(lengths)]
        return np.asarray(values, dtype=np.float32)[: len(lengths), : int(value_lengths.max())], value_lengths

    def predict(self, model: SpeechModel, batches: Iterable[Batch], task: Task) -> Iterator[tuple[Batch, Outputs]]:
        """Yield each batch with its outputs in evaluation mode, in order."""
        from speechtrain.backends.keras.feed import Shapes

        shapes = Shapes(active=self._compiled)
        step = self._step(model, task)
        for batch in batches:
            arrays = shapes.outputs(self._predict(step, shapes.inputs(batch)), batch)
            lengths = np.asarray(arrays["lengths"], dtype=np.int64)
            yield (
                batch,
                Outputs(
                    values=np.asarray(arrays["values"], dtype=np.float32)[:, : int(lengths.max())],
                    lengths=lengths,
                    losses=np.asarray(arrays["losses"], dtype=np.float32),
                ),
            )

    def save(self, model: SpeechModel, path: Path, extra: Mapping[str, Any]) -> None:
        """Write weights and `extra` to a file that appears whole or not at all."""
        from speechtrain.backends.keras import files

        files.write(model, path, {"extra": dict(extra)})

    def export(self, model: SpeechModel, folder: Path, extra: Mapping[str, Any], *, blank_last: bool) -> Path | None:
        """Write `model.keras` with the blank last, where the tokenizer has it there; checkpoints have it first."""
        from speechtrain.backends.keras import files

        if not blank_last:
            return None
        path = folder / "model.keras"
        files.write(model.with_blank_last(), path, {"extra": {**extra, "blank": "last"}})
        return path

    def convert(self, model: SpeechModel, kind: str, path: Path, options: Conversion) -> None:
        """Write Keras' own file, ONNX or LiteRT, of which the last two need the TensorFlow engine; see `Backend.convert`."""
        if kind == "keras":
            self._keras.saving.save_model(model, path)
            return
        from speechtrain.backends.keras import exports

        if kind == "onnx":
            exports.to_onnx(model, path, options)
        elif kind == "tflite_micro":
            exports.to_tflite_micro(model, path, options)
        else:
            exports.to_tflite(model, path, options, int8=kind == "tflite_int8")

    def set_layer_weights(self, model: SpeechModel, rows: LayerWeights) -> None:
        """Put the weights of a Torch model of the same config into a model; see `Backend.set_layer_weights`."""
        from speechtrain.backends.keras.layer_weights import set_layer_weights

        set_layer_weights(model, rows)

    def check_file(self, path: Path) -> None:
        """Read a checkpoint without using it; see `Backend.check_file`."""
        from speechtrain.backends.keras import files

        files.check_resumable(path)

    def warm_start(self, model: SpeechModel, path: Path, labels: Sequence[int | None] | None = None) -> Sequence[str]:
        """Put those weights of a file that fit into a model; see `Backend.warm_start`."""
        from speechtrain.backends.keras import files

        files.read_state(path)
        fresh = model.head.get_weights()
        left = files.read_fitting_weights(model, path)
        if labels is None:
            return left
        model.head.set_weights(fresh)
        taken = files.read_head(model.head, path, labels)
        own = [weight.path for weight in model.head.weights]
        return [name for name in left if name not in own] + ([] if taken else own)

    def load(self, model: SpeechModel, path: Path) -> Mapping[str, Any]:
        """Put the weights of a file or checkpoint into a model; see `Backend.load`."""
        from speechtrain.backends.keras import files

        extra: Mapping[str, Any] = files.read_state(path)["extra"]
        files.read_weights(model, path)
        return extra

    def _predict(self, model: Step | Inference, inputs: dict[str, Any]) -> Any:
        if self.engine == engines.TENSORFLOW and not self._compiled:
            from speechtrain.backends.keras.internals import predict_any_size

            predict_any_size(model, inputs)
        return model.predict_on_batch(inputs)

    def _step(self, model: SpeechModel, task: Task) -> Step:
        return model.step(task, compiled=self._compiled)


def _sees_gpu(keras: Any) -> bool:
    if keras.backend.backend() == "torch":  # keras.distribution has no devices of this engine
        import torch

        return torch.cuda.is_available()
    return any("gpu" in device for device in keras.distribution.list_devices())


def _accelerator_problems(accelerator: str, keras: Any) -> list[Problem]:
    if accelerator not in ("auto", "cpu", "gpu", "cuda"):
        message = f"must be auto, cpu or gpu, received {accelerator!r}"
        return [Problem("trainer.accelerator", message, "set trainer.accelerator=auto")]
    if accelerator in ("gpu", "cuda") and not _sees_gpu(keras):
        message = "is gpu, but the engine sees none"
        return [Problem("trainer.accelerator", message, "set trainer.accelerator=auto, or install the engine with CUDA")]
    return []
