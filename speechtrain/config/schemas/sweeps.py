"""Options of the sweeper and of its launchers; their keys and values are described in `conf/hydra`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from omegaconf import MISSING

from speechtrain.config.extras import needed
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
class RayOptions(Target):
    address: str | None = MISSING
    num_cpus: float = number(ge=0, most=10_000)
    num_gpus: float = number(ge=0, most=1000)
    memory: Any = MISSING
    resources: Any = MISSING
    threads: int | None = number(ge=1, most=1024)
    max_jobs: int | None = number(ge=1)
    runtime_env: Any = MISSING
    folder: str = MISSING
    autoscales: bool | None = MISSING
    patience: float = number(ge=0)
    n_workers: int | None = number(ge=1, most=100_000)
    init: Any = MISSING

    def rules(self) -> Iterator[Rule]:
        yield from needed("", ["ray"])
        if self.address is not None and not _RAY_ADDRESS.fullmatch(self.address):
            fix = "write auto, HOST:PORT, ray://HOST:10001, or null for a Ray of the sweep's own"
            yield "address", f"names no cluster, received {self.address!r}", fix
        elif self.address is not None and self.address.startswith("ray://"):
            yield from needed("address", ["grpc"])
        if self.num_gpus > 1 and self.num_gpus != int(self.num_gpus):
            yield "num_gpus", f"is above 1 and no whole number, received {self.num_gpus:g}", "a trial has a part of one GPU, or whole ones"
        if bytes_of(self.memory) is None and self.memory is not None:
            yield "memory", f"is no amount of memory, received {self.memory!r}", "write a number of bytes, or one with MB or GB: 4GB"
        for key, example in _RAY_EXAMPLES.items():
            if not isinstance(value := getattr(self, key), (dict, type(None))):
                yield key, f"must be a mapping, received {value!r}", example
        yield from _rules_of_resources(self.resources)
        yield from _rules_of_runtime_env(self.runtime_env)
        for key in _OWN_INIT & set(self.init if isinstance(self.init, dict) else ()):
            yield f"init.{key}", "has a key of its own", f"set hydra.launcher.{key}"


def _rules_of_resources(resources: object) -> Iterator[Rule]:
    for name, amount in resources.items() if isinstance(resources, dict) else ():
        if isinstance(amount, bool) or not isinstance(amount, (int, float)) or not 0 < amount < float("inf"):
            yield f"resources.{name}", f"must be a number above 0, received {amount!r}", ""
        elif name in _RAY_KEYS:
            yield f"resources.{name}", "has a key of its own", f"set hydra.launcher.{_RAY_KEYS[name]}"


def _rules_of_runtime_env(runtime_env: object) -> Iterator[Rule]:
    given = runtime_env if isinstance(runtime_env, dict) else {}
    modules = given.get("py_modules")
    paths = [("working_dir", given.get("working_dir")), *(("py_modules", each) for each in (modules if isinstance(modules, list) else []))]
    for key, path in paths:
        if isinstance(path, str) and "://" not in path and not Path(path).exists():
            yield f"runtime_env.{key}", f"there is no {path}", "name a folder of this machine, or a URI that Ray can read"


_RAY_ADDRESS = re.compile(r"auto|(ray://)?(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):\d{1,5}")
_RAY_KEYS = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
_OWN_INIT = {"address", "runtime_env"}
_RAY_EXAMPLES = {
    "resources": "for example '{licence: 1}'",
    "runtime_env": "for example '{working_dir: ., env_vars: {DATA: /data}}'",
    "init": "for example '{object_store_memory: 200000000}'",
}
_UNITS = {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def bytes_of(memory: object) -> int | None:
    """Return an amount of memory, a number of bytes or a text such as `4GB`, in bytes; None if it is none."""
    if isinstance(memory, bool):
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:[eE]\+?\d+)?)\s*([A-Za-z]*)\s*", str(memory))
    unit = _UNITS.get(found[2].upper()) if found else None
    amount = float(found[1]) * unit if found and unit else 0.0
    return int(amount) if 1 <= amount < 2**60 else None


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
