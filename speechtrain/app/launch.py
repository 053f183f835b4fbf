"""A command that a launcher has started several times, torchrun or Slurm's srun: rank 0 runs it, the others train what it hands out."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

import speechtrain
from speechtrain.addresses import masked
from speechtrain.app.resume import STORED, is_sweep, resume_arguments
from speechtrain.config.compose import compose_unchecked
from speechtrain.config.overrides import override_text
from speechtrain.errors import ConfigError, Problem, RunError, UserError
from speechtrain.processes import interrupts
from speechtrain.processes.launch_environment import LAUNCHER_VARIABLE, Launch, begin_note, end_with_parent, forget_note, machine, note_path
from speechtrain.tracking.run_folder import read_run_file

if TYPE_CHECKING:
    from speechtrain.backends.torch.rendezvous import ProcessInfo, Rendezvous

_DEVICES = "trainer.devices"


def follow_launch(launch: Launch, arguments: Sequence[str], cfg: DictConfig | None = None) -> int:
    """Train as a process other than rank 0, and return the exit code of rank 0; that of an interrupt if one comes.

    Args:
        launch: which process this is.
        arguments: what was typed.
        cfg: the config, where this process has composed it already. None: it is composed if it names classes of the user's own.

    Raises:
        RunError: there is no rank 0.
    """
    if cfg is None and is_sweep(list(arguments)):  # which rank 0 refuses
        return UserError.exit_code
    from speechtrain.backends.torch.internals import hide_transformers_from_metrics
    from speechtrain.backends.torch.rendezvous import Rendezvous, set_current
    from speechtrain.training.distributed import follow

    _watch_agent(launch)
    try:
        rendezvous = Rendezvous.join(launch, _process_info(launch, arguments))
        set_current(rendezvous)
        hide_transformers_from_metrics()
        return follow(rendezvous, lambda: own_config(arguments) if cfg is None else cfg)
    except KeyboardInterrupt:  # rank 0 says so
        return interrupts.EXIT_CODE
    finally:
        set_current(None)


def own_config(arguments: Sequence[str]) -> DictConfig:
    """Compose what was typed for this process.

    Raises:
        UserError: it does not compose here.
    """
    typed = resume_arguments(list(arguments))
    folders = [typed[position + 1] for position, item in enumerate(typed[:-1]) if item in _CONFIG_DIR]
    folders += [item.partition("=")[2] for item in typed if item.startswith("--config-dir=")]
    search = [f"hydra.searchpath={override_text([f'file://{Path(folder).absolute()}' for folder in folders])}"] if folders else []
    overrides = [item for item in typed if not item.startswith("-") and item not in folders and not item.startswith("hydra.")]
    return compose_unchecked([*search, *overrides])


_CONFIG_DIR = ("--config-dir", "-cd")


@contextmanager
def lead(launch: Launch | None, arguments: Sequence[str]) -> Iterator[list[str]]:
    """Lead what a launcher has started while the block runs; yields the arguments of the command, of one that goes on those to go on with.

    Raises:
        UserError: the processes do not fit together, or the command cannot be trained by several.
        RunError: some have not come.
    """
    if launch is None:
        yield list(arguments)
        return
    from speechtrain.backends.torch.rendezvous import Rendezvous, set_current

    _watch_agent(launch)
    sweep = is_sweep(list(arguments))  # which one process may run, and which goes on by itself
    if sweep and launch.count > 1:
        message = f"asks for a sweep, and {launch.launcher} has started {launch.count} processes of one training"
        fix = "start the sweep by itself, for example with hydra/launcher=submitit_slurm hydra.launcher.nodes=2"
        raise ConfigError([Problem("command line", message, f"{fix}; {LAUNCHER_VARIABLE}=none has each process train by itself")])
    key = None if sweep else launch.key
    own, rendezvous, code = _process_info(replace(launch, key=key), arguments), None, 0
    try:
        if launch.count > 1:
            rendezvous = Rendezvous.lead(launch, own)
            _check(rendezvous)
            set_current(rendezvous)
        begun = _unchanged(launch, own.begun, arguments)
        begin_note(key, _noted(arguments))
        yield _continued(begun, _with_devices(arguments, rendezvous))
        forget_note(key)
    except BaseException as error:
        code = _exit_code(error)
        raise
    finally:
        set_current(None)
        if rendezvous is not None:
            rendezvous.end(code)


def _watch_agent(launch: Launch) -> None:
    if launch.launcher == "torchrun":
        end_with_parent()


def _process_info(launch: Launch, arguments: Sequence[str]) -> ProcessInfo:
    from speechtrain.backends.torch.rendezvous import ProcessInfo, own_address

    place = launch.rank, launch.node, launch.local_rank, machine(), platform.node(), own_address(launch.address)
    return ProcessInfo(*place, list(arguments), speechtrain.__version__, _begun(launch))


def _begun(launch: Launch) -> str | None:
    """Return the folder of the run that an earlier attempt of this launch has begun and not finished, as far as this machine knows."""
    folder = _note(launch).get("folder")
    if not isinstance(folder, str) or not Path(folder).is_dir():  # its user has removed it
        return None
    return folder if read_run_file(Path(folder)).get("status") != "FINISHED" else None


def _note(launch: Launch) -> dict[str, Any]:
    """Return what is noted of the run that this launch has begun; empty: nothing is."""
    with suppress(OSError, ValueError):
        note = json.loads(note_path(launch.key).read_text(encoding="utf-8")) if launch.key is not None else None
        return note if isinstance(note, dict) else {}
    return {}


def _noted(arguments: Sequence[str]) -> list[str]:
    """Return what was typed as it is noted, without secrets."""
    return [masked(item) for item in arguments]


def _unchanged(launch: Launch, folder: str | None, arguments: Sequence[str]) -> str | None:
    """Return the folder of the run that this launch goes on with; None where `resume=` says what to go on with.

    Raises:
        UserError: it was begun with other arguments.
    """
    before, now = _note(launch).get("arguments"), _noted(arguments)
    if folder is None or not isinstance(before, list) or before == now:
        return folder
    if any(item.startswith("resume=") for item in now):
        return None
    gone, new = ([item for item in one if item not in other] for one, other in ((before, now), (now, before)))
    message = f"the run in {folder} was begun with {' '.join(gone) or 'less'}, and is to go on with {' '.join(new) or 'less'}"
    if not gone and not new:
        message = f"the run in {folder} was begun with its arguments in another order"
    fix = f"give the command that it was begun with; resume={folder} goes on with other values"
    raise UserError(f"{message}\n    -> {fix}{', another --rdzv-id begins a run of its own' if launch.launcher == 'torchrun' else ''}")


def _check(rendezvous: Rendezvous) -> None:
    """Check that the processes of a launch can train together.

    Raises:
        UserError: they cannot.
    """
    launch, own = rendezvous.launch, rendezvous.processes[0]
    for other in rendezvous.processes[1:]:
        if list(other.arguments) != list(own.arguments):
            theirs, ours = (" ".join(each.arguments) or "nothing" for each in (other, own))
            message = f"process {other.rank} on {other.host} was given {theirs}, and process 0 {ours}"
            raise UserError(f"{message}\n    -> give all machines the same command")
        if other.version != own.version:
            message = f"process {other.rank} on {other.host} has speechtrain {other.version}, and process 0 {own.version}"
            raise UserError(f"{message}\n    -> install one version on all machines")
        if own.begun is None and other.begun is not None:
            message = f"the run in {other.begun} was begun by this launch, as {other.host} has noted, and {own.host} does not see it"
            raise UserError(
                f"{message}\n    -> start in a folder that all machines share, with hydra.run.dir in it, or give another --rdzv-id"
            )
    counts = {node: sum(each.node == node for each in rendezvous.processes) for node in {each.node for each in rendezvous.processes}}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{count} on machine {node}" for node, count in sorted(counts.items()))
        raise UserError(f"{launch.launcher} has started {shown}\n    -> start as many processes on each machine (--nproc-per-node)")


def _with_devices(arguments: Sequence[str], rendezvous: Rendezvous | None) -> list[str]:
    """Return arguments in which `trainer.devices` is what the launcher has started on each machine.

    Raises:
        ConfigError: another number was typed.
    """
    count = rendezvous.local_count if rendezvous is not None else 1
    typed = [item.partition("=")[2].strip("'\"") for item in arguments if item.lstrip("+").startswith(f"{_DEVICES}=")]
    if typed and typed[-1] not in (str(count), "auto", "-1"):
        launcher = rendezvous.launch.launcher if rendezvous is not None else "torchrun"
        message = f"is {typed[-1]}, and {launcher} has started {count} on each machine"
        fix = f"leave it out: it follows from {launcher} (--nproc-per-node, --ntasks-per-node)"
        raise ConfigError([Problem(_DEVICES, message, fix)])
    others = [item for item in arguments if not item.lstrip("+").startswith(f"{_DEVICES}=")]
    return [*others, f"{_DEVICES}={count}"] if rendezvous is not None else list(arguments)


def _continued(folder: str | None, arguments: list[str]) -> list[str]:
    """Return arguments with which the run in a folder goes on: what was typed is stored with it."""
    if folder is None:
        return arguments
    resumed = f"resume={override_text(folder)}"
    if not (Path(folder) / STORED).is_dir():
        return [*arguments, f"hydra.run.dir={override_text(folder)}", resumed]
    kept = [item for item in arguments if item.startswith(("-", f"{_DEVICES}=")) or ("=" not in item and not item.startswith("~"))]
    return [*kept, resumed]


def _exit_code(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        return interrupts.EXIT_CODE
    if isinstance(error, (HydraException, OmegaConfBaseException, YAMLError)):  # mistakes of the user's, which `__main__` explains
        return UserError.exit_code
    return error.exit_code if isinstance(error, (UserError, RunError)) else 1
