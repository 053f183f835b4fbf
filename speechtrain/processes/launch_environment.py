"""What a launcher of several processes says in the environment: torchrun, Slurm's srun, submitit, or one that sets torchrun's variables."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from speechtrain.errors import UserError
from speechtrain.files import launch_folder, write_json

LAUNCHER_VARIABLE = "SPEECHTRAIN_LAUNCHER"
"""The variable that, set to `none`, has a process train alone whatever a launcher has left in its environment."""

_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_PORTS = 20_000, 12_000
"""The first port that the processes of a step of a Slurm job meet at, and how many there are."""
_STEP_PORTS = 97
"""Ports between two steps of one job, which may run at the same time."""

_LOOKS_SECONDS = 0.2
_CLOSING_SECONDS = 5.0
"""Between looks whether torchrun is there, and for closing a run when it is not."""


@dataclass(frozen=True)
class Launch:
    """Holds which of the processes that a launcher has started this one is, and where they meet.

    Attributes:
        launcher: `torchrun`, `srun`, `submitit` on one machine, or `the environment` where another program has set the variables.
        rank: number of the process; 0 leads.
        count: number of processes.
        local_rank: its number among those of its machine.
        node: number of its machine.
        single_machine: whether all processes are on this machine.
        name: what all its processes call the launch; another launch that meets at the same port has another.
        address: the machine of rank 0.
        port: where the launcher's store listens, or that of rank 0.
        key: names the launch in the files of this machine, and is the same when the launcher starts the processes again; None: it does not.
        restarts: whether the launcher may start them again by itself.
    """

    launcher: str
    rank: int
    count: int
    local_rank: int
    node: int
    single_machine: bool
    name: str
    address: str
    port: int
    key: str | None
    restarts: bool


def launch_of(environment: Mapping[str, str]) -> Launch | None:
    """Return what the environment says of a launcher; None: this process was started alone.

    Raises:
        UserError: a variable of it is no number.
    """
    if environment.get(LAUNCHER_VARIABLE) == "none":
        return None
    if all(environment.get(name) for name in _TORCHRUN):  # also of a torchrun that srun has started
        return _of_torchrun(environment)
    if _number(environment, "SLURM_STEP_NUM_TASKS", 1) > 1 and "SLURM_PROCID" in environment:
        return _of_srun(environment)
    if _number(environment, "SUBMITIT_LOCAL_NTASKS", 1) > 1 and "SUBMITIT_LOCAL_GLOBALID" in environment:
        return _of_submitit(environment)
    return None


def launch_of_trial(environment: Mapping[str, str]) -> Launch | None:
    """Return what the environment says of the processes of a trial; None: it is trained by this process alone.

    Submitit alone starts several for one. Workers of other launchers inherit the variables of what has started the sweep.

    Raises:
        UserError: a variable of it is no number.
    """
    launch = launch_of(environment) if environment.get("SUBMITIT_EXECUTOR") else None
    return replace(launch, key=None) if launch is not None and launch.count > 1 else None  # a trial goes on in its own way


def _of_torchrun(environment: Mapping[str, str]) -> Launch | None:
    count = _number(environment, "WORLD_SIZE", 1)
    elastic = "TORCHELASTIC_RUN_ID" in environment
    if count == 1 and not elastic:
        return None
    name = environment.get("TORCHELASTIC_RUN_ID", "none")
    rank, local_rank, local_count = (_number(environment, each, 0) for each in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    first_of_machine = rank // local_count if local_count else max(rank - local_rank, 0)  # names a machine that nobody has numbered
    return Launch(
        launcher="torchrun" if elastic else "the environment",
        rank=rank,
        count=count,
        local_rank=local_rank,
        node=_number(environment, "GROUP_RANK", _number(environment, "NODE_RANK", first_of_machine)),
        single_machine=local_count == count,
        name=f"torchrun-{name}" if elastic else "environment",
        address=environment["MASTER_ADDR"],
        port=_number(environment, "MASTER_PORT", 0),
        key=(f"torchrun-{name}" if name != "none" else _parent()) if elastic else None,
        restarts=_number(environment, "TORCHELASTIC_MAX_RESTARTS", 0) > 0,
    )


def _of_srun(environment: Mapping[str, str]) -> Launch:
    job, step = environment.get("SLURM_JOB_ID", "0"), environment.get("SLURM_STEP_ID", "0")
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or platform.node()
    numbers = _number(environment, "SLURM_JOB_ID", 0), _number(environment, "SLURM_STEP_ID", 0)
    port = _PORTS[0] + (numbers[0] + _STEP_PORTS * numbers[1]) % _PORTS[1]
    return Launch(
        launcher="srun",
        rank=_number(environment, "SLURM_PROCID", 0),
        count=_number(environment, "SLURM_STEP_NUM_TASKS", 1),
        local_rank=_number(environment, "SLURM_LOCALID", 0),
        node=_number(environment, "SLURM_NODEID", 0),
        single_machine=_number(environment, "SLURM_STEP_NUM_NODES", 2) == 1,
        name=f"slurm-{job}-{step}",
        address=environment.get("MASTER_ADDR") or first_node(nodes),
        port=_number(environment, "MASTER_PORT", port),
        key=f"slurm-{job}-{step}",
        restarts=False,  # a job is put back into the queue by its user, if at all
    )


def _of_submitit(environment: Mapping[str, str]) -> Launch:
    """Return what submitit's local executor says, whose tasks are all on this machine."""
    rank, job = _number(environment, "SUBMITIT_LOCAL_GLOBALID", 0), _number(environment, "SUBMITIT_LOCAL_JOB_ID", 0)
    return Launch(
        launcher="submitit",
        rank=rank,
        count=_number(environment, "SUBMITIT_LOCAL_NTASKS", 1),
        local_rank=rank,
        node=0,
        single_machine=True,
        name=f"submitit-{job}",
        address="127.0.0.1",
        port=_PORTS[0] + job % _PORTS[1],
        key=None,
        restarts=False,
    )


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name) or str(default)
    if not text.isdecimal():
        raise UserError(f"{name} is {text!r:.80} in the environment, which is no number\n    -> leave it to torchrun or srun, or unset it")
    return int(text)


