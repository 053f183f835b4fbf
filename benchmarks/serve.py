"""Many clients at once on loopback: errors, latency, audio a second, and whether memory grows.

    python benchmarks/serve.py from=RUN clients=64 seconds=60 audio=a.wav
    python benchmarks/serve.py from=RUN streams=64 seconds=60 audio=a.wav

The service runs as `python -m speechtrain.serve` in a process of its own; each client sends the next request when it has its answer.
A live stream sends the recording again and again as it would be spoken, in packets of 0.1 s: how far sending falls behind, how long the
service takes from a packet to its results (`speechtrain_stream_lag_seconds`), and from the end to the whole text.
"""

import asyncio
import json
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import psutil
import soundfile
import websockets


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


async def stream(url: str, samples: np.ndarray, rate: int, seconds: float, late: list[float], last: list[float], words: list[int]) -> None:
    """Speak for some seconds, and note how late each packet was sent, how long the whole text took, and how many words it has."""
    packet = rate // 10
    await asyncio.sleep(np.random.default_rng(len(late)).uniform(0, 0.1))
    async with websockets.connect(url.replace("http", "ws") + "/stream") as socket:
        await socket.send(json.dumps({"rate": rate, "encoding": "pcm16"}))
        messages = asyncio.create_task(asyncio.wait_for(done(socket), seconds + 60))
        begin = time.perf_counter()
        for number in range(round(10 * seconds)):
            await asyncio.sleep(begin + 0.1 * (number + 1) - time.perf_counter())
            await socket.send(np.take(samples, range(number * packet, (number + 1) * packet), mode="wrap").tobytes())
            late.append(time.perf_counter() - begin - 0.1 * (number + 1))
        await socket.send('{"type": "end"}')
        end = time.perf_counter()
        words.append(len((await messages).split()))
        last.append(time.perf_counter() - end)


async def done(socket: websockets.ClientConnection) -> str:
    """Return the whole text, when it comes."""
    async for message in socket:
        if (found := json.loads(message))["type"] == "done":
            return found["text"]
    raise RuntimeError("the stream ended early")


def quantile(buckets: list[tuple[float, float]], share: float) -> float:
    """Return the upper bound of the bucket of a histogram, cumulative counts by their bounds, that reaches a share."""
    return next(bound for bound, count in buckets if count >= share * buckets[-1][1])


async def live(url: str, count: int, seconds: float, path: str, process: psutil.Process) -> None:
    """Stream from many clients at once, and print how it went."""
    samples, rate = soundfile.read(path, dtype="int16")
    late, last, words = [], [], []
    before = process.cpu_times()
    await asyncio.gather(*(stream(url, samples, rate, seconds, late, last, words) for _ in range(count)))
    after = process.cpu_times()
    page = httpx.get(f"{url}/metrics").text
    buckets = [(float(bound), float(value)) for bound, value in re.findall(r'stream_lag_seconds_bucket\{le="([^"]+)"\} (\S+)', page)]
    cpu = (after.user + after.system - before.user - before.system) / (count * seconds)
    print(f"{count} live streams of {seconds:g} s: {sum(words)} words; CPU seconds of the service a second of audio {cpu:.4f}")
    middle, most = 1000 * np.quantile(late, [0.5, 0.99])
    print(f"packets sent late by {middle:.0f} ms in the middle, {most:.0f} at 99 %, {1000 * max(late):.0f} at most")
    lags = ", ".join(f"{quantile(buckets, share):g} at {100 * share:g} %" for share in (0.5, 0.95, 0.99))
    print(f"from a packet to its results, s at most: {lags}")
    print(f"from the end to the whole text {1000 * np.median(last):.0f} ms in the middle, {1000 * max(last):.0f} at most")


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
        if "streams" in options:
            await live(url, int(options["streams"]), seconds, options["audio"], process)
            return
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
