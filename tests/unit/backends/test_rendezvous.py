"""How the processes of a launch find each other."""

from __future__ import annotations

import _thread
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psutil
import pytest

from speechtrain.backends.torch import rendezvous as module
from speechtrain.backends.torch.rendezvous import ProcessInfo, Rendezvous
from speechtrain.errors import RunError
from speechtrain.processes.launch_environment import Launch


@pytest.fixture
def launch() -> Launch:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = int(server.getsockname()[1])
    return Launch("srun", 0, 2, 0, 0, False, "slurm-1-0", "localhost", port, None, restarts=False)


def process_info(rank: int) -> ProcessInfo:
    return ProcessInfo(rank, rank, 0, "here", "here", "127.0.0.1", [], "1", None)


def listening() -> set[str]:
    return {each.laddr.ip for each in psutil.Process().net_connections("tcp") if each.status == psutil.CONN_LISTEN}


def test_processes_meet_on_the_interface_by_which_they_reach_each_other(launch: Launch) -> None:
    before = listening()
    with ThreadPoolExecutor() as pool:
        joined = pool.submit(Rendezvous.join, replace(launch, rank=1), process_info(1))
        led = Rendezvous.lead(launch, process_info(0))
        joined.result()
    assert [each.rank for each in led.processes] == [0, 1]
    assert listening() - before <= {"127.0.0.1", "::1"}


def test_a_process_does_not_enter_the_training_of_another_launch(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_JOIN_TIMEOUT", module.timedelta(seconds=10))
    with ThreadPoolExecutor() as pool:
        leading = pool.submit(Rendezvous.lead, launch, process_info(0))
        other = replace(launch, rank=1, name="slurm-1-1")
        with pytest.raises(
            RunError, match=r"is where the processes of another launch meet \(slurm-1-0, 2 processes\)\n +-> set MASTER_PORT"
        ):
            Rendezvous.join(other, process_info(1))
        Rendezvous.join(replace(launch, rank=1), process_info(1))
        leading.result()


def test_a_port_that_another_program_has_is_named(launch: Launch) -> None:
    with (
        socket.create_server(("127.0.0.1", launch.port)),
        pytest.raises(RunError, match=rf"localhost:{launch.port}, .*\n +-> set MASTER_PORT"),
    ):
        Rendezvous.lead(launch, process_info(0))


def test_who_waits_for_others_says_how_to_train_alone_and_can_be_interrupted(
    launch: Launch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_TOLD_SECONDS", 0.1)
    said = threading.Event()
    told: list[str] = []

    def note(text: str, **_: object) -> None:
        told.append(text)
        said.set()

    monkeypatch.setattr(module.errors, "print", note)

    def interrupt() -> None:
        if said.wait(30):
            time.sleep(0.05)
            _thread.interrupt_main()

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        Rendezvous.lead(launch, process_info(0))
    assert told == ["waiting for process 1 of 2 (srun says that there are so many; SPEECHTRAIN_LAUNCHER=none has this one train alone)"]
