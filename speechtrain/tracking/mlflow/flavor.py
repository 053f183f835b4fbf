"""A trained model as MLflow keeps models: with code, requirements, signature and example, so that it can be loaded and served."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType

NAME = "model"
_PACKAGE = Path(__file__).resolve().parents[2]
_NEEDED = (
    "mlflow",
    "hydra-core",
    "omegaconf",
    "numpy",
    "pandas",
    "rich",
    "filelock",
    "psutil",
    "torch",
    "torchaudio",
    "lhotse",
    "soundfile",
    "soxr",
    "jiwer",
    "flashlight-text",
)
_OF_BACKEND = {".ckpt": ("lightning",), ".keras": ("keras", "tensorflow-cpu", "tensorflow", "jax")}


def log_model(client: MlflowClient, uri: str, run_id: str, event: Mapping[str, Any]) -> None:
    """Keep a model under its run, and as a new version in the registry if a name is given; one that is there already is left."""
    run = client.get_run(run_id)
    known = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    if any(model.name == NAME and str(model.status) == "READY" for model in known):
        return
    weights = Path(event["weights"])
    signature = ModelSignature(
        inputs=Schema([ColSpec(AnyType(), "audio")]),
        outputs=Schema([ColSpec(DataType.string, "text"), ColSpec(DataType.double, "confidence")]),
        params=ParamSchema([ParamSpec("sample_rate", DataType.long, int(event["sample_rate"]))]),
    )
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(experiment_id=run.info.experiment_id)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Model.log(
            artifact_path=None,
            name=NAME,
            flavor=_Flavor,
            run_id=run_id,
            registered_model_name=event.get("registered_model"),
            python_model=str(_PACKAGE / "inference" / "mlflow_model.py"),
            artifacts={"weights": str(weights)},
            code_paths=[str(_PACKAGE)],
            pip_requirements=requirements(weights.suffix),
            signature=signature,
            input_example=pd.DataFrame({"audio": [np.round(np.asarray(event["example"], dtype=np.float64), 5).tolist()]}),
            validate_serving_input=False,  # it would load the model here, seconds of work for what tests show
            metadata={"sample_rate": event["sample_rate"], **{str(name): value for name, value in event["facts"].items()}},
        )


class _Flavor:
    """`mlflow.pyfunc` as `Model.log` takes it, which passes on a word that is its own."""

    __name__ = "mlflow.pyfunc"

    @staticmethod
    def save_model(*, validate_serving_input: bool, **options: Any) -> None:  # noqa: ARG004
        """Write the model's folder."""
        mlflow.pyfunc.save_model(**options)


def requirements(suffix: str) -> list[str]:
    """What a process needs to load a model with weights of this ending, at the versions that are here."""
    found = []
    for package in (*_NEEDED, *_OF_BACKEND.get(suffix, ())):
        try:
            found.append(f"{package}=={version(package).partition('+')[0]}")
        except PackageNotFoundError:
            continue
    return found
