"""Which extra of `pyproject.toml` installs a package that not every run needs, and what to say where it is missing."""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from speechtrain.config.schemas.node import Rule
from speechtrain.errors import UserError

EXTRAS = {
    "espeakng_loader": "synth",
    "flashlight": "beam",
    "h5py": "hdf5",
    "num2words": "numbers",
    "torchaudio": "wav2vec2",
    "datasets": "datasets",
    "transformers": "hf",
    "huggingface_hub": "hf",
    "safetensors": "hf",
    "tokenizers": "hf",
    "peft": "hf",
    "keras": "keras",
    "tensorflow": "keras",
    "jax": "jax",
    "onnx": "onnx",
    "onnxscript": "onnx",
    "onnxruntime": "onnx",
    "tf2onnx": "onnx",
    "ai_edge_litert": "litert",
    "tflite_micro": "micro",
    "starlette": "serve",
    "fastapi": "serve",
    "fastapi_swagger": "serve",
    "python_multipart": "serve",
    "uvicorn": "serve",
    "websockets": "serve",
    "prometheus_client": "serve",
    "psycopg": "postgresql",
    "grpc": "grpc",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "ray": "ray",
    "boto3": "s3",
}
"""The extra by the name of the module that is imported."""

SERVER = ("fastapi", "fastapi_swagger", "python_multipart", "uvicorn", "websockets", "prometheus_client")
"""The modules that `speechtrain serve` needs."""

_FORMATS = {
    ("torch", "onnx"): ("onnx", "onnxscript", "onnxruntime"),
    ("torch", "huggingface"): ("transformers", "safetensors"),
    ("keras", "onnx"): ("onnx", "tf2onnx", "onnxruntime"),
    ("keras", "tflite"): ("ai_edge_litert",),
    ("keras", "tflite_int8"): ("ai_edge_litert",),
    ("keras", "tflite_micro"): ("tensorflow", "ai_edge_litert", "tflite_micro"),
    ("torch", "tflite_micro"): ("keras", "tensorflow", "ai_edge_litert", "tflite_micro"),
}
"""The modules that write and test a file, by backend and format, beside those that the backend needs anyway."""

LAUNCHERS = {"joblib": "joblib", "submitit_local": "slurm", "submitit_slurm": "slurm"}
"""The extra by the name of a launcher that is a package of its own."""

_NEWEST_PYTHON = {"flashlight": (3, 12)}
"""The newest Python that a package has wheels for, where that is below the newest that PyTorch has wheels for."""

TRAINING = (
    "lightning",
    "scipy",
    "lhotse",
    "mlflow",
    "optuna",
    "jiwer",
    "rapidfuzz",
    "matplotlib",
    "plotly",
    "sklearn",
    "pandas",
    "jinja2",
    "alembic",
    "sqlalchemy",
    "threadpoolctl",
)
"""Modules that an installation for training has, and one for transcribing and serving alone has not."""


def modules_of(formats: Iterable[str], backend: str) -> list[str]:
    """Return the modules that exports of a backend's model to some formats need."""
    return [module for kind in formats for module in _FORMATS.get((backend, kind), ())]


def missing(modules: Iterable[str]) -> list[str]:
    """Return those of some modules that are not installed, each once; none of them is imported."""
    return [module for module in dict.fromkeys(modules) if not is_installed(module)]


def is_installed(module: str) -> bool:
    """Say whether a module is installed; a folder of this name in the current folder, such as `datasets`, is not taken for it."""
    elsewhere = [place for place in sys.path if Path(place).absolute() != Path.cwd()]
    return importlib.machinery.PathFinder.find_spec(module, elsewhere) is not None


def how_to_install(modules: Iterable[str]) -> str:
    """Return the command that installs the extras of some modules."""
    names = list(modules)
    extras = ",".join(dict.fromkeys(EXTRAS[module] for module in names))
    command = f"pip install 'speechtrain[{extras}]'"
    for module in names:
        newest = _NEWEST_PYTHON.get(module, sys.version_info[:2])
        if sys.version_info[:2] > newest:
            return f"{command}, with Python {'.'.join(map(str, newest))}: {module} has no wheels for a later one"
    return command


def needed(key: str, modules: Iterable[str]) -> Iterator[Rule]:
    """Yield a problem if modules that a key needs are not installed; an empty key stands for the node."""
    if absent := missing(modules):
        yield key, f"needs {_not_installed(absent)}", how_to_install(absent)


def _not_installed(modules: Sequence[str]) -> str:
    return f"{', '.join(modules)}, which {'is' if len(modules) == 1 else 'are'} not installed"


def require(what: str, modules: Iterable[str], *, otherwise: str | None = None) -> None:
    """Check that modules are installed before a command does anything that takes time.

    Args:
        what: the command or option that needs them, for the message.
        modules: names of the modules.
        otherwise: what the user can do without them.

    Raises:
        UserError: some are not installed.
    """
    if absent := missing(modules):
        fix = ", or ".join(part for part in (how_to_install(absent), otherwise) if part)
        raise UserError(f"{what} needs {_not_installed(absent)}\n    -> {fix}")


def explain_missing(error: ModuleNotFoundError) -> UserError | None:
    """Return the message for a failed import of a package that is known here; None for any other."""
    module = (error.name or "").partition(".")[0]
    if module in EXTRAS:
        return UserError(f"this needs {_not_installed([module])}\n    -> {how_to_install([module])}")
    return _without_training(module) if module in TRAINING else None


def require_training() -> None:
    """Check that what trains is installed, and not only what transcribes and serves.

    Raises:
        UserError: a package is missing.
    """
    if absent := missing(TRAINING):
        raise _without_training(absent[0])


def _without_training(module: str) -> UserError:
    return UserError(f"this needs {module}, and only what transcribes and serves is installed here\n    -> pip install speechtrain")
