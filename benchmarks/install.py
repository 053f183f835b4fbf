"""What an installation takes: seconds of wall and CPU, and GB on disk, beside those of the full one.

    python benchmarks/install.py

Each is a fresh environment made by uv, from its cache where that has the files; times of a first download depend on the network. The two
without CUDA need a build of PyTorch in a folder of PIP_FIND_LINKS; they are left out where there is none.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
UV = Path(sys.executable).parent / "uv"
LOCKED = ["--constraints", str(REPOSITORY / "requirements.lock")]


def without_cuda() -> list[str]:
    """Return what makes uv take a build of PyTorch without CUDA; empty if there is none."""
    for folder in os.environ.get("PIP_FIND_LINKS", "").split():
        for path in Path(folder).glob(f"torch-*+cpu-cp3{sys.version_info.minor}-*.whl"):
            return ["--find-links", folder, f"torch=={path.name.split('-')[1]}"]
    return []


def cost(arguments: list[str], folder: Path) -> tuple[float, float, float]:
    """Return seconds of wall and of CPU, and the GB on disk of the environment."""
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([UV, "pip", "install", "--quiet", "--python", folder / "bin" / "python", *arguments], cwd=REPOSITORY, check=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    size = sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if not path.is_symlink())
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, size / 1e9


def main() -> None:
    """Print a line for each installation."""
    choices = {
        "everything (make install)": [*LOCKED, ".[dev]"],
        "spoken digits (make run)": [*LOCKED, ".[synth]"],
        "training, newest versions": ["."],
    }
    if build := without_cuda():
        choices["spoken digits, without CUDA"] = [*build, ".[synth]"]
        choices["light, without CUDA"] = [*build, "--group", "light"]
    full = 0.0
    for title, arguments in choices.items():
        with tempfile.TemporaryDirectory() as name:
            wall, cpu, size = cost(arguments, Path(name) / "env")
        full = full or size
        print(f"{title:28}{wall:6.1f} s wall {cpu:6.1f} s CPU {size:6.2f} GB  {size / full:5.2f} of everything", flush=True)


if __name__ == "__main__":
    main()
