"""A Hydra program that costs next to nothing and notes at each job what its process and the sweeper's have used.

A line of `log.txt` has the number of the process, its CPU seconds and those of the sweeper's process, and the sweeper's memory in bytes.
"""

from __future__ import annotations

import json
import os
import time

import hydra
import psutil
from omegaconf import DictConfig

SWEEPER = psutil.Process(int(os.environ.setdefault("GROWTH_SWEEPER", str(os.getpid()))))


@hydra.main(version_base="1.3", config_path="../../tests/toy/conf", config_name="config")
def main(cfg: DictConfig) -> float:
    """Note what was used, and return the objective."""
    times = SWEEPER.cpu_times()
    line = [os.getpid(), time.process_time(), times.user + times.system, SWEEPER.memory_info().rss]
    with open(cfg.log, "a", encoding="ascii") as file:  # noqa: PTH123
        file.write(json.dumps(line) + "\n")
    return (cfg.x - 2.0) ** 2 + cfg.n


if __name__ == "__main__":
    main()
