"""What is fetched ahead does not keep a process from ending."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys

SCRIPT = """
import sys
from speechtrain.data.read_ahead import ReadAhead
from speechtrain.data.storage import HttpServer, Part

ahead = ReadAhead(HttpServer(sys.argv[1], retries=50, timeout=100.0), 4)
parts = [Part("a", place, 1) for place in range(48)]
ahead.prefetch(parts, ahead)
ahead.take(parts[0])
"""


def test_an_interrupted_process_ends_at_once_although_its_server_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        with subprocess.Popen([sys.executable, "-c", SCRIPT, address], stderr=subprocess.PIPE, text=True) as process:
            asked = [server.accept()[0] for _ in range(4)]
            process.send_signal(signal.SIGINT)
            try:
                _, printed = process.communicate(timeout=30)
            finally:
                process.kill()
                for each in asked:
                    each.close()
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in printed
