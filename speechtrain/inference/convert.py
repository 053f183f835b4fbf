"""One conversion in a process of its own, which converters may crash: `speechtrain.export` starts it."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from speechtrain.backends.base import Conversion
from speechtrain.errors import UserError

_TIMEOUT = 1800  # s
_SAID = 3  # lines of a converter's last words


@dataclass(frozen=True)
class Job:
    """What is to be written.

    Attributes:
        weights: checkpoint or archive.
        cfg: resolved config, to build the model with.
        target_size: C of the signals that a model of signals gives.
    """

    weights: Path
    cfg: Any
    kind: str
    path: Path
    options: Conversion
    trust: bool
    target_size: int = 0


def convert(job: Job) -> None:
    """Write a file, which appears whole or not at all.

    Raises:
        UserError: the model has parts that the format has not, or the converter failed.
    """
    job.path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=job.path.parent, prefix=".export-") as folder:
        target = Path(folder) / job.path.name
        given = Path(folder) / "job"
        given.write_bytes(pickle.dumps(replace(job, path=target)))
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m", "speechtrain.inference.convert", str(given)]
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False, timeout=_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise UserError(
                f"{job.kind}: the converter took more than {_TIMEOUT} s\n    -> choose another format or fewer frames"
            ) from None
        if done.returncode or not target.is_file():
            how = f"crashed with signal {-done.returncode}" if done.returncode < 0 else "failed"
            said = "\n    ".join(done.stderr.strip().splitlines()[-_SAID:])
            raise UserError(f"{job.kind}: the converter {how}\n    {said}\n    -> choose another format; nothing was written")
        target.replace(job.path)


def main() -> None:
    """Do what the first argument's file says."""
    from speechtrain.config.build import build
    from speechtrain.inference.recognizer import Recognizer

    with Path(sys.argv[1]).open("rb") as file:
        job: Job = pickle.load(file)  # noqa: S301 # from our own process
    try:
        features = build("features", job.cfg.features)
        if not features.hears:
            features.size = job.options.input_size  # which it would learn from what is read
        sizes = {"features": features, "target_size": job.target_size}
        recognizer = Recognizer.load(job.weights, trust=job.trust, cfg=job.cfg, **sizes)
        recognizer.backend.convert(recognizer.model, job.kind, job.path, job.options)
    except (UserError, NotImplementedError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
