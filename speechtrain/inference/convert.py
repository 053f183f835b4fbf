"""One conversion of a model in a fresh process, because converters may crash it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from speechtrain.backends.base import Conversion
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.errors import UserError, first_line
from speechtrain.processes import fresh

_TIMEOUT = 1800  # s


@dataclass(frozen=True)
class ConversionJob:
    """The file to write, and the model to convert.

    Attributes:
        weights: checkpoint or archive.
        cfg: resolved config, to build the model with.
        target_size: C of the signals that a model of signals gives.
    """

    weights: Path
    cfg: ExperimentConfig
    kind: str
    path: Path
    options: Conversion
    trust: bool
    target_size: int = 0


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
    from speechtrain.config.build import build
    from speechtrain.inference.archive import stored_config
    from speechtrain.inference.recognizer import Recognizer

    features = build("features", job.cfg.features)
    if not features.from_audio:
        features.size = job.options.input_size  # which it would learn from what is read
    sizes = {"features": features, "target_size": job.target_size}
    recognizer = Recognizer.of(job.weights, job.cfg, stored_config(job.weights, trust=job.trust)[1], **sizes)
    recognizer.backend.convert(recognizer.model, job.kind, job.path, job.options)
