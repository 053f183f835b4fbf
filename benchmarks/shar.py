"""Why `data=shar` asks for each utterance by itself: requests for parts beside streams of whole tar files, and how well a buffer shuffles.

    python benchmarks/shar.py DIR [--latency 0,20,100]      DIR holds train.jsonl and its audio
    python benchmarks/shar.py --buffers                     only the simulation of buffers, which needs no data

The server is a process of its own on this machine, which waits before each answer. What is fetched is not decoded. `benchmarks/data.py` has
the batches that are made of it.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

SPEAKERS, OF_A_SPEAKER, SHARD = 280, 100, 1000  # as in 100 hours of LibriSpeech, sorted by speaker
BATCH = 16


def serve(root: Path, latency: float) -> None:
    """Serve a folder on the loopback interface until the process is ended, and print the port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16
        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            time.sleep(latency)
            path = root / self.path.lstrip("/")
            total = path.stat().st_size
            span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            begin, end = (int(span[1]), min(int(span[2]) + 1, total)) if span else (0, total)
            self.send_response(206 if span else 200)
            if span:
                self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{total}")
            self.send_header("Content-Length", str(end - begin))
            self.end_headers()
            with path.open("rb") as file:
                file.seek(begin)
                while begin < end and (piece := file.read(min(1 << 20, end - begin))):
                    self.wfile.write(piece)
                    begin += len(piece)

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    with Server(("127.0.0.1", 0), Handler) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()


@contextlib.contextmanager
def serving(root: Path, latency: float) -> Iterator[str]:
    """Give the address of a server in a process of its own."""
    with subprocess.Popen([sys.executable, __file__, "--serve", str(root), str(latency)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


def make_shards(root: Path, folder: Path, shard_size: int) -> None:
    """Write a corpus with a manifest as tar files."""
    from speechtrain import shard

    if shard.run(["data=manifest", f"data.root={root}", "data.train=train.jsonl", f"out={folder}", f"shard_size={shard_size}"]):
        raise SystemExit("the corpus cannot be written")


def by_parts(address: str, connections: int) -> int:
    """Fetch all utterances in random order, each by itself; returns their bytes."""
    from speechtrain.data.corpora.shar import Shar

    source = Shar(address, {"by": "utterance", "val": 0, "test": 0, "seed": 0}, connections, 8, 30.0)
    cuts = list(source.load(None).splits["train"])
    random.Random(0).shuffle(cuts)
    total = 0
    for begin in range(0, len(cuts), BATCH):
        source.prefetch(cuts[begin : begin + 3 * BATCH], source)
        for cut in cuts[begin : begin + BATCH]:
            total += len(source._ahead.take(source._part(cut)))
    return total


def by_streams(address: str, names: Sequence[str]) -> int:
    """Read all tar files from beginning to end, one behind the other; returns the bytes of their recordings."""
    import urllib3

    total = 0
    with urllib3.PoolManager() as pool:
        for name in names:
            response = pool.request("GET", f"{address}/{name}", preload_content=False)
            with tarfile.open(fileobj=response, mode="r|", bufsize=1 << 18) as tar:
                for member in tar:
                    content = tar.extractfile(member)
                    if content is not None and not member.name.endswith(".json"):
                        total += len(content.read())
            response.release_conn()
    return total


def measured(fetch: Callable[[], int]) -> tuple[float, float, float]:
    """Megabytes a second of wall time, CPU and wall seconds; the median of three."""
    times = []
    for _ in range(3):
        cpu, wall = time.process_time(), time.perf_counter()
        size = fetch()
        times.append((time.perf_counter() - wall, time.process_time() - cpu, size))
    wall, cpu, size = sorted(times)[1]
    return size / 1e6 / wall, cpu, wall


def compare(root: Path, latencies: Sequence[float]) -> None:
    """Print how fast recordings come in both ways."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "shards"
        make_shards(root, folder, 50)
        names = sorted(str(path.relative_to(folder)) for path in folder.glob("train/recording.*.tar"))
        print(f"{'latency':>8s} {'way':34s} {'MB/s':>8s} {'CPU s':>8s} {'wall s':>8s}")
        for latency in latencies:
            with serving(folder, latency / 1000) as address:
                ways: dict[str, Callable[[], int]] = {
                    f"parts, {connections} connections": lambda connections=connections: by_parts(address, connections)  # type: ignore[misc]
                    for connections in (1, 4, 16, 32)
                }
                ways["whole tar files, one behind the other"] = lambda: by_streams(address, names)
                for name, fetch in ways.items():
                    print("{:5.0f} ms {:34s} {:8.1f} {:8.2f} {:8.2f}".format(latency, name, *measured(fetch)))


def buffered(buffer: int, rng: random.Random) -> list[int]:
    """Utterances in the order in which shards in random order leave a buffer, from which each time one is drawn."""
    shards = [list(range(begin, begin + SHARD)) for begin in range(0, SPEAKERS * OF_A_SPEAKER, SHARD)]
    rng.shuffle(shards)
    held: list[int] = []
    order: list[int] = []
    for each in itertools.chain.from_iterable(shards):
        if len(held) < buffer:
            held.append(each)
            continue
        place = rng.randrange(buffer)
        order.append(held[place])
        held[place] = each
    rng.shuffle(held)
    return order + held


def buffers() -> None:
    """Print how far batches from a buffer are from batches of all utterances."""
    rng = random.Random(0)
    total = SPEAKERS * OF_A_SPEAKER
    print(f"{total:,} utterances sorted by {SPEAKERS} speakers, tar files of {SHARD:,}, batches of {BATCH}; mean of 20 epochs")
    print(f"{'buffer':>8s} {'speakers in a batch':>20s} {'pairs of one speaker':>22s} {'times as many as they should be':>33s}")
    expected = (OF_A_SPEAKER - 1) / (total - 1)
    for buffer in (1, 1000, 2000, 5000, 10_000, 20_000, total):
        distinct, pairs = [], []
        for _ in range(20):
            speakers = np.array(buffered(buffer, rng)).reshape(-1, BATCH) // OF_A_SPEAKER
            ordered = np.sort(speakers, axis=1)
            distinct.append(float((np.diff(ordered, axis=1) != 0).sum(axis=1).mean()) + 1)
            same = speakers[:, :, None] == speakers[:, None, :]
            pairs.append(float((same.sum() - speakers.size) / (speakers.size * (BATCH - 1))))
        share = float(np.mean(pairs))
        name = "all" if buffer == total else f"{buffer:,}"
        print(f"{name:>8s} {np.mean(distinct):20.2f} {100 * share:20.2f} % {share / expected:33.2f}")


def main() -> None:
    """Measure and print tables."""
    if sys.argv[1:2] == ["--serve"]:
        serve(Path(sys.argv[2]), float(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", nargs="?", type=Path)
    parser.add_argument("--latency", default="0,20,100", help="ms before each answer")
    parser.add_argument("--buffers", action="store_true")
    arguments = parser.parse_args()
    if arguments.root is not None and not arguments.buffers:
        compare(arguments.root, [float(each) for each in arguments.latency.split(",")])
    buffers()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
