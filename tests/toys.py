"""A toy program under the sweeper, as real processes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
import psutil
from optuna.trial import FrozenTrial

from speechtrain.sweep.study.storage import open_storage

REPOSITORY = Path(__file__).resolve().parents[1]
TOY = REPOSITORY / "tests" / "toy"
OWN = ["hydra.sweeper.study_name=toy"]


@dataclass
class Toy:
    """Starts the program in a folder and reads what it left."""

    folder: Path
    more_path: str = ""

    @property
    def env(self) -> dict[str, str]:
        return {
            **os.environ,
            "TOY_LOG": str(self.folder / "log.txt"),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(TOY), str(REPOSITORY), self.more_path])),
            "OMP_NUM_THREADS": "1",
        }

    def run(self, *arguments: str, basic: bool = False, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        own = ["hydra/sweeper=basic"] if basic else OWN
        command = [sys.executable, str(TOY / "app.py"), "-m", *own, *arguments]
        return subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=timeout, check=False)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(TOY / "app.py"), "-m", *OWN, *arguments]
        output = (self.folder / "output.txt").open("ab")
        return subprocess.Popen(command, cwd=self.folder, env=self.env, stdout=output, stderr=output)

    def url(self) -> str:
        return f"journal:///{self.folder / 'multirun' / 'toy' / 'study.journal'}"

    def trials(self, url: str | None = None) -> list[FrozenTrial]:
        import speechtrain.sweep.study.storage as storage

        storage._opened.clear()
        return optuna.load_study(study_name="toy", storage=open_storage(url or self.url())).trials

    def log(self, word: str) -> list[list[str]]:
        path = self.folder / "log.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split() for line in lines if line.startswith(word)]

    def wait_for(self, what: Callable[[], bool], seconds: float = 120) -> None:
        until = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < until, f"it did not come: {(self.folder / 'output.txt').read_text()}"
            time.sleep(0.02)

    def running(self) -> set[int]:
        """Jobs that have begun and not ended, in processes that live."""
        ended = {int(line[1]) for line in self.log("end")}
        return {int(line[1]) for line in self.log("start") if int(line[1]) not in ended and alive(int(line[2]))}

    def workers(self) -> list[psutil.Process]:
        pids = {int(line[2]) for line in self.log("start")}
        return [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]

    def run_through_kills(self, sweep: Sequence[str], kills: int, rng: random.Random, *, while_running: float = 0.7) -> None:
        """Run a sweep to its end although its workers and itself are killed at random moments, a share of them while trials run."""
        sweeper = self.start(*sweep)
        for _ in range(kills):
            if rng.random() < while_running:
                self.wait_for(lambda process=sweeper: bool(self.running()) or process.poll() is not None)  # type: ignore[misc]
            time.sleep(rng.uniform(0.0, 0.5))
            workers = [process for process in self.workers() if process.is_running() and process.status() != "zombie"]
            if workers and rng.random() < 0.6:
                rng.choice(workers).kill()
            elif sweeper.poll() is None:
                sweeper.kill()
                sweeper.wait()
            if sweeper.poll() is not None:
                sweeper = self.start(*sweep)
        assert sweeper.wait(100) == 0, (self.folder / "output.txt").read_text()


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
