"""A Hydra program that is not speechtrain: returns a number, or goes wrong in a chosen way."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> object:
    from job import run

    return run(cfg)


if __name__ == "__main__":
    main()
