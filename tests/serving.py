"""A service on a port of this machine, and clients that speak to it byte by byte."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import soundfile
import uvicorn

from speechtrain.config.compose import compose_command
from speechtrain.config.schemas.commands import ServeConfig
from speechtrain.inference.recognizer import Recognizer
from speechtrain.inference.service.service import Service
from speechtrain.serve import server_of


class Served:
    """A service that runs in a thread."""

    def __init__(self, models: dict[str, Recognizer], *keys: str) -> None:
        self.service = Service(models, compose_command(ServeConfig, ["max_megabytes=1", "max_seconds=5", *keys]))
        self.server: uvicorn.Server = server_of(self.service)
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listening]})
        self.address = self.listening.getsockname()

    def connect(self, receive_buffer: int | None = None) -> socket.socket:
        connection = socket.socket()
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(60)
        connection.connect(self.address)
        return connection

    def ask(self, content: bytes, *headers: str, path: str = "/transcribe", method: str = "POST") -> tuple[int, str]:
        with self.connect() as connection:
            connection.sendall(request(len(content), *headers, path=path, method=method) + content)
            return answer(connection)

    def counted(self, status: str) -> float:
        return self.service.registry.get_sample_value("speechtrain_requests_total", {"status": status}) or 0.0


@contextlib.contextmanager
def serving(models: dict[str, Recognizer]) -> Iterator[Callable[..., Served]]:
    """Start services on models, which end with the block."""
    with contextlib.ExitStack() as stack:

        def start(*keys: str) -> Served:
            served = Served(models, *keys)
            served.thread.start()
            stack.callback(served.thread.join, 60)
            stack.callback(setattr, served.server, "should_exit", True)
            return served

        yield start


def request(length: int, *headers: str, path: str = "/transcribe", method: str = "POST") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: here", f"Content-Length: {length}", *headers, "", ""]
    return "\r\n".join(lines).encode()


def answer(connection: socket.socket) -> tuple[int, str]:
    """The next answer on a connection: its status and its body."""
    with connection.makefile("rb") as file:
        status = int(file.readline().split()[1])
        length = 0
        while (line := file.readline().strip().lower()) not in (b"", b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        return status, file.read(length).decode()


def rest(connection: socket.socket) -> bytes:
    """What still comes before the service closes a connection."""
    got = b""
    with contextlib.suppress(ConnectionError):
        while data := connection.recv(1 << 16):
            got += data
    return got


def wav(samples: np.ndarray | None = None, kind: str = "WAV", **options: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.1 * np.sin(np.arange(4000) * 0.3) if samples is None else samples, 8000, format=kind, **options)
    return buffer.getvalue()


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not what():
        assert time.monotonic() < until
        time.sleep(0.01)
