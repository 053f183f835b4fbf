"""A callback of Hydra's that notes when the process of a job is ready to train: a line in `ready.txt` for each job.

A line has the number of the job, that of the process, its CPU seconds and the time.
"""

from __future__ import annotations

import importlib
import json
import os
import time
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from speechtrain.app.preload import modules_of_jobs


class Ready(Callback):
    """Notes that all imports are done."""

    def __init__(self, file: str) -> None:
        self.file = file

    def on_job_start(self, config: DictConfig, **_kwargs: Any) -> None:
        """Import what a training needs, and write the line."""
        for name in modules_of_jobs(config):
            importlib.import_module(name)
        line = [config.hydra.job.num, os.getpid(), time.process_time(), time.time()]
        with open(self.file, "a", encoding="ascii") as file:  # noqa: PTH123
            file.write(json.dumps(line) + "\n")
