"""Many clients at once on loopback: errors, latency, audio a second, and whether memory grows.

    python benchmarks/serve.py from=RUN clients=64 seconds=60 audio=a.wav

The service runs as `python -m speechtrain.serve` in a process of its own; each client sends the next request when it has its answer.
"""

import asyncio
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import psutil


async def client(url: str, content: bytes, until: float, took: list[float], status: Counter[str]) -> None:
    """Ask until it is time to stop."""
    async with httpx.AsyncClient(timeout=60) as http:
        while time.perf_counter() < until:
            start = time.perf_counter()
            try:
                answer = await http.post(url, content=content)
                status[str(answer.status_code)] += 1
            except httpx.HTTPError as error:
                status[type(error).__name__] += 1
            took.append(time.perf_counter() - start)


async def main() -> None:
    """Start the service, warm it up, measure."""
    options = dict(item.split("=", 1) for item in sys.argv[1:])
    count, seconds = int(options.get("clients", 64)), float(options.get("seconds", 60))
    content = Path(options["audio"]).read_bytes()
    command = [sys.executable, "-m", "speechtrain.serve", f"from={options['from']}", "port=0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = server.stdout.readline()
        url = line.split()[1]
        process = psutil.Process(server.pid)
        memory: list[float] = []
        before = 0
        for part in range(2):  # the first warms up
            took: list[float] = []
            status: Counter[str] = Counter()
            until = time.perf_counter() + (seconds if part else 5)
            work = [asyncio.create_task(client(f"{url}/transcribe", content, until, took, status)) for _ in range(count)]
            while any(not task.done() for task in work):
                memory.append(process.memory_info().rss / 1e6)
                await asyncio.sleep(1)
            before = before or len(memory)
        health = httpx.get(f"{url}/health").json()
        p50, p95, p99 = np.quantile(took, [0.5, 0.95, 0.99])
        print(f"{count} clients, {seconds:g} s: {len(took)} requests, {dict(status)}")
        print(f"latency {1000 * p50:.0f} ms in the middle, {1000 * p95:.0f} at 95 %, {1000 * p99:.0f} at 99 %")
        print(f"memory {memory[before]:.0f} MB after the warm-up, {memory[-1]:.0f} MB at the end, {max(memory[before:]):.0f} MB at most")
        print(f"real-time factor {health['real_time_factor']}")
    finally:
        server.terminate()
        server.wait(20)


asyncio.run(main())
