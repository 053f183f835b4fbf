"""What it costs to start: seconds of CPU and of wall time of commands, beside those of `import torch`.

    python benchmarks/start.py [repeats] [WORD ...]     with words, only the commands that hold one of them

A small model is trained first, tracked in MLflow. Each command is a fresh process with one thread, on a terminal of its own. Medians are
printed, in seconds and as multiples of `import torch`, and the seconds of wall time until the first line is on the screen.
"""

from __future__ import annotations

import os
import pty
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

TINY = ["data=synthetic", "features=logmel_8k", "model=tdnn", "report.enabled=false", "trainer.epochs=1", "data.train_size=40"]
ONE_STEP = ["tracking=[]", "trainer.max_steps=1", "trainer.checkpoint.save_last=false", "trainer.checkpoint.save_top_k=0"]
PYTHON = [sys.executable]
PROGRAM = [sys.executable, "-m", "speechtrain"]
COMMANDS = {
    "first step": [*PROGRAM, *TINY, *ONE_STEP],
    "--help": [*PROGRAM, "--help"],
    "transcribe": [*PROGRAM, "transcribe", "from=run", "one.wav"],
    "evaluate": [*PROGRAM, "evaluate", "from=run", "report=false"],
    "align": [*PROGRAM, "align", "from=run", "audio=one.wav", "text=abc"],
    "export": [*PROGRAM, "export", "from=run"],
}
MISTAKES = [
    *("model.chanels=3", "-m model.chanels=1,2", "evalute", "resume=zzz", "init_from=zzz", "rerun=zzz", "transcribe nothere.wav"),
    *("evaluate from=run decoder=beam decoder.lexicon=zzz", "evaluate from=zzz", "align from=zzz", "export from=run format=zzz"),
    *("inspect data.rot=zzz", "serve from=zzz", "compare zzz", "lm text=zzz", "sync zzz"),
]


class Cost(NamedTuple):
    """Seconds of CPU (user and system, of the process and what it starts), of wall time, and until the first line."""

    cpu: float
    wall: float
    first: float


def cost(command: list[str], folder: Path, code: int = 0) -> Cost:
    """Run a command on a terminal of its own; it has to end with the exit code."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        os.environ["OMP_NUM_THREADS"] = "1"
        os.execv(command[0], command)
    output, first = b"", float("nan")
    while chunk := read(terminal):
        first = time.perf_counter() - start if not output.strip() and chunk.strip() else first
        output += chunk
    os.close(terminal)
    ended = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if ended != code:
        raise SystemExit(f"{' '.join(command)} exited with code {ended}:\n{output.decode(errors='replace')}")
    return Cost(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall, first)


def read(terminal: int) -> bytes:
    """Return what a terminal shows next, nothing once its program has ended."""
    try:
        return os.read(terminal, 1 << 16)
    except OSError:
        return b""


def main() -> None:
    """Print a line for each command."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    chosen = {**{line: (command, 0) for line, command in COMMANDS.items()}, **{line: ([*PROGRAM, *line.split()], 2) for line in MISTAKES}}
    if words := sys.argv[2:]:
        chosen = {line: each for line, each in chosen.items() if any(word in line for word in words)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cost([*PROGRAM, *TINY, "hydra.run.dir=run"], folder)
        write = "import numpy, soundfile; soundfile.write('one.wav', 0.1 * numpy.random.default_rng(0).standard_normal(16000), 8000)"
        cost([*PYTHON, "-c", write], folder)
        print(f"{'':52}{'CPU s':>8}{'x torch':>9}{'wall s':>9}{'first line s':>14}")
        torch = 0.0
        for line, (command, code) in {"import torch": ([*PYTHON, "-c", "import torch"], 0), **chosen}.items():
            costs = [cost(command, folder, code) for _ in range(repeats)]
            cpu, wall, first = (statistics.median(column) for column in zip(*costs, strict=True))
            torch = torch or cpu
            print(f"{line:52}{cpu:8.2f}{cpu / torch:9.2f}{wall:9.2f}{first:14.2f}", flush=True)


if __name__ == "__main__":
    main()
