"""What each job of the toy program does; it notes in `log.txt` when it starts and ends."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from speechtrain.sweep import report


def until_others_have_ended(cfg: DictConfig) -> None:
    until = time.monotonic() + 60
    while Path(cfg.log).read_text().count("end ") < 3 and time.monotonic() < until:
        time.sleep(0.05)


class UnpicklableError(Exception):
    def __init__(self) -> None:
        super().__init__("cannot be pickled")
        self.handle = Path(os.devnull).open()  # noqa: SIM115

    def __reduce__(self) -> str:
        raise TypeError("no")


def kill(_cfg: DictConfig) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang(_cfg: DictConfig) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    time.sleep(1000)


def fill_memory(_cfg: DictConfig) -> None:
    block = bytearray(2_000_000_000)
    block[::4096] = b"x" * len(block[::4096])
    time.sleep(1000)


def fail(_cfg: DictConfig) -> None:
    raise RuntimeError("went wrong")


def leave(_cfg: DictConfig) -> None:
    raise SystemExit(3)


def fail_unpicklably(_cfg: DictConfig) -> None:
    raise UnpicklableError


FAULTS = {
    "kill": kill,
    "hang": hang,
    "wait": until_others_have_ended,
    "memory": fill_memory,
    "raise": fail,
    "exit": leave,
    "unpicklable": fail_unpicklably,
    "not_a_number": lambda _cfg: float("nan"),
    "text": lambda _cfg: "a text",
}
"""What a job does instead of its work; `wait` alone goes on with it."""


def note(cfg: DictConfig, word: str) -> None:
    number = HydraConfig.get().job.num
    descriptor = os.open(cfg.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{word} {number} {os.getpid()} {time.time():.3f} {cfg.x}\n".encode())
    os.close(descriptor)


def run(cfg: DictConfig) -> object:
    note(cfg, "start")
    is_first = not Path(f"{cfg.log}.{cfg.x}").exists()
    Path(f"{cfg.log}.{cfg.x}").touch()
    if cfg.fault != "none" and cfg.x in cfg.bad and (is_first or not cfg.once):
        result = FAULTS[cfg.fault](cfg)
        if cfg.fault != "wait":
            return result
    for step in range(cfg.epochs):
        time.sleep(cfg.seconds)
        report((cfg.x - 2.0) ** 2 + 1 / (step + 1), step)
    time.sleep(cfg.seconds if not cfg.lengths else cfg.lengths[HydraConfig.get().job.num])
    note(cfg, "end")
    luck = random.Random(f"{cfg.seed} {float(cfg.x)}").gauss(0, cfg.noise)
    return (cfg.x - 2.0) ** 2 + cfg.n + luck
