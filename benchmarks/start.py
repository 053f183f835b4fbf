"""What it costs to start: seconds of CPU and wall of commands, beside those of `import torch`.

    python benchmarks/start.py [repeats]

A small model is trained first. Each command is a fresh process with one thread; medians are printed, in seconds and
as multiples of `import torch`.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TINY = [
    "data=synthetic",
    "features=logmel_8k",
    "model=tdnn",
    "tracking=[]",
    "report.enabled=false",
    "trainer.epochs=1",
    "data.train_size=40",
]
PYTHON = [sys.executable]
PROGRAM = [sys.executable, "-m", "speechtrain"]
COMMANDS = {
    "import torch": [*PYTHON, "-c", "import torch"],
    "transcribe": [*PYTHON, "-m", "speechtrain.transcribe", "from=run", "one.wav"],
    "--help": [*PROGRAM, "--help"],
    "a mistake": [*PROGRAM, "model.chanels=3"],
    "first step": [*PROGRAM, *TINY, "trainer.max_steps=1", "trainer.checkpoint.save_last=false", "trainer.checkpoint.save_top_k=0"],
}


def cost(command: list[str], folder: Path) -> tuple[float, float]:
    """Seconds of CPU (user and system, of the process and what it starts) and of wall."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != (2 if command == COMMANDS["a mistake"] else 0):
        raise SystemExit(f"{' '.join(command)} exited with code {done.returncode}:\n{done.stderr}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def main() -> None:
    """Print a line for each command."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cost([*PROGRAM, *TINY, "hydra.run.dir=run"], folder)
        write = "import numpy, soundfile; soundfile.write('one.wav', 0.1 * numpy.random.default_rng(0).standard_normal(16000), 8000)"
        cost([*PYTHON, "-c", write], folder)
        found = {title: [cost(command, folder) for _ in range(repeats)] for title, command in COMMANDS.items()}
    medians = {title: [statistics.median(column) for column in zip(*costs, strict=True)] for title, costs in found.items()}
    torch_cpu, torch_wall = medians["import torch"]
    print(f"{'':14}{'CPU s':>8}{'x torch':>9}{'wall s':>9}{'x torch':>9}")
    for title, (cpu, wall) in medians.items():
        print(f"{title:14}{cpu:8.2f}{cpu / torch_cpu:9.2f}{wall:9.2f}{wall / torch_wall:9.2f}")


if __name__ == "__main__":
    main()
