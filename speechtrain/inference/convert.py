"""One conversion of a model in a fresh process, because converters may crash it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

import numpy as np
import numpy.typing as npt

from speechtrain.backends.base import Backend, Conversion, LayerWeights, Model
from speechtrain.config.build import build
from speechtrain.config.experiment import ExperimentConfig, class_name
from speechtrain.config.targets import UnknownTargetError, signature
from speechtrain.data.text.base import build_tokenizer
from speechtrain.errors import UserError, first_line
from speechtrain.processes import fresh
from speechtrain.tasks.build import build_task

_TIMEOUT = 1800  # s
TWIN_TOLERANCE = 1e-3
"""Greatest difference between log-probabilities of a model of Torch and the Keras model with its weights."""


@dataclass(frozen=True)
class Twin:
    """A model of Torch that is converted as the Keras model of the same config with its weights.

    Attributes:
        rows: its weights, see `Backend.layer_weights`.
        features: features (B, T, F) of some utterances.
        lengths: frames (B,) of each.
        values: what it gives for them, (B, T', V).
    """

    rows: LayerWeights
    features: npt.NDArray[np.float32]
    lengths: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]


@dataclass(frozen=True)
class ConversionJob:
    """The file to write, and the model to convert.

    Attributes:
        weights: checkpoint or archive.
        cfg: resolved config, to build the model with.
        target_size: C of the signals that a model of signals gives.
        twin: the model of Torch whose weights are taken in place of those of the file; `cfg` is then that of the Keras model.
    """

    weights: Path
    cfg: ExperimentConfig
    kind: str
    path: Path
    options: Conversion
    trust: bool
    target_size: int = 0
    twin: Twin | None = None


def convert(job: ConversionJob) -> None:
    """Write a file, which appears whole or not at all.

    Raises:
        UserError: the model has parts that the format has not, or the converter failed.
    """
    job.path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=job.path.parent, prefix=".export-") as folder:
        target = Path(folder) / job.path.name
        environment = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
        try:
            fresh.call(_write, replace(job, path=target), environment=environment, quiet=True, timeout=_TIMEOUT)
        except TimeoutError as error:
            raise UserError(f"{job.kind}: the converter failed: {error}\n    -> choose another format or fewer frames") from None
        except fresh.ProcessDiedError as error:
            raise _failed(job, f"the converter {error}") from None
        except Exception as error:
            reason = str(error) if isinstance(error, (UserError, NotImplementedError)) else f"{type(error).__name__}: {first_line(error)}"
            raise _failed(job, f"the converter failed\n    {reason}") from error
        target.replace(job.path)


def _failed(job: ConversionJob, reason: str) -> UserError:
    return UserError(f"{job.kind}: {reason}\n    -> choose another format; nothing was written")


def _write(job: ConversionJob) -> None:
    """Load the model and write the file, in this process."""
    from speechtrain.inference.archive import stored_config
    from speechtrain.inference.recognizer import Recognizer

    features = build("features", job.cfg.features)
    if not features.from_audio:
        features.size = job.options.input_size  # which it would learn from what is read
    vocabulary = stored_config(job.weights, trust=job.trust)[1]
    if job.twin is not None:
        backend, model = _twin(job.twin, job.cfg, vocabulary, job.options.input_size)
        backend.convert(model, job.kind, job.path, job.options)
        return
    sizes = {"features": features, "target_size": job.target_size}
    recognizer = Recognizer.of(job.weights, job.cfg, vocabulary, **sizes)
    recognizer.backend.convert(recognizer.model, job.kind, job.path, job.options)


def twin_config(cfg: ExperimentConfig) -> ExperimentConfig:
    """Return the config of the Keras model, on TensorFlow, with which a model of Torch shares its layers.

    Raises:
        NotImplementedError: there is no such model in Keras.
    """
    from speechtrain.config.compose import compose_unchecked

    target = str(cfg.model["_target_"]).replace("speechtrain.backends.torch.", "speechtrain.backends.keras.")
    try:
        accepted = signature(target)
    except UnknownTargetError:
        accepted = None
    if accepted is None or target == cfg.model["_target_"]:
        raise NotImplementedError(f"{class_name(cfg.model)} is a model of Torch alone")
    keys = {key: value for key, value in cfg.model.items() if key == "_target_" or key in accepted.names}
    backend = compose_unchecked(["backend=keras", "backend.engine=tensorflow"]).backend
    return cfg.with_values({"backend": {**backend, "threads": cfg.backend.get("threads")}, "model": {**keys, "_target_": target}})


def _twin(twin: Twin, cfg: ExperimentConfig, vocabulary: Sequence[str], input_size: int) -> tuple[Backend, Model]:
    """Build the Keras model with the weights of one of Torch, and compare their outputs.

    Raises:
        NotImplementedError: their layers are others.
        UserError: their outputs differ by more than `TWIN_TOLERANCE`.
    """
    backend: Backend = build("backend", cfg.backend)
    task = build_task(cfg, tokenizer=build_tokenizer(cfg.tokenizer, vocabulary=vocabulary), input_size=input_size)
    model = backend.build(cfg.model, task, input_size=input_size, seed=0)
    backend.set_layer_weights(model, twin.rows)
    values, _ = backend.infer(model, twin.features, twin.lengths)
    worst = float(np.abs(values - twin.values).max()) if values.shape == twin.values.shape else inf
    if not worst <= TWIN_TOLERANCE:
        raise UserError(f"the Keras model with its weights gives values that differ by {worst:.3g}, {TWIN_TOLERANCE:g} is allowed")
    return backend, model
