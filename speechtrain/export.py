"""`python -m speechtrain.export`: write a trained model for other runtimes, and test each file there.

    python -m speechtrain.export                                          an archive of the last run: one file that every command takes
    python -m speechtrain.export from=3f2a91 format=[onnx,pt2,torchscript,archive]
    python -m speechtrain.export from=models:/kws/3 format=[tflite,tflite_int8] frames=200

Each file is loaded in its own runtime and compared with the model on recorded utterances, alone and in batches; the table shows
size, latency and error rate of each beside the model's own. Keys are those of conf/export.yaml, and `data`, `decoder` and `backend`
as in training.
"""

from __future__ import annotations

import logging

from speechtrain.app.arguments import arguments_of
from speechtrain.app.command import run_command
from speechtrain.config.schemas.commands import ExportConfig
from speechtrain.inference.export import write_exports


def run(arguments: list[str]) -> int:
    """Export a model with the keys of conf/export.yaml, and return the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    return 1 if write_exports(*arguments_of(ExportConfig, arguments)) else 0


if __name__ == "__main__":
    run_command(__doc__, run)
