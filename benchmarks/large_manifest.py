"""What a long manifest costs up to the first training step, the first time and from the second time on.

    python benchmarks/large_manifest.py DIR [--lines 1000,100000,1000000] [--files 250] [--trust] [--shar] [KEY=VALUE ...]

DIR holds train.jsonl and its audio. Its recordings are given so many names (`--files`, hard links or else copies), which the lines name in
turn, each line with an id and a text of its own; with `--shar` they lie in tar files, and it is the index that has so many lines. Each
command is a process of its own, which takes one training step of a small model; printed are its seconds of CPU time (user and system, all
processes that it starts included), the peak of its memory, and both as multiples of the shortest manifest's. Audio is read while training,
whatever the length (`data.check_hours=0`), so that the rows differ in their lists alone.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import shar

OPTIONS = [
    *(
        "data.check_hours=0",
        "data.batch_seconds=100",
        "data.split.val=1",
        "data.split.by=utterance",
        "data.on_shared.speaker=allow",
        "model=tdnn",
        "augment=none",
        "tracking=[]",
        "report.enabled=false",
    ),
    *(
        "trainer.max_steps=1",
        "trainer.limit_val_batches=1",
        "trainer.checkpoint.save_last=false",
        "trainer.checkpoint.save_top_k=0",
        "backend.threads=1",
    ),
]


class Cost(NamedTuple):
    """Seconds of CPU and of wall time, and the greatest memory in MB, of a command."""

    cpu: float
    wall: float
    memory: float


def write(source: Path, folder: Path, lines: int, files: int) -> None:
    """Write a manifest of so many lines, and the names of recordings that it needs."""
    entries = [json.loads(line) for line in (source / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    names = []
    for index in range(min(files, lines)):
        audio = source / entries[index % len(entries)]["audio_filepath"]
        name = f"audio/{index // 1000:04d}/{audio.stem}-{index:07d}{audio.suffix}"
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(audio, place)
        except OSError:
            shutil.copyfile(audio, place)
        names.append(name)
    with (folder / "train.jsonl").open("w", encoding="utf-8") as manifest:
        for index in range(lines):
            number = index % len(names)
            entry = entries[number % len(entries)]
            known = {
                "audio_filepath": names[number],
                "duration": entry["duration"],
                "text": f"{entry['text']} {index % 9973:04d}".translate(LETTERS),
            }
            manifest.write(json.dumps({**known, "utt_id": f"u{index:07d}", "speaker": entry["speaker"]}) + "\n")


def write_shards(source: Path, folder: Path, lines: int) -> None:
    """Write tar files, and an index of so many lines, each of which names one of the recordings in them."""
    shar.make_shards(source, folder / "shards", 100)
    for path in (folder / "shards").iterdir():
        path.rename(folder / path.name)
    with gzip.open(folder / "index.jsonl.gz", "rt", encoding="utf-8") as index:
        listed = list(map(json.loads, index))
    by_shard: list[list[dict[str, Any]]] = []
    for line in listed[1:]:
        if "shard" in line:
            by_shard.append([line])
        else:
            by_shard[-1].append(line)
    with gzip.open(folder / "index.jsonl.gz", "wt", encoding="utf-8", compresslevel=3) as index:
        index.write(json.dumps(listed[0]) + "\n")
        for number, (head, *utterances) in enumerate(by_shard):
            index.write(json.dumps(head) + "\n")
            for count in range(number, lines, len(by_shard)):
                line = utterances[count % len(utterances)]
                text = f"{line['text']} {count % 9973:04d}".translate(LETTERS)
                index.write(json.dumps({**line, "id": f"u{count:07d}", "text": text}) + "\n")


LETTERS = str.maketrans("0123456789", "abcdefghij")
"""Texts differ, as those of a corpus do, and hold letters alone."""


def cost(folder: Path, options: list[str]) -> Cost:
    """Run one training step in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SPEECHTRAIN_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "speechtrain", *OPTIONS, f"data.root={folder}", f"hydra.run.dir={folder}/run", *options]
    start = time.perf_counter()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        _, status, used = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit((folder / "log").read_text(encoding="utf-8"))
    return Cost(used.ru_utime + used.ru_stime, time.perf_counter() - start, used.ru_maxrss * 1024 / 1e6)


def main() -> None:
    """Print two rows for each length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--lines", default="1000,100000,1000000")
    parser.add_argument("--files", type=int, default=250)
    parser.add_argument("--trust", action="store_true", help="data.trust_durations=true: no file is opened before training")
    parser.add_argument("--shar", action="store_true", help="data=shar: recordings in tar files")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    parser.add_argument("options", nargs="*")
    given = parser.parse_args()
    options = [*given.options, *(["data.trust_durations=true", "data.sample_rate=16000"] if given.trust else [])]
    options.append("data=shar" if given.shar else "data=manifest")
    base: Cost | None = None
    print(f"{'lines':>10s} {'':8s} {'CPU s':>7s} {'wall s':>7s} {'peak MB':>8s} {'x CPU':>6s} {'x MB':>6s}")
    for lines in map(int, given.lines.split(",")):
        with tempfile.TemporaryDirectory(dir=given.folder) as name:
            if given.shar:
                write_shards(given.source, Path(name), lines)
            else:
                write(given.source, Path(name), lines, given.files)
            for time_of in ("first", "second"):
                found = cost(Path(name), options)
                base = base or found
                print(
                    f"{lines:10,d} {time_of:8s} {found.cpu:7.1f} {found.wall:7.1f} {found.memory:8.0f}"
                    f" {found.cpu / base.cpu:6.2f} {found.memory / base.memory:6.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
