"""Commands on a disk that fails: a process that forks one for each command, with a fault at one of its writes.

The n-th attempt to open a file for writing, to rename, to make a folder or to force a file to the disk fails, once or from then on; or
files may not become larger than a limit, which fails in the middle of a write, whatever library writes.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

LIBRARIES = (
    *("__main__", "app.job", "train", "evaluate", "transcribe", "align", "export", "data.prepare", "data.corpora.synthetic"),
    *("backends.torch.backend", "backends.torch.lightning_run", "backends.torch.models", "tasks.ctc", "tasks.build", "report.reports"),
    *("inference.recognizer", "inference.evaluation", "inference.alignment", "inference.export", "inference.archive", "training.steps"),
)
"""Modules that commands use, which are imported once."""


@dataclass(frozen=True)
class Fault:
    """What fails.

    Attributes:
        at: number of the write that fails, counted from 1; 0: none.
        reason: number of the error.
        lasting: whether all writes after it fail too.
        limit: most bytes of a file; None: there is no limit.
    """

    at: int = 0
    reason: int = errno.ENOSPC
    lasting: bool = False
    limit: int | None = None


class Disk:
    """A process that runs commands, each in a fork of itself."""

    def __init__(self) -> None:
        code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import faulty_disk; faulty_disk.serve()"
        self._process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, folder: Path, arguments: list[str], fault: Fault) -> tuple[int, str]:
        """Run a command in a folder; returns its exit code and what it printed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(folder), arguments, asdict(fault)]) + "\n")
        self._process.stdin.flush()
        code, text = json.loads(self._process.stdout.readline())
        return code, text

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def serve() -> None:
    """Read commands from the standard input until it ends, and answer each with a line."""
    import importlib

    from speechtrain import compose

    for name in LIBRARIES:
        importlib.import_module(f"speechtrain.{name}")
    compose(["data=synthetic"])  # Hydra looks for its plugins once
    for line in sys.stdin:
        folder, arguments, fault = json.loads(line)
        sys.stdout.write(json.dumps(_outcome(Path(folder), arguments, Fault(**fault))) + "\n")
        sys.stdout.flush()


def _outcome(folder: Path, arguments: list[str], fault: Fault) -> tuple[int, str]:
    reading, writing = os.pipe()  # which has no size that could be limited
    child = os.fork()
    if child == 0:
        os.close(reading)
        for number in (1, 2):
            os.dup2(writing, number)
        os.close(writing)
        _run(folder, arguments, fault)
    os.close(writing)
    with os.fdopen(reading, "rb") as output:
        text = output.read().decode(errors="replace")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


def _run(folder: Path, arguments: list[str], fault: Fault) -> NoReturn:
    """Run a command in this process, which ends with it."""
    import traceback

    from speechtrain.__main__ import main

    os.chdir(folder)
    sys.argv = ["speechtrain", *arguments]
    code: Any = 0
    try:
        _fail_at(fault, folder)
        main()
    except SystemExit as error:
        code = error.code or 0
    except BaseException:  # noqa: BLE001 # whatever it is, it is printed as Python does
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _fail_at(fault: Fault, folder: Path) -> None:
    """Let the writes of this process below a folder fail from now on."""
    count = 0

    def write(*paths: object) -> None:
        nonlocal count
        names = [os.fsdecode(path) for path in paths if isinstance(path, (str, bytes, os.PathLike))]
        if not any(Path(name).absolute().is_relative_to(folder) for name in names):
            return
        count += 1
        if fault.at and (count == fault.at or (fault.lasting and count > fault.at)):
            raise OSError(fault.reason, os.strerror(fault.reason), *names[-1:])

    def hook(event: str, values: tuple[Any, ...]) -> None:
        if event == "open" and values[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            write(values[0])
        elif event in ("os.rename", "os.mkdir"):
            write(*values[: 2 if event == "os.rename" else 1])

    fsync = os.fsync

    def force(file: int) -> None:
        try:
            write(Path(f"/proc/self/fd/{file}").readlink())
        except OSError as error:  # as the system raises it, without a name
            raise OSError(error.errno, error.strerror) from None
        fsync(file)

    sys.addaudithook(hook)
    os.fsync = force  # type: ignore[assignment]
    if fault.limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault.limit, resource.RLIM_INFINITY))
