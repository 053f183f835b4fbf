"""The fenced blocks of the documentation, and a shell in which their commands are typed.

bash reads the lines as a user types them: quotes, comments, pipes, `&&`, continued lines. The programs that it finds are small scripts that
hand their words, folder and standard streams to the test, which starts the real program with words added that make it short.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FENCE = re.compile(r"^```([\w-]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SCRIPT = """#!{python} -IS
import json, os, socket, sys
desk = socket.socket(socket.AF_UNIX)
desk.connect({address!r})
request = json.dumps([os.path.basename(sys.argv[0]), sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(desk, [len(request).to_bytes(8, "big")], [0, 1, 2])
desk.sendall(request)
sys.exit(int(desk.recv(16) or b"70"))
"""


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, the line that its content starts in, the word behind the fence, and the content."""

    page: str
    line: int
    language: str
    content: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(path: Path, name: str) -> list[Block]:
    """The fenced blocks of a page."""
    text = path.read_text(encoding="utf-8")
    return [Block(name, text.count("\n", 0, found.start()) + 2, found[1], found[2]) for found in FENCE.finditer(text)]


@dataclass
class Call:
    """A program that the shell has started: its name, words, folder, environment and standard streams."""

    program: str
    words: list[str]
    folder: Path
    environment: dict[str, str]
    streams: list[int]

    def __str__(self) -> str:
        return " ".join([self.program, *self.words])

    def run(self, *command: str) -> int:
        """Run a command in place of the program, and return its exit code."""
        stdin, stdout, stderr = self.streams
        done = subprocess.run(command, cwd=self.folder, env=self._environment, stdin=stdin, stdout=stdout, stderr=stderr, check=False)
        return done.returncode

    def beside(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a command that goes on while the shell does; what it writes is not kept."""
        return subprocess.Popen(command, cwd=self.folder, env=self._environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, **self.environment, "PATH": os.environ["PATH"]}

    def write(self, content: bytes) -> None:
        """Write to the standard output of the program, as far as somebody reads it."""
        with contextlib.suppress(BrokenPipeError), os.fdopen(os.dup(self.streams[1]), "wb") as output:
            output.write(content)


class Shell:
    """bash, which finds only the programs in `treatments`, each a function that takes a call and returns an exit code.

    Attributes:
        calls: what was started, in order.
    """

    def __init__(self, folder: Path, treatments: Mapping[str, Callable[[Call], int]]) -> None:
        self.folder = folder
        self.treatments = treatments
        self.calls: list[Call] = []
        self.mistakes: list[BaseException] = []
        self.address = f"\0speechtrain-documented-{os.getpid()}-{folder.name}"
        programs = folder / ".venv" / "bin"
        programs.mkdir(parents=True, exist_ok=True)
        for name in treatments:
            (programs / name).write_text(SCRIPT.format(python=sys._base_executable, address=self.address))  # type: ignore[attr-defined]
            (programs / name).chmod(0o755)
        activate = (Path(sys.prefix) / "bin" / "activate").read_text(encoding="utf-8")
        (programs / "activate").write_text(activate.replace(sys.prefix, str(folder / ".venv")))

    def run(self, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run lines in a fresh bash until one fails; a pattern without quotes that matches no file fails, as it does in zsh."""
        env = {"PATH": str(self.folder / ".venv" / "bin"), "HOME": str(self.folder), "COLUMNS": "200", **environment}
        bash = shutil.which("bash") or "/bin/bash"
        with self._desk():
            done = subprocess.run(
                [bash, "--norc", "-O", "failglob", "-e", "-o", "pipefail", "-c", script],
                cwd=self.folder,
                env=env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=300,
            )
        if self.mistakes:
            raise self.mistakes[0]
        return done

    @contextlib.contextmanager
    def _desk(self) -> Iterator[None]:
        with socket.socket(socket.AF_UNIX) as desk:
            desk.bind(self.address)
            desk.listen()
            threading.Thread(target=self._serve, args=(desk,), daemon=True).start()
            yield
            desk.shutdown(socket.SHUT_RDWR)

    def _serve(self, desk: socket.socket) -> None:
        while True:
            try:
                connection, _ = desk.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            size, streams, _, _ = socket.recv_fds(connection, 8, 3)
            request: Any = b""
            while len(request) < int.from_bytes(size, "big"):
                request += connection.recv(1 << 16)
            program, words, folder, environment = json.loads(request)
            call = Call(program, words, Path(folder), environment, streams)
            self.calls.append(call)
            code = 1
            try:
                code = self.treatments[program](call)
            except BaseException as error:  # noqa: BLE001 # raised where the test waits for the shell
                self.mistakes.append(error)
            for stream in streams:
                os.close(stream)
            connection.sendall(str(code % 256).encode())
