"""Options of the sweeper and of its launchers; their keys and values are described in `conf/hydra`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from speechtrain.config.schemas.node import Target, number


@dataclass
class SweeperOptions(Target):
    _recursive_: bool = MISSING
    params: Any = MISSING
    when: Any = MISSING
    enqueue: Any = MISSING
    own_values_first: bool = MISSING
    objectives: list[str] | None = MISSING
    direction: Any = MISSING
    constraints: list[str] = MISSING
    report: str | None = MISSING
    seeds_per_trial: int = number(ge=1, most=10_000)
    seeds_startup_trials: int = number(ge=1)
    n_trials: int | None = number(ge=1)
    n_jobs: int = number(ge=1, most=1024)
    stop_after: float | None = number(gt=0)
    timeout: float | None = number(gt=0)
    retries: int = number(ge=0)
    max_failure_rate: float = number(ge=0, le=1)
    heartbeat: float = number(gt=0)
    study_name: str | None = MISSING
    storage: str | None = MISSING
    keep_pruned_checkpoints: bool = MISSING
    show_output: bool = MISSING
    repeat_best_of: str | None = MISSING
    check: str | None = MISSING
    sampler: Any = MISSING
    pruner: Any = MISSING


@dataclass
class PoolOptions(Target):
    n_workers: int | None = number(ge=1, most=1024)
    threads: int | None = number(ge=1, most=1024)
    gpus: list[int] | None = MISSING
    memory_gb: float | None = number(gt=0)
    max_jobs: int | None = number(ge=1)


@dataclass
class SshOptions(Target):
    host: str = MISSING
    folder: str = MISSING
    project: str | None = MISSING
    exclude: list[str] = MISSING
    setup: str = MISSING
    python: str = MISSING
    ssh_options: list[str] = MISSING
    poll: float = number(gt=0)
    patience: float = number(ge=0)
