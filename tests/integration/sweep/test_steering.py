"""A sweep that is paused, resumed, stopped and looked at from another process."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from toys import Toy

from speechtrain.sweep.__main__ import run

pytestmark = pytest.mark.long

POOL = ("hydra/launcher=pool", "hydra.sweeper.n_jobs=2")


STORAGES = ["journal", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sqlite", "postgresql", "grpc_proxy"))]


def stored_in(storage: str, toy: Toy, request: pytest.FixtureRequest) -> list[str]:
    """The override that chooses a kind of storage."""
    if storage == "journal":
        return []
    url = f"sqlite:///{toy.folder}/study.db" if storage == "sqlite" else request.getfixturevalue(storage)
    return [f"hydra.sweeper.storage={url}"]


@pytest.fixture
def status(capsys: pytest.CaptureFixture[str]) -> Callable[[], dict[str, Any]]:
    """What `sweep status` says of the study."""

    def read() -> dict[str, Any]:
        capsys.readouterr()
        run(["status", "multirun/toy", "--json"])
        return json.loads(capsys.readouterr().out)

    return read


@pytest.mark.parametrize("storage", STORAGES)
def test_a_sweep_is_paused_resumed_and_stopped_and_its_death_is_seen(toy, status, storage, request):
    sweep = ["x=range(0,100)", "seconds=0.3", *POOL, *stored_in(storage, toy, request)]
    first = toy.start(*sweep)
    toy.wait_for(lambda: len(toy.log("end")) >= 2)
    assert status()["state"] == "running"
    run(["pause", "toy"])
    toy.wait_for(lambda: "paused from" in (toy.folder / "output.txt").read_text() and not status()["counts"]["running"])
    begun = len(toy.log("start"))
    time.sleep(1)
    assert len(toy.log("start")) == begun
    assert status()["state"] == "paused"
    run(["resume", "toy"])
    toy.wait_for(lambda: len(toy.log("end")) > begun)
    run(["stop", "toy"])
    assert first.wait(60) == 0
    told = (toy.folder / "output.txt").read_text()
    assert re.search(r"resumed\n.*stopped: `sweep stop` was given on ", told, re.DOTALL)
    assert len(toy.log("start")) == len(toy.log("end")) < 100
    assert status()["state"] == "stopped"
    page = (toy.folder / "multirun" / "toy" / "status.html").read_text()
    assert page.count('class="complete"') == len(toy.log("end"))
    assert "refresh" not in page

    again = toy.start(*sweep)  # the stop of before is not meant for it
    before = len(toy.log("end"))
    toy.wait_for(lambda: len(toy.log("end")) > before)
    again.kill()
    again.wait()
    toy.wait_for(lambda: "its sweeper died" in status()["words"])  # once the trials that it left have recorded themselves
    assert status()["state"] == "idle"


@pytest.mark.parametrize("storage", STORAGES)
def test_one_trial_is_cancelled_and_then_all_with_the_sweep(toy, status, storage, request):
    sweep = ["x=range(0,100)", "seconds=0.05", "epochs=1000", "hydra/sweeper/pruner=none", *POOL, *stored_in(storage, toy, request)]
    sweeper = toy.start(*sweep)
    toy.wait_for(lambda: len(toy.log("start")) >= 2)
    run(["cancel", "toy", "0"])
    toy.wait_for(lambda: status()["counts"]["cancelled"] == 1 and len(toy.log("start")) >= 3)
    assert {trial["number"] for trial in status()["running"]} == {1, 2}
    run(["cancel", "toy"])

    assert sweeper.wait(60) == 0
    assert "stopped: `sweep cancel` was given on " in (toy.folder / "output.txt").read_text()
    assert status()["counts"]["cancelled"] == 3
    assert status()["counts"]["failed"] == 0
    assert status()["words"].startswith("`sweep cancel` was given on ")
    assert len(toy.log("start")) == 3
