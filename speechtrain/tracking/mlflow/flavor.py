"""Logs a trained model as MLflow keeps models: with code, requirements, signature and example, so that it can be loaded and served."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
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

from speechtrain.backends.checkpoint_files import read_extra
from speechtrain.errors import UserError
from speechtrain.tracking.mlflow.location import variables_kept

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
    "sentencepiece",
    "lhotse",
    "soundfile",
    "soxr",
    "jiwer",
    "flashlight-text",
)
_NEEDED_BY_SUFFIX = {".ckpt": ("lightning",), ".keras": ("keras", "tensorflow-cpu", "tensorflow", "jax")}
_NEEDED_BY_MODEL = {"speechtrain.backends.torch.models.Pretrained": ("transformers", "tokenizers", "peft")}


def log_model(client: MlflowClient, uri: str, run_id: str, event: Mapping[str, Any]) -> None:
    """Log a model under its run, and as a new version in the registry if the event names one; a model that is there already stays."""
    run = client.get_run(run_id)
    logged = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    if any(model.name == NAME and str(model.status) == "READY" for model in logged):
        return
    weights = Path(event["weights"])
    signature = ModelSignature(
        inputs=Schema([ColSpec(AnyType(), "audio")]),
        outputs=Schema([ColSpec(DataType.string, "text"), ColSpec(DataType.double, "confidence")]),
        params=ParamSchema([ParamSpec("sample_rate", DataType.long, int(event["sample_rate"]))]),
    )
    with variables_kept(), warnings.catch_warnings():
        mlflow.set_tracking_uri(uri)
        mlflow.set_experiment(experiment_id=run.info.experiment_id)
        logging.getLogger("mlflow").setLevel(logging.ERROR)
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
            pip_requirements=requirements(weights),
            signature=signature,
            input_example=pd.DataFrame({"audio": [np.round(np.asarray(event["example"], dtype=np.float64), 5).tolist()]}),
            validate_serving_input=False,  # it would load the model here, seconds of work for what tests show
            metadata={"sample_rate": event["sample_rate"], **{str(name): value for name, value in event["facts"].items()}},
        )


class _Flavor:
    """Stands in for `mlflow.pyfunc`, to which `Model.log` passes an argument that it does not take."""

    __name__ = "mlflow.pyfunc"

    @staticmethod
    def save_model(*, validate_serving_input: bool, **options: Any) -> None:  # noqa: ARG004
        """Write the model's folder, without the argument that is meant for `Model.log`."""
        mlflow.pyfunc.save_model(**options)


def requirements(weights: Path) -> list[str]:
    """Return the packages that a process needs to load a file of weights, at the versions that are installed here."""
    model: Sequence[str] = ()
    with suppress(UserError):  # of a file that cannot be read, which is told when it is loaded
        model = _NEEDED_BY_MODEL.get(str(read_extra(weights).get("config", {}).get("model", {}).get("_target_")), ())
    lines = []
    for package in (*_NEEDED, *_NEEDED_BY_SUFFIX.get(weights.suffix, ()), *model):
        try:
            lines.append(f"{package}=={version(package).partition('+')[0]}")
        except PackageNotFoundError:
            continue
    return lines
