"""Good clients beside slow ones on loopback: whether the good are answered, whether memory stays, and how the end goes.

    python benchmarks/serve_attack.py from=RUN audio=a.wav clients=256 slow=250 seconds=180

A third of the slow clients send headers byte by byte, a third bodies, a third ask on and on and read no answer; each connects anew when it
is sent away. At the end the service gets SIGTERM under full load.
"""

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil

OPTIONS = dict(item.split("=", 1) for item in sys.argv[1:])
SECONDS = float(OPTIONS.get("seconds", 180))


def post(length: int) -> bytes:
    """Return the headers of a request."""
    return b"POST /transcribe HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n" % length


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Read an answer: status and body."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
    return int(head.split()[1]), await reader.readexactly(length)


class Attack:
    """Counts what clients got."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.ended = False
        self.statuses: Counter[str] = Counter()
        self.slow: Counter[str] = Counter()
        self.took: list[float] = []

    async def good(self, content: bytes) -> None:
        """Ask again when there is an answer, on one connection as long as it lives; 503 is asked again after its second."""
        while not self.ended:
            asking = False
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                with contextlib.closing(writer):
                    while not self.ended:
                        start, asking = time.perf_counter(), True
                        writer.write(post(len(content)) + content)
                        status, body = await answer(reader)
                        asking = False
                        assert status != 200 or "text" in json.loads(body)
                        self.statuses[str(status)] += 1
                        if status == 200:
                            self.took.append(time.perf_counter() - start)
                        elif status == 503:
                            await asyncio.sleep(1)
            except (OSError, asyncio.IncompleteReadError) as error:
                if asking:
                    self.statuses[type(error).__name__ + (" at the end" if self.ended else "")] += 1

    async def bad(self, kind: str) -> None:
        """Be slow in one of three ways, and begin again when sent away."""
        loop = asyncio.get_running_loop()
        first, then = {
            "headers": (b"", post(9)[:-2] + b"X-More: " + b"x" * 10**4),
            "body": (post(10**6), b"x" * 10**4),
            "reader": (b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n" * 10**4, b""),
        }[kind]
        while not self.ended:
            with contextlib.suppress(OSError), socket.socket() as connection:
                connection.setblocking(False)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                await loop.sock_connect(connection, ("127.0.0.1", self.port))
                begin = time.perf_counter()
                with contextlib.suppress(OSError, TimeoutError):
                    await asyncio.wait_for(loop.sock_sendall(connection, first), 1)
                with contextlib.suppress(OSError):
                    for place in range(10**4):
                        await asyncio.sleep(0.5)
                        if self.ended or (kind == "reader" and not await loop.sock_recv(connection, 1)):
                            break
                        await loop.sock_sendall(connection, then[place : place + 1])
                self.slow[f"{kind}, {round(time.perf_counter() - begin, -1):.0f} s"] += 1


async def main() -> None:
    """Start the service, attack it, end it."""
    content = Path(OPTIONS["audio"]).read_bytes()
    command = [sys.executable, "-m", "speechtrain.serve", f"from={OPTIONS['from']}", "port=0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    port = int(server.stdout.readline().split()[1].rpartition(":")[2])
    process, attack, memory = psutil.Process(server.pid), Attack(port), []
    tasks = [asyncio.create_task(attack.good(content)) for _ in range(int(OPTIONS.get("clients", 256)))]
    tasks += [asyncio.create_task(attack.bad(("headers", "body", "reader")[number % 3])) for number in range(int(OPTIONS.get("slow", 250)))]
    until = time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        await asyncio.sleep(SECONDS / 12)
        memory.append(process.memory_info().rss / 1e6)
        print(f"{SECONDS - until + time.perf_counter():4.0f} s: {memory[-1]:.0f} MB, {len(process.net_connections())} connections, "
              f"{dict(attack.statuses)}", flush=True)  # fmt: skip
    attack.ended = True
    server.terminate()
    start = time.perf_counter()
    await asyncio.to_thread(server.wait, 60)
    took = time.perf_counter() - start
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    p50, p95, p99 = np.quantile(attack.took, [0.5, 0.95, 0.99])
    print(f"good: {dict(attack.statuses)}; latency {p50:.2f} s in the middle, {p95:.2f} at 95 %, {p99:.2f} at 99 %")
    print(f"slow, when they were sent away: {dict(sorted(attack.slow.items()))}")
    print(f"memory {memory[0]:.0f} MB at first, {memory[-1]:.0f} at the end, {max(memory):.0f} at most")
    print(f"ended {took:.1f} s after SIGTERM with code {server.returncode}; log: {server.stderr.read()[-2000:]!r}")


asyncio.run(main())
