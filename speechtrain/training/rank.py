"""A further process of a run that trains on several devices; started by the first one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from speechtrain.training.steps import follow


def main() -> None:
    """The command line: the run's folder, and the checkpoint that it is resumed from."""
    folder, *checkpoint = (Path(argument) for argument in sys.argv[1:])
    sys.path.insert(0, str(Path.cwd()))  # for a _target_ in the user's folder
    from speechtrain.backends.torch.devices import end_with_parent

    end_with_parent()
    cfg = OmegaConf.load(folder / "config.yaml")
    assert isinstance(cfg, DictConfig)
    follow(cfg, folder, checkpoint[0] if checkpoint else None)
    sys.stdout.flush()
    os._exit(0)  # whatever a library's threads still wait for


if __name__ == "__main__":
    main()
