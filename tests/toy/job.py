"""What each job of the toy program does; it notes in `log.txt` when it starts and ends."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig


class UnpicklableError(Exception):
    def __init__(self) -> None:
        super().__init__("cannot be pickled")
        self.handle = Path(os.devnull).open()  # noqa: SIM115

    def __reduce__(self) -> str:
        raise TypeError("no")


def note(cfg: DictConfig, word: str) -> None:
    number = HydraConfig.get().job.num
    descriptor = os.open(cfg.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{word} {number} {os.getpid()} {time.time():.3f} {cfg.x}\n".encode())
    os.close(descriptor)


def run(cfg: DictConfig) -> object:
    note(cfg, "start")
    faults = {"once": not Path(f"{cfg.log}.{cfg.x}").exists()}
    Path(f"{cfg.log}.{cfg.x}").touch()
    if cfg.x in cfg.bad and (faults["once"] or not cfg.once):
        if cfg.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if cfg.fault == "hang":
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
            time.sleep(1000)
        if cfg.fault == "wait":
            until = time.monotonic() + 60
            while Path(cfg.log).read_text().count("end ") < 3 and time.monotonic() < until:
                time.sleep(0.05)
        if cfg.fault == "memory":
            block = bytearray(2_000_000_000)
            block[::4096] = b"x" * len(block[::4096])
            time.sleep(1000)
        if cfg.fault == "raise":
            raise RuntimeError("went wrong")
        if cfg.fault == "exit":
            raise SystemExit(3)
        if cfg.fault == "unpicklable":
            raise UnpicklableError
        if cfg.fault == "not_a_number":
            return float("nan")
        if cfg.fault == "text":
            return "a text"
    time.sleep(cfg.seconds if not cfg.lengths else cfg.lengths[HydraConfig.get().job.num])
    note(cfg, "end")
    return (cfg.x - 2.0) ** 2 + cfg.n
