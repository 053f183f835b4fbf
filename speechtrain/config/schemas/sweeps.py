"""Options of the sweeper and of its launchers; their keys and values are described in `conf/hydra`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from omegaconf import MISSING

from speechtrain.config.schemas.node import Node, Rule, Target, number

REPLACED = {
    "motpe": "write hydra/sweeper/sampler=tpe, which takes several objectives",
    "search_space": "write hydra.sweeper.params, for example {lr: 'tag(log,interval(1e-4,1e-2))', layers: 'choice(2,4)'}",
}
"""What to write in place of samplers and keys that the official plugin had."""


@dataclass
class StopWhen(Node):
    goal: float | None = MISSING
    no_improvement: float | None = number(ge=0, lt=1)
    wall_hours: float | None = number(gt=0)
    cpu_hours: float | None = number(gt=0)
    gpu_hours: float | None = number(gt=0)

    @property
    def is_set(self) -> bool:
        """Return whether there is a condition."""
        return any(value is not None for value in vars(self).values())


@dataclass
class Finalists(Node):
    n: int | None = number(ge=2, most=100)
    max_seeds: int = number(ge=2, most=1000)
    significance: float = number(gt=0, lt=1)
    seed_key: str = MISSING


@dataclass
class SweeperOptions(Target):
    _recursive_: bool = MISSING
    params: Any = MISSING
    when: Any = MISSING
    custom_search_space: str | None = MISSING
    enqueue: Any = MISSING
    warm_start: list[str] = field(default_factory=list)
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
    stop_when: StopWhen = field(default_factory=StopWhen)
    finalists: Finalists = field(default_factory=Finalists)
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

    def rules(self) -> Iterator[Rule]:
        for key, kinds, words in _KINDS:
            if not isinstance(value := getattr(self, key), (*kinds, type(None))):
                yield key, f"must be {words}, received {value!r}", ""
        for key in ("when", "enqueue"):
            entries = getattr(self, key)
            for index, entry in enumerate(entries if isinstance(entries, list) else []):
                if not isinstance(entry, dict):
                    yield f"{key}[{index}]", f"must be a mapping from keys to values, received {entry!r}", ""
        seed = self.sampler.get("seed") if isinstance(self.sampler, dict) else None
        if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
            yield "sampler.seed", f"must be a whole number, received {seed!r}", "give a number, or null, which takes the seed of the config"
        longest = max((len(part.encode()) for part in PurePosixPath(self.study_name or "").parts), default=0)
        if longest > _LONGEST_NAME:
            yield "study_name", f"is too long for a folder: {longest} bytes in UTF-8", f"give a name of {_LONGEST_NAME} bytes or fewer"
        elif self.study_name is not None and not _is_folder_name(self.study_name):
            message = f"cannot name a study and its folder, received {self.study_name!r}"
            yield "study_name", message, "give a name without .. that does not begin with /"


_KINDS: tuple[tuple[str, tuple[type, ...], str], ...] = (
    ("params", (dict,), "a mapping from keys to the values that they take"),
    ("when", (list,), "a list of mappings"),
    ("enqueue", (list,), "a list of mappings"),
    ("direction", (str, list), "minimize, maximize, or a list of these"),
    ("sampler", (str, dict), "a name, a class with its arguments, or null"),
    ("pruner", (str, dict), "a name, a class with its arguments, or null"),
)
"""What the keys take whose types have no schema, in words."""


_LONGEST_NAME = 200
"""Bytes of a folder's name: file systems take 255, and some files beside it have longer ones."""


def _is_folder_name(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return bool(parts) and ".." not in parts and not name.startswith("/")


@dataclass
class PoolOptions(Target):
    n_workers: int | None = number(ge=1, most=1024)
    threads: int | None = number(ge=1, most=1024)
    gpus: list[int] | None = MISSING
    memory_gb: float | None = number(gt=0)
    max_jobs: int | None = number(ge=1)
    fork: bool = True


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
