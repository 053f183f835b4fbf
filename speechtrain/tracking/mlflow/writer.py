"""A process beside the training that sends to MLflow, so that the training neither imports MLflow nor waits for it.

One process serves all runs of the process that started it, one after the other or at once. It is told which spools to attend to, line by
line on its standard input, and answers the same way. It outlives whoever started it by as long as it takes to send what was spooled:
a run whose process was killed is closed as failed at once.
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

from speechtrain.errors import UserError, first_line

if TYPE_CHECKING:
    from speechtrain.tracking.mlflow.system_metrics import SystemMetrics

log = logging.getLogger(__name__)

_LINGER = 60.0
"""Seconds that a writer whose training is gone tries to send the rest."""
_TICK = 1.0


# --- the training's side --------------------------------------------------------------------------------------------------------------


class Writer:
    """The writer process of this one, started when it is first needed, and again when it dies.

    Attributes:
        deaths: how often it has died before it was told to end.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0
        self._state: dict[str, dict[str, Any]] = {}
        self._attended: dict[str, str] = {}
        self._changed = threading.Condition()
        self._last_words: deque[str] = deque(maxlen=5)
        self.deaths = 0

    def attend(self, spool: Path) -> None:
        """Send this spool from now on, and start the process if there is none."""
        line = json.dumps({"attend": str(spool)})
        self._tell(line)
        self._attended[str(spool)] = line

    def tell(self, message: Mapping[str, Any]) -> None:
        """Anything else."""
        with contextlib.suppress(OSError):  # no process can be started: what is spooled stays
            self._tell(json.dumps(message, default=str))

    def state(self, spool: Path) -> dict[str, Any]:
        """What the writer has said of a spool."""
        with self._changed:
            return dict(self._state.get(str(spool), {}))

    def wait(self, spool: Path, until: Callable[[dict[str, Any]], bool], seconds: float) -> dict[str, Any]:
        """What the writer has said of a spool, once it is so, or after so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: until(self._state.get(str(spool), {})), seconds)
            return dict(self._state.get(str(spool), {}))

    def forget(self, spool: Path) -> None:
        """A spool that is finished, or given up."""
        with self._changed:
            self._state.pop(str(spool), None)
        self._attended.pop(str(spool), None)

    def _tell(self, line: str) -> None:
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
        for listen in (self._listen, self._overhear):
            threading.Thread(target=listen, args=(process,), daemon=True).start()
        atexit.register(self.close)
        return process

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with contextlib.suppress(ValueError):
                self._take(json.loads(line))
        with self._changed:
            self.deaths += process is self._process
            self._changed.notify_all()

    def _overhear(self, process: subprocess.Popen[str]) -> None:
        """What it says before it dies; libraries say a lot that nobody needs."""
        assert process.stderr is not None
        for line in process.stderr:
            if line.strip():
                self._last_words.append(line.strip())

    @property
    def last_words(self) -> str:
        """The last line that it wrote as an error."""
        return self._last_words[-1] if self._last_words else "no word"

    def _take(self, reply: dict[str, Any]) -> None:
        warning = reply.pop("warning", None)
        with self._changed:
            self._state.setdefault(str(reply.pop("spool", "")), {}).update(reply)
            self._changed.notify_all()
        if warning:
            log.warning("%s", warning)

    def close(self) -> None:
        """Let the process end when all is sent; it is not waited for."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid() or process.stdin is None:
            return
        with contextlib.suppress(OSError, ValueError):
            process.stdin.write(json.dumps({"quit": True}) + "\n")
            process.stdin.close()


_writer = Writer()


def writer() -> Writer:
    """The writer of this process."""
    return _writer


# --- the process itself ---------------------------------------------------------------------------------------------------------------


class _Run:
    """A spool that is being sent.

    Args:
        path: of the spool.
        say: answers to the training.
    """

    def __init__(self, path: Path, say: Callable[..., None]) -> None:
        from speechtrain.tracking.mlflow.sender import Sender
        from speechtrain.tracking.mlflow.spool import Spool

        self.spool = Spool(path)
        self.say = say
        self.sender = Sender(self.spool, lambda text: say(warning=text))
        self.system: SystemMetrics | None = None
        self.failures = 0
        self.due = 0.0
        self.waits = True
        self.over = False
        self._told = False
        self._direct: list[dict[str, Any]] = []

    def add(self, events: list[dict[str, Any]]) -> None:
        """Events that the disk had no room for; they come after what is spooled."""
        self._direct += events
        self.waits = True

    def send(self) -> None:
        """Send what waits; after a failure it waits on."""
        from speechtrain.tracking.mlflow.sender import send_leftovers

        try:
            if not self._told:
                send_leftovers(self.spool.path.parent.parent, besides=self.spool.path)
            with self.spool.lock():
                self.sender.advance()
            while self._direct:
                self.sender.do([self._direct[0]])
                self._direct.pop(0)
        except UserError as error:
            self.over = True
            self.say(refused=str(error))
            return
        except Exception as error:
            self.failures += 1
            self.due = time.monotonic() + _pause(self.failures)
            self.say(away=first_line(error), failures=self.failures)
            return
        if self.failures:
            self.say(away=None, failures=0)
        self.failures, self.waits, self.due = 0, False, 0.0
        if self.sender.run_id and not self._told:
            self._told = True
            self.say(run_id=self.sender.run_id)
            self._look_around()
        if self.sender.closed and self.sender.finish():
            self.over = True
            self.say(closed=True)

    def _look_around(self) -> None:
        """Watch the machine, if the run wants it."""
        from speechtrain.tracking.mlflow.system_metrics import SystemMetrics

        if seconds := self.sender.wishes.get("system_metrics"):
            self.system = SystemMetrics(self.sender.client, self.sender.run_id, float(seconds), os.getppid())

    def sample(self) -> None:
        """Spool how busy the machine is."""
        assert self.system is not None
        with contextlib.suppress(OSError):
            self.spool.append(self.system.sample())
            self.waits = True

    def end(self) -> None:
        """The training is gone and all is sent: close what it left open."""
        try:
            self.sender.bury("its process died")
        except Exception:
            self.failures += 1
            self.due = time.monotonic() + _pause(self.failures)
            return
        self.sender.finish()
        self.over = True