def first_node(nodes: str) -> str:
    """Return the first machine of a list as Slurm writes it: `gpu-[03-05,9],cpu1` begins with `gpu-03`."""
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", nodes).partition(",")[0]


def _parent() -> str:
    """Return a name of the process that has started this one: torchrun's agent, which starts the next attempt too."""
    parent = psutil.Process(os.getppid())
    return f"{platform.node()}-{parent.pid}-{parent.create_time():.0f}"


def machine() -> str:
    """Return a name of what has an address of its own: this machine, or the namespace of the network that this process is in."""
    try:
        return f"{platform.node()} {Path('/proc/self/ns/net').readlink()}"
    except OSError:
        return platform.node()


def note_path(key: str) -> Path:
    """Return the file that notes which run a launch has begun."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", key)[:150]
    if name != key:  # `a/b` and `a_b` are two
        name += f"-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    return launch_folder() / "outputs" / "launches" / f"{name}.json"


_note: tuple[Path, list[str]] | None = None


def begin_note(key: str | None, arguments: Sequence[str]) -> None:
    """Let the next run that begins in this process be noted as that of a launch, with what was typed; secrets in it must be masked."""
    global _note  # a process belongs to one launch
    _note = None if key is None else (note_path(key), list(arguments))


def forget_note(key: str | None) -> None:
    """Forget which run a launch has begun, which is finished."""
    if key is not None:
        note_path(key).unlink(missing_ok=True)


def note_run(folder: Path) -> None:
    """Note the folder of a run that begins, if it is the first since `begin_note`."""
    global _note
    if _note is not None:
        (path, arguments), _note = _note, None
        write_json(path, {"folder": str(folder), "arguments": arguments})


def end_with_parent() -> None:
    """End this process when the one that has started it ends: torchrun leaves its processes behind when it is killed.

    Rank 0 is interrupted first, so that its run is closed; what it has not done by then is not waited for.
    """
    parent = os.getppid()

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOKS_SECONDS)
        if os.environ.get("RANK") == "0":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(_CLOSING_SECONDS)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
