"""An HTTP server that sends parts of files, and fails as servers do."""

from __future__ import annotations

import base64
import http.server
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(eq=False)
class RangeServer:
    """What a server does, and what it was asked for.

    Attributes:
        fails_each: every nth answer is 503; 0: none.
        cuts_each: every nth answer is cut off in its middle.
        login: NAME:PASSWORD that it asks for.
        ranges: whether it sends parts of files.
        refusal: what it says with each 403; None: it allows all.
        moved_to: address that it sends on to.
        hang_up: whether it closes each connection behind an answer without saying so.
        tls: files of its certificate and of the key; None: it speaks without encryption.
        authorized: requests with a name and a password.
        asked: path and first byte of each request.
    """

    root: Path
    fails_each: int = 0
    cuts_each: int = 0
    login: str | None = None
    ranges: bool = True
    refusal: bytes | None = None
    moved_to: str | None = None
    hang_up: bool = False
    tls: tuple[Path, Path] | None = None
    address: str = ""
    asked: list[tuple[str, int]] = field(default_factory=list)
    failed: int = 0
    authorized: int = 0
    lock: Any = field(default_factory=threading.Lock)


@contextmanager
def serving(root: Path, **options: Any) -> Iterator[RangeServer]:
    """Serve a folder on the loopback interface."""
    state = RangeServer(root, **options)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_HEAD(self) -> None:
            self.answer(403)

        def do_GET(self) -> None:
            path = root / self.path.lstrip("/")
            span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            begin, end = (int(span[1]), int(span[2]) + 1) if span else (0, 1 << 60)
            with state.lock:
                state.asked.append((self.path, begin))
                number = len(state.asked)
            allowed = state.login is None or self.headers.get("Authorization") == f"Basic {base64.b64encode(state.login.encode()).decode()}"
            if not allowed:
                return self.answer(401)
            state.authorized += "Authorization" in self.headers
            if state.moved_to is not None:
                return self.answer(302, Location=f"{state.moved_to}{self.path}")
            if state.hang_up:
                self.close_connection = True
            if state.refusal is not None:
                return self.answer(403, state.refusal)
            if state.fails_each and number % state.fails_each == 0:
                state.failed += 1
                return self.answer(503, b"too busy")
            if not path.is_file():
                return self.answer(404)
            whole = path.read_bytes()
            if not state.ranges:
                return self.answer(200, whole)
            if begin >= len(whole):
                return self.answer(416, Content_Range=f"bytes */{len(whole)}")
            content, place = whole[begin:end], f"bytes {begin}-{min(end, len(whole)) - 1}/{len(whole)}"
            if state.cuts_each and number % state.cuts_each == 1:
                state.failed += 1
                self.send_response(206)
                self.send_header("Content-Range", place)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
                return None
            return self.answer(206, content, Content_Range=place)

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

    with Server(("127.0.0.1", 0), Handler) as server:
        if state.tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*state.tls)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        state.address = f"http{'s' if state.tls else ''}://127.0.0.1:{server.server_address[1]}"
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
