"""A table of learning curves, on which sweepers can be replayed.

    python benchmarks/sweep_table.py digit_strings DIR table.csv.gz          DIR holds train.jsonl and valid.jsonl
    python benchmarks/sweep_table.py kathleen DIR table.csv.gz --share 1/2   every second of what is left; --share 2/2 in another process
    python benchmarks/sweep_table.py kathleen DIR table.csv.gz --pack        what was made, as one compressed file

Configs are drawn from one space by their number, so that any beginning of the table is a random sample; each third one is trained with a
second seed as well. What is in the table already is not trained again, so the command may be stopped and given again. One thread a process.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import argparse
import csv
import gzip
import io
import json
import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path

from sweep_space import draw, overrides_of

import speechtrain
from speechtrain.backends.callbacks import Callback, Control

CORPORA = {
    "digit_strings": ["experiment=digit_strings", "data.test=null", "trainer.epochs=27", "data.limit_utterances=150"],
    "kathleen": ["data=manifest", "data.test=null", "model=tdnn", "features.n_mels=40", "trainer.epochs=27", "data.batch_seconds=60"],
}
"""Overrides of each corpus: 27 epochs, three rungs of a halving by three."""
SHARED = ["backend.threads=1", "tracking=[]", "report.enabled=false", "trainer.val_every_n_epochs=1", "scheduler=warmup_cosine"]
SEED_EVERY = 3
METRICS = ("train/loss", "val/loss", "val/cer", "val/wer")
COLUMNS = ("config", "seed", "epoch", *METRICS, "cpu_seconds")


class Curve(Callback):
    """Metrics and CPU seconds at the end of each epoch."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float], float]] = []
        self._start = time.process_time()

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, float], control: Control) -> None:  # noqa: ARG002
        """Note the epoch."""
        self.rows.append((epoch, {name: metrics.get(name, float("nan")) for name in METRICS}, time.process_time() - self._start))


def wanted(configs: int) -> Iterator[tuple[int, int]]:
    """Give (config, seed) in the order in which they are trained."""
    for number in range(configs):
        yield number, 1
        if number % SEED_EVERY == 0:
            yield number, 2


def train(corpus: str, data: str, number: int, seed: int, more: tuple[str, ...] = ()) -> str:
    """Return the lines of one training."""
    curve = Curve()
    overrides = [*CORPORA[corpus], *SHARED, f"data.root={data}", f"seed={seed}", *overrides_of(draw(number)), *more]
    try:
        with redirect_stdout(io.StringIO()):  # the config as a tree
            speechtrain.train(speechtrain.compose(overrides), callbacks=[curve], reuse_data=True)
    except speechtrain.errors.RunError as error:  # a learning rate that diverges: the curve ends there
        print(f"config {number}: {error}", file=sys.stderr)
    text = io.StringIO()
    write = csv.writer(text, lineterminator="\n")
    for epoch, metrics, seconds in curve.rows:
        write.writerow([number, seed, epoch, *(f"{metrics[name]:.5g}" for name in METRICS), f"{seconds:.2f}"])
    return text.getvalue()


def unpacked(table: Path, part: str) -> Path:
    """Return the file to which one process adds a line a training."""
    return table.with_name(f"{table.name}.{part}.jsonl")


def read(table: Path) -> dict[tuple[int, int], str]:
    """Return the lines of each (config, seed) that was trained, packed or not."""
    made: dict[tuple[int, int], str] = {}
    if table.exists():
        for line in gzip.decompress(table.read_bytes()).decode().splitlines()[1:]:
            number, seed, _ = line.split(",", 2)
            made[int(number), int(seed)] = made.get((int(number), int(seed)), "") + line + "\n"
    for path in sorted(table.parent.glob(unpacked(table, "*").name)):
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            made[entry["config"], entry["seed"]] = entry["rows"]
    return made


def pack(table: Path) -> None:
    """Put what all processes made into the compressed file."""
    text = ",".join(COLUMNS) + "\n" + "".join(rows for _, rows in sorted(read(table).items()))
    temporary = table.with_name(f"{table.name}.tmp")
    temporary.write_bytes(gzip.compress(text.encode(), mtime=0))
    temporary.rename(table)
    for path in table.parent.glob(unpacked(table, "*").name):
        path.unlink()


def main() -> None:
    """Train what the table lacks, and put it in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", choices=CORPORA)
    parser.add_argument("data", help="folder of the corpus")
    parser.add_argument("table", type=Path, help="compressed CSV file, made or continued")
    parser.add_argument("--configs", type=int, default=300)
    parser.add_argument("--share", default="1/1", help="k/n: every nth of what is left, from the kth on")
    parser.add_argument("--pack", action="store_true", help="train nothing, put what was made into the table")
    given = parser.parse_args()
    if given.pack:
        pack(given.table)
        return
    part, parts = map(int, given.share.split("/"))
    logging.disable(logging.INFO)
    table = read(given.table)
    missing = [each for each in wanted(given.configs) if each not in table][part - 1 :: parts]
    lines = unpacked(given.table, f"{part}of{parts}")
    data = str(Path(given.data).resolve())
    if missing:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            train(given.corpus, data, 0, 1, ("trainer.epochs=1",))  # so that imports and features are no part of the first curve
            os.chdir("/")
    for count, (number, seed) in enumerate(missing, 1):
        start = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            text = train(given.corpus, data, number, seed)
            os.chdir("/")
        with lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"config": number, "seed": seed, "rows": text}) + "\n")
        print(f"{count} of {len(missing)}: config {number} seed {seed} {time.process_time() - start:.0f} CPU-s", flush=True)


if __name__ == "__main__":
    main()
