"""Rank 1, 2, ... of a run that trains on several devices: a process that rank 0 starts."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from speechtrain.addresses import guard_outputs
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.training.steps import run_rank


def main() -> None:
    """Train as one rank; the command line has the run's folder and, for a resumed run, its checkpoint."""
    guard_outputs()
    folder, *checkpoint = (Path(argument) for argument in sys.argv[1:])
    sys.path.insert(0, str(Path.cwd()))  # for a _target_ in the user's folder
    from speechtrain.backends.torch.internals import hide_transformers_from_metrics

    hide_transformers_from_metrics()
    from speechtrain.backends.torch.devices import end_with_parent

    end_with_parent()
    run_rank(ExperimentConfig.read(folder / "config.yaml"), folder, checkpoint[0] if checkpoint else None)
    sys.stdout.flush()
    os._exit(0)  # without waiting for the threads of libraries


if __name__ == "__main__":
    main()
