"""A process beside the training that sends to MLflow, so that the training neither imports MLflow nor waits for it.

One process sends all runs of the process that started it. It reads commands, one JSON object a line, from its standard input, and writes
replies to its standard output. It outlives the process that started it by as long as it takes to send what was spooled: a run whose
process was killed is closed as failed at once.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechtrain.addresses import guard_outputs, masked, unguarded_stdout
from speechtrain.errors import UserError, first_line
from speechtrain.tracking.mlflow.spool import pause_after

if TYPE_CHECKING:
    from speechtrain.tracking.mlflow.system_metrics import SystemMetrics

log = logging.getLogger(__name__)

_LINGER = 60.0
"""Seconds for which a writer whose training has ended goes on trying to send the rest."""
_POLL_SECONDS = 1.0
"""Longest wait for a command before it is looked whether the training is still alive."""


# --- the training's side --------------------------------------------------------------------------------------------------------------


class Writer:
    """Starts the writer process of this one when it is first needed, and again when it dies, and speaks with it.

    Attributes:
        unexpected_exits: how often the process has ended before it was asked to.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0
        self._state: dict[str, dict[str, Any]] = {}
        self._attended: dict[str, str] = {}
        self._changed = threading.Condition()
        self._error_lines: deque[str] = deque(maxlen=5)
        self.unexpected_exits = 0

    def attend(self, spool: Path, uri: str | None = None) -> None:
        """Have a spool sent from now on, to an address that in the spool is masked, and start the process if there is none."""
        line = json.dumps({"attend": str(spool), "uri": uri})
        self._write_line(line)
        self._attended[str(spool)] = line

    def send_command(self, command: Mapping[str, Any]) -> None:
        """Send the process another command, see `_Server`; nothing happens if no process can be started."""
        with contextlib.suppress(OSError):  # what is spooled stays
            self._write_line(json.dumps(command, default=str))

    def state(self, spool: Path) -> dict[str, Any]:
        """Return what the process has replied about a spool so far."""
        with self._changed:
            return dict(self._state.get(str(spool), {}))

    def wait(self, spool: Path, until: Callable[[dict[str, Any]], bool], seconds: float) -> dict[str, Any]:
        """Return what the process has replied about a spool, once `until` is true of it or so many seconds have passed."""
        with self._changed:
            self._changed.wait_for(lambda: until(self._state.get(str(spool), {})), seconds)
            return dict(self._state.get(str(spool), {}))

    def forget(self, spool: Path) -> None:
        """Forget a spool that is finished, or that will not be sent."""
        with self._changed:
            self._state.pop(str(spool), None)
        self._attended.pop(str(spool), None)

    def _write_line(self, line: str) -> None:
        for _ in range(2):
            process = self._running()
            try:
                assert process.stdin is not None
                process.stdin.write(line + "\n")
                process.stdin.flush()
            except (OSError, ValueError):  # it died: another one takes up where it was
                self._process = None
            else:
                return

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            if self._owner != os.getpid():  # after a fork, what the parent attends to is not ours
                self._attended, self._state, self._owner = {}, {}, os.getpid()
            self._process = self._start()
            assert self._process.stdin is not None
            for line in self._attended.values():
                self._process.stdin.write(line + "\n")
        return self._process

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", "from speechtrain.tracking.mlflow.writer import main; main()", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # Ctrl-C is for the training, which then says how the run ended
        )
        for read in (self._read_replies, self._drain_stderr):
            threading.Thread(target=read, args=(process,), daemon=True).start()
        atexit.register(self.close)
        return process

    def _read_replies(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with contextlib.suppress(ValueError):
                self._handle_reply(json.loads(line))
        with self._changed:
            self.unexpected_exits += process is self._process
            self._changed.notify_all()

    def _drain_stderr(self, process: subprocess.Popen[str]) -> None:
        """Keep the last lines of its errors, for the message if it dies; libraries write a lot that nobody needs."""
        assert process.stderr is not None
        for line in process.stderr:
            if line.strip():
                self._error_lines.append(line.strip())

    @property
    def last_error_line(self) -> str:
        """Return the last line that the process wrote to its standard error."""
        return self._error_lines[-1] if self._error_lines else "no output"

    def _handle_reply(self, reply: dict[str, Any]) -> None:
        warning = reply.pop("warning", None)
        with self._changed:
            self._state.setdefault(str(reply.pop("spool", "")), {}).update(reply)
            self._changed.notify_all()
        if warning:
            log.warning("%s", warning)

    def close(self) -> None:
        """Let the process end when all is sent, without waiting for it."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid() or process.stdin is None:
            return
        with contextlib.suppress(OSError, ValueError):
            process.stdin.write(json.dumps({"quit": True}) + "\n")
            process.stdin.close()


_writer = Writer()


def writer() -> Writer:
    """Return the writer that all trackers of this process share."""
    return _writer


# --- the process itself ---------------------------------------------------------------------------------------------------------------


class _Run:
    """Sends one spool, and tries again after failures.

    Args:
        path: the spool's file.
        reply: sends a reply about it to the training.
        uri: the address that is masked in the spool; None: it is kept, or holds no secret.
    """

    def __init__(self, path: Path, reply: Callable[..., None], uri: str | None = None) -> None:
        from speechtrain.tracking.mlflow.sender import Sender
        from speechtrain.tracking.mlflow.spool import Spool

        self.spool = Spool(path)
        self.reply = reply
        self.sender = Sender(self.spool, lambda text: reply(warning=text), uri)
        self.system: SystemMetrics | None = None
        self.failures = 0
        self.due = 0.0
        self.waits = True
        self.over = False
        self.checkpoint_due = float("inf")
        self._announced = False
        self._unwritten: list[dict[str, Any]] = []

    def add(self, events: list[dict[str, Any]]) -> None:
        """Add events that the disk had no room for; they are sent after what is spooled."""
        self._unwritten += events
        self.waits = True

    def send(self) -> None:
        """Send what waits; after a failure it is tried again later."""
        from speechtrain.tracking.mlflow.leftovers import send_remaining

        try:
            if not self._announced:
                send_remaining(self.spool.path.parent.parent, besides=self.spool.path)
            with self.spool.lock():
                self.sender.advance()
            while self._unwritten:
                self.sender.send([self._unwritten[0]])
                self._unwritten.pop(0)
        except UserError as error:
            self.over = True
            self.reply(refused=str(error))
            return
        except Exception as error:
            self.failures += 1
            self.due = time.monotonic() + pause_after(self.failures)
            self.waits, self.checkpoint_due = True, float("inf")  # it waits with the events
            self.reply(away=first_line(error), failures=self.failures)
            return
        if self.failures:
            self.reply(away=None, failures=0)
        self.failures, self.waits, self.due = 0, False, 0.0
        self.checkpoint_due = self.sender.unkept_due if self.sender.unkept else float("inf")
        if self.sender.run_id and not self._announced:
            self._announced = True
            self.reply(run_id=self.sender.run_id)
            self._start_system_metrics()
        if self.sender.closed and self.sender.finish():
            self.over = True
            self.reply(closed=True)
        elif self.sender.closed and self.sender.unkept:  # which the end of the run waits for, but not for long
            self.reply(away=self.sender.unkept, failures=self.sender.unkept_failures)

    def is_due(self, now: float) -> bool:
        """Return whether there is something to send now, by `time.monotonic`."""
        return (self.waits and self.due <= now) or self.checkpoint_due <= now

    def _start_system_metrics(self) -> None:
        """Start to measure the machine, if the config of the run asks for it."""
        from speechtrain.tracking.mlflow.system_metrics import SystemMetrics

        if seconds := self.sender.open_event.get("system_metrics"):
            self.system = SystemMetrics(self.sender.client, self.sender.run_id, float(seconds), os.getppid())

    def sample(self) -> None:
        """Spool a sample of how busy the machine is."""
        assert self.system is not None
        with contextlib.suppress(OSError):
            self.spool.append(self.system.sample())
            self.waits = True

    def end(self) -> None:
        """Close the run, when the training has ended without closing it and all is sent."""
        try:
            self.sender.fail("its process died")
        except Exception:
            self.failures += 1
            self.due = time.monotonic() + pause_after(self.failures)
            return
        self.over = self.sender.finish() or not self.sender.unkept
        self.due = self.checkpoint_due


class _Server:
    """Reads commands, sends spools and replies.

    Commands: `attend` (a spool to send, with its `uri`, and `events` that could not be written), `forget` (a spool), `abandon` (a run id to
    close as failed, with `uri` and `reason`), `delete_last` (a run id of which what `resume=` needs is deleted, with `uri`), `quit`.
    Replies name their `spool` and hold `run_id`, `closed`, `refused`, `away` with `failures`, or a `warning`.
    """

    def __init__(self, parent: int) -> None:
        self.parent = parent
        self.commands: queue.Queue[dict[str, Any]] = queue.Queue()
        self.runs: dict[str, _Run] = {}
        self.abandoned: list[dict[str, Any]] = []
        self.searched: set[tuple[str, str]] = set()
        self.quitting = False

    def serve(self) -> None:
        """Serve until the training has ended and all is sent, or `_LINGER` seconds have passed since it ended."""
        threading.Thread(target=self._read_commands, daemon=True).start()
        deadline = float("inf")
        while not (self.quitting and (time.monotonic() > deadline or not (self.runs or self.abandoned))):
            self._handle_commands()
            if not self.quitting and os.getppid() != self.parent:
                self.quitting = True
            if self.quitting and deadline == float("inf"):
                deadline = time.monotonic() + _LINGER
                for run in self.runs.values():
                    run.waits = True  # for what was spooled without a command
            now = time.monotonic()
            for key, run in list(self.runs.items()):
                if run.system is not None and run.system.due <= now and not self.quitting:
                    run.sample()
                if run.is_due(now):
                    run.send()
                    self._fail_dead_runs(run)
                elif self.quitting and not run.waits and run.due <= now:
                    run.end()
                if run.over:
                    del self.runs[key]
            self._fail_abandoned()

    def _read_commands(self) -> None:
        for line in sys.stdin:
            with contextlib.suppress(ValueError):
                self.commands.put(json.loads(line))
        self.commands.put({"quit": True})

    def _handle_commands(self) -> None:
        """Wait for a command or until something is due, and handle all commands that are there."""
        now = time.monotonic()
        due = [run.due - now for run in self.runs.values() if run.waits or self.quitting]
        due += [run.checkpoint_due - now for run in self.runs.values()]
        due += [run.system.due - now for run in self.runs.values() if run.system is not None]
        with contextlib.suppress(queue.Empty):
            self._handle(self.commands.get(timeout=max(0.0, min([_POLL_SECONDS, *due]))))
            while True:
                self._handle(self.commands.get_nowait())

    def _handle(self, command: dict[str, Any]) -> None:
        path = command.get("attend") or command.get("forget")
        if "forget" in command:
            self.runs.pop(str(path), None)
        elif path is not None:
            if path not in self.runs and not Path(path).is_file() and not command.get("events"):
                return  # all was sent with a command before
            if path not in self.runs:
                self.runs[path] = _Run(Path(path), lambda **values: self._reply(path, **values), command.get("uri"))
            self.runs[path].waits = True
            self.runs[path].add(command.get("events", []))
        elif "abandon" in command or "delete_last" in command:
            self.abandoned.append(command)
        elif "quit" in command:
            self.quitting = True

    def _fail_dead_runs(self, run: _Run) -> None:
        """Close runs that are stored as running although their process is gone, once for each experiment."""
        from speechtrain.tracking.mlflow.leftovers import fail_dead_runs

        experiment = str(run.sender.open_event.get("experiment"))
        if run.sender.run_id and not run.failures and (run.sender.uri, experiment) not in self.searched:
            self.searched.add((run.sender.uri, experiment))
            with contextlib.suppress(Exception):  # a kindness to earlier runs; this one does not depend on it
                fail_dead_runs(run.sender.client, experiment)

    def _fail_abandoned(self) -> None:
        from speechtrain.tracking.mlflow.client import open_client
        from speechtrain.tracking.mlflow.resume_store import ResumeStore, is_refusal
        from speechtrain.tracking.mlflow.runs import fail_run

        unsent = []
        for item in self.abandoned:
            if item.get("due", 0.0) > time.monotonic():
                unsent.append(item)
                continue
            try:
                if "delete_last" in item:
                    ResumeStore(open_client(item["uri"]), item["delete_last"]).delete()
                else:
                    fail_run(open_client(item["uri"]), item["abandon"], item["reason"])
            except Exception as error:
                tries = item.get("tries", 0) + 1
                if "delete_last" in item and (is_refusal(error) or tries == 1):
                    self._warn_of_kept(item, error)
                if not is_refusal(error):
                    unsent.append({**item, "tries": tries, "due": time.monotonic() + pause_after(tries)})
        self.abandoned = unsent

    def _warn_of_kept(self, item: Mapping[str, Any], error: Exception) -> None:
        """Tell that what a run would have gone on from is not deleted."""
        from speechtrain.tracking.mlflow.resume_store import is_refusal

        place = f"MLflow at {masked(item['uri'])}"
        what = f"what run {item['delete_last']} would have gone on from ({first_line(error)})"
        if is_refusal(error):
            self._reply("", warning=f"{place} refuses to delete {what}; it takes up room there until its folder resume/ is deleted")
        else:
            self._reply("", warning=f"{place} does not delete {what}; it is tried again until the command ends")

    @staticmethod
    def _reply(path: str, **values: Any) -> None:
        with contextlib.suppress(OSError, ValueError):
            replies = unguarded_stdout()  # to the training, which finds a spool by its path and masks what it prints
            replies.write(json.dumps({"spool": path, **values}) + "\n")
            replies.flush()


def main() -> None:
    """Run the writer process; its first argument is the number of the process that started it."""
    guard_outputs()
    logging.disable(logging.ERROR)  # the process that started it logs what a user should read
    for number in (signal.SIGTERM, signal.SIGINT):  # meant for the training, which has something to say yet when it gets them
        signal.signal(number, signal.SIG_IGN)
    _Server(int(sys.argv[1])).serve()
