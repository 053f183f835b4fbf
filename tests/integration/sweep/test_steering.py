"""A sweep that is paused, resumed, stopped and looked at from another process."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest

from speechtrain.sweep.__main__ import run

pytestmark = pytest.mark.long

POOL = ("hydra/launcher=pool", "hydra.sweeper.n_jobs=2")


def test_a_sweep_is_paused_resumed_and_stopped_and_its_death_is_seen(toy, capsys):
    def status() -> dict[str, Any]:
        capsys.readouterr()
        run(["status", "multirun/toy", "--json"])
        return json.loads(capsys.readouterr().out)

    sweep = ["x=range(0,100)", "seconds=0.3", *POOL]
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