def _pause(failures: int) -> float:
    """Seconds until a server is tried again after so many failures in a row."""
    return float(min(15.0, 0.5 * 2.0**failures))


class _Server:
    """Reads commands, sends spools, answers."""

    def __init__(self, parent: int) -> None:
        self.parent = parent
        self.commands: queue.Queue[dict[str, Any]] = queue.Queue()
        self.runs: dict[str, _Run] = {}
        self.abandoned: list[dict[str, Any]] = []
        self.searched: set[tuple[str, str]] = set()
        self.quitting = False

    def serve(self) -> None:
        """Until there is nobody to serve and nothing to send, or it has been tried for long enough."""
        threading.Thread(target=self._listen, daemon=True).start()
        deadline = float("inf")
        while not (self.quitting and (time.monotonic() > deadline or not (self.runs or self.abandoned))):
            self._obey_all()
            if not self.quitting and os.getppid() != self.parent:
                self.quitting = True
            if self.quitting and deadline == float("inf"):
                deadline = time.monotonic() + _LINGER
                for run in self.runs.values():
                    run.waits = True  # for what was spooled without a word
            now = time.monotonic()
            for key, run in list(self.runs.items()):
                if run.system is not None and run.system.due <= now and not self.quitting:
                    run.sample()
                if run.waits and run.due <= now:
                    run.send()
                    self._bury_dead(run)
                elif self.quitting and not run.waits and run.due <= now:
                    run.end()
                if run.over:
                    del self.runs[key]
            self._abandon()

    def _listen(self) -> None:
        for line in sys.stdin:
            with contextlib.suppress(ValueError):
                self.commands.put(json.loads(line))
        self.commands.put({"quit": True})

    def _obey_all(self) -> None:
        """Take commands, after waiting until there is one or something is due."""
        now = time.monotonic()
        due = [run.due - now for run in self.runs.values() if run.waits or self.quitting]
        due += [run.system.due - now for run in self.runs.values() if run.system is not None]
        with contextlib.suppress(queue.Empty):
            self._obey(self.commands.get(timeout=max(0.0, min([_TICK, *due]))))
            while True:
                self._obey(self.commands.get_nowait())

    def _obey(self, command: dict[str, Any]) -> None:
        path = command.get("attend") or command.get("forget")
        if "forget" in command:
            self.runs.pop(str(path), None)
        elif path is not None:
            if path not in self.runs:
                self.runs[path] = _Run(Path(path), lambda **words: self._say(path, **words))
            self.runs[path].waits = True
            self.runs[path].add(command.get("events", []))
        elif "abandon" in command:
            self.abandoned.append(command)
        elif "quit" in command:
            self.quitting = True

    def _bury_dead(self, run: _Run) -> None:
        """Once for each experiment: close what says it runs and does not."""
        from speechtrain.tracking.mlflow.sender import bury_dead

        experiment = str(run.sender.wishes.get("experiment"))
        if run.sender.run_id and not run.failures and (run.sender.uri, experiment) not in self.searched:
            self.searched.add((run.sender.uri, experiment))
            with contextlib.suppress(Exception):  # a kindness to earlier runs; this one does not depend on it
                bury_dead(run.sender.client, experiment)

    def _abandon(self) -> None:
        from speechtrain.tracking.mlflow.sender import abandon, open_client

        left = []
        for item in self.abandoned:
            try:
                abandon(open_client(item["uri"]), item["abandon"], item["reason"])
            except Exception:
                if item.setdefault("tries", 0) < 5:
                    left.append({**item, "tries": item["tries"] + 1})
        self.abandoned = left

    @staticmethod
    def _say(path: str, **words: Any) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.write(json.dumps({"spool": path, **words}) + "\n")
            sys.stdout.flush()


def main() -> None:
    """The process, told by its first argument who started it."""
    logging.disable(logging.ERROR)  # whoever started it says what is worth saying
    for number in (signal.SIGTERM, signal.SIGINT):  # meant for the training, which has something to say yet when it gets them
        signal.signal(number, signal.SIG_IGN)
    _Server(int(sys.argv[1])).serve()
