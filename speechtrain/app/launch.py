"""A command that a launcher has started several times, torchrun or Slurm's srun: rank 0 runs it, the others train what it hands out."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import speechtrain
from speechtrain.app.resume import STORED, is_sweep
from speechtrain.config.overrides import override_text
from speechtrain.errors import ConfigError, Problem, RunError, UserError
from speechtrain.processes import interrupts
from speechtrain.processes.launched import Launch, begin_note, end_with_parent, forget_note, machine, note_path
from speechtrain.tracking.run_folder import read_run_file

if TYPE_CHECKING:
    from speechtrain.backends.torch.meeting import Greeting, Meeting

_DEVICES = "trainer.devices"


def follow_launch(launch: Launch, arguments: Sequence[str]) -> int:
    """Train as a process other than rank 0, and return the exit code of rank 0.

    Raises:
        RunError: there is no rank 0.
    """
    from speechtrain.backends.torch.internals import hide_transformers_from_metrics
    from speechtrain.backends.torch.meeting import Meeting, attend
    from speechtrain.training.launched import follow

    _watch_agent(launch)
    meeting = Meeting.join(launch, _greeting(launch, arguments))
    attend(meeting)
    hide_transformers_from_metrics()
    try:
        return follow(meeting)
    finally:
        attend(None)


@contextmanager
def led(launch: Launch | None, arguments: Sequence[str]) -> Iterator[list[str]]:
    """Lead what a launcher has started while the block runs; yields the arguments of the command, of one that goes on those to go on with.

    Raises:
        UserError: the processes do not fit together, or the command cannot be trained by several.
        RunError: some have not come.
    """
    if launch is None:
        yield list(arguments)
        return
    from speechtrain.backends.torch.meeting import Meeting, attend

    _watch_agent(launch)
    own, meeting, code = _greeting(launch, arguments), None, 0
    try:
        if launch.count > 1:
            meeting = Meeting.lead(launch, own)
            _check(meeting, arguments)
            attend(meeting)
        begin_note(launch.key)
        yield _continued(own.begun, _with_devices(arguments, meeting))
        forget_note(launch.key)
    except BaseException as error:
        code = _exit_code(error)
        raise
    finally:
        attend(None)
        if meeting is not None:
            meeting.end(code)


def _watch_agent(launch: Launch) -> None:
    if launch.launcher == "torchrun":
        end_with_parent()


def _greeting(launch: Launch, arguments: Sequence[str]) -> Greeting:
    from speechtrain.backends.torch.meeting import Greeting, own_address

    place = launch.rank, launch.node, launch.local_rank, machine(), platform.node(), own_address(launch.address)
    return Greeting(*place, list(arguments), speechtrain.__version__, _begun(launch))


def _begun(launch: Launch) -> str | None:
    """Return the folder of the run that an earlier attempt of this launch has begun and not finished, as far as this machine knows."""
    if launch.key is None:
        return None
    try:
        folder = str(json.loads(note_path(launch.key).read_text(encoding="utf-8"))["folder"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    status = read_run_file(Path(folder)).get("status")
    return folder if status != "FINISHED" else None


def _check(meeting: Meeting, arguments: Sequence[str]) -> None:
    """Check that the processes of a launch can train together.

    Raises:
        UserError: they cannot.
    """
    launch, own = meeting.launch, meeting.greetings[0]
    if is_sweep(list(arguments)):
        message = f"asks for a sweep, and {launch.launcher} has started {launch.count} processes of one training"
        fix = "start the sweep by itself, for example with hydra/launcher=submitit_slurm hydra.launcher.nodes=2"
        raise ConfigError([Problem("command line", message, fix)])
    for other in meeting.greetings[1:]:
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
    counts = {node: sum(each.node == node for each in meeting.greetings) for node in {each.node for each in meeting.greetings}}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{count} on machine {node}" for node, count in sorted(counts.items()))
        raise UserError(f"{launch.launcher} has started {shown}\n    -> start as many processes on each machine (--nproc-per-node)")


def _with_devices(arguments: Sequence[str], meeting: Meeting | None) -> list[str]:
    """Return arguments in which `trainer.devices` is what the launcher has started on each machine.

    Raises:
        ConfigError: another number was typed.
    """
    count = meeting.local_count if meeting is not None else 1
    typed = [item.partition("=")[2].strip("'\"") for item in arguments if item.lstrip("+").startswith(f"{_DEVICES}=")]
    if typed and typed[-1] not in (str(count), "auto", "-1"):
        launcher = meeting.launch.launcher if meeting is not None else "torchrun"
        message = f"is {typed[-1]}, and {launcher} has started {count} on each machine"
        fix = f"leave it out: it follows from {launcher} (--nproc-per-node, --ntasks-per-node)"
        raise ConfigError([Problem(_DEVICES, message, fix)])
    others = [item for item in arguments if not item.lstrip("+").startswith(f"{_DEVICES}=")]
    return [*others, f"{_DEVICES}={count}"] if meeting is not None else list(arguments)


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
    return error.exit_code if isinstance(error, (UserError, RunError)) else 1
