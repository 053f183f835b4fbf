"""One call of a function in a fresh process: where a library keeps what it was first imported with, may crash, or is not thread-safe.

What needs another protocol has its own: the workers of a sweep and the sender to MLflow serve many requests, the ranks of a training live
as long as it does, and eSpeak NG reports each file while it speaks the next.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import cloudpickle

from speechtrain.addresses import guard_outputs
from speechtrain.errors import RunError, UserError
from speechtrain.processes import interrupts

T = TypeVar("T")

_GRACE = 10.0
"""Seconds that the process has to end by itself when this one is interrupted."""
_QUOTED_LINES = 3
"""Lines of its output that the error quotes when it died."""


class ProcessDiedError(RunError):
    """The process ended without a result; the message says how, and quotes the end of its output if that was kept back."""


class FreshCall(Generic[T]):
    """A function call that runs in a fresh process, which starts when this is made.

    Args:
        function: a function of a module, which the process imports.
        args: its arguments, anything that can be pickled.
        environment: variables to set besides those of this process.
        quiet: whether the output of the process is kept back, and quoted only if it dies.
    """

    def __init__(self, function: Callable[..., T], *args: Any, environment: Mapping[str, str] | None = None, quiet: bool = False) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="speechtrain-call-")
        request, self._answer, self._output = (Path(self._folder.name) / name for name in ("request", "answer", "output"))
        # the path comes first: what is behind it may need modules that only this path leads to
        request.write_bytes(pickle.dumps(sys.path) + cloudpickle.dumps((function, args)))
        sys.stdout.flush()
        sys.stderr.flush()
        with self._output.open("wb") as file:
            streams: dict[str, Any] = {"stdout": file, "stderr": subprocess.STDOUT} if quiet else {}
            self._process = subprocess.Popen(
                [sys.executable, "-m", "speechtrain.processes.fresh", str(request), str(self._answer)],
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                **streams,
            )

    def is_running(self) -> bool:
        """Return whether the process has not ended yet."""
        return self._process.poll() is None

    def result(self, timeout: float | None = None) -> T:
        """Wait for the process and return what the function returned; may be called once.

        Args:
            timeout: seconds to wait; None waits for as long as it takes.

        Raises:
            Exception: what the function raised, with its stack trace as a note if it is neither a `UserError` nor a `RunError`.
            ProcessDiedError: the process crashed or was killed.
            TimeoutError: it took longer, and was ended.
            KeyboardInterrupt: this process was interrupted; the other one has ended by then.
        """
        with self._folder:
            try:
                code = self._process.wait(timeout)
            except BaseException as error:
                self._end()
                if isinstance(error, subprocess.TimeoutExpired):
                    raise TimeoutError(f"it took more than {timeout:g} s") from None
                raise
            if not self._answer.is_file():
                how = f"crashed with signal {-code}" if code < 0 else f"exited with code {code}"
                lines = self._output.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-_QUOTED_LINES:]
                raise ProcessDiedError("\n    ".join([f"{how} and gave no result", *lines]))
            answer: tuple[T, BaseException | None] = pickle.loads(self._answer.read_bytes())  # noqa: S301 # from our own process
        value, raised = answer
        if raised is not None:
            raise raised
        return value

    def _end(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE)
        self._process.kill()
        self._process.wait()


def call(
    function: Callable[..., T], *args: Any, environment: Mapping[str, str] | None = None, quiet: bool = False, timeout: float | None = None
) -> T:
    """Return what a function returns, or raise what it raises, when a fresh process calls it; see `FreshCall`."""
    return FreshCall(function, *args, environment=environment, quiet=quiet).result(timeout)


def main() -> None:
    """Call the function that the first argument's file holds, and write its value or its error to the second argument's."""
    guard_outputs()
    request, answer = (Path(item) for item in sys.argv[1:])
    interrupts.listen()  # a terminal sends Ctrl-C to this process as well
    value: Any = None
    error: BaseException | None = None
    try:
        with request.open("rb") as file:
            sys.path[:] = pickle.load(file)  # noqa: S301 # from our own process
            function, args = pickle.load(file)  # noqa: S301
        value = function(*args)
    except BaseException as raised:  # noqa: BLE001 # whatever it is, it is raised again on the other side
        error = raised
        if not isinstance(error, (UserError, RunError, KeyboardInterrupt, SystemExit)):
            error.add_note("".join(traceback.format_exception(error)))
    answer.write_bytes(_packed(value, error))


def _packed(value: Any, error: BaseException | None) -> bytes:
    """Pickle a value and an error; of an error that cannot be unpickled again only its text is kept."""
    try:
        packed = bytes(cloudpickle.dumps((value, error)))
        pickle.loads(packed)  # noqa: S301 # just packed
    except Exception as problem:  # noqa: BLE001 # objects fail to pickle in many ways
        if error is None:
            return pickle.dumps((None, RunError(f"its result cannot be sent to another process ({problem})")))
        kind = UserError if isinstance(error, UserError) else RunError
        text = str(error) if isinstance(error, (UserError, RunError)) else "".join(traceback.format_exception(error)).strip()
        return pickle.dumps((None, kind(text)))
    return packed


if __name__ == "__main__":
    main()
