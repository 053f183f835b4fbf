"""A Hydra program for the official Optuna sweeper, run in that plugin's own environment."""

from __future__ import annotations

import json
import time
from pathlib import Path

import hydra
from omegaconf import DictConfig

try:
    import speechtrain
except ImportError:  # the toy does without
    speechtrain = None


@hydra.main(version_base=None, config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float:
    """The toy, or a training; notes when each trial ended."""
    if cfg.train is None:
        return float((cfg.x - 2) ** 2 + cfg.y)
    folder = Path("trials") / f"{time.time_ns()}"
    own = [f"optimizer.lr={cfg.lr}", f"model.dropout={cfg.dropout}", f"model.channels={cfg.channels}"]
    result = speechtrain.train(speechtrain.compose([*cfg.train.split(";"), *own], output_dir=folder))
    with Path("finished.jsonl").open("a") as file:
        file.write(json.dumps({"time": time.time(), "value": result.objective}) + "\n")
    return float(result.objective or 1.0)


if __name__ == "__main__":
    main()
