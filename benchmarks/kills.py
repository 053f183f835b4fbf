"""Kills runs in every phase and looks at what is left: `python benchmarks/kills.py [KILLS]`.

A run of a few seconds is killed by SIGKILL, SIGTERM or SIGINT at a random moment of a phase that is drawn, resumed, killed again,
and so on, up to `CHAIN` times; then it is resumed and left alone. After each kill there is no stack trace, the exit code is 130 (or
that of the signal, where nothing had begun), and the status is true, in `run.json` and in MLflow. At the end there are the same
weights, history, metrics of `run.json` and MLflow as of a run that nobody disturbed, each once and bit for bit (times and speeds
aside), and the same files, none beside them.

Processes are forked from one that has imported the libraries (tests/forked.py).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import forked

CHAIN = 8
ARGUMENTS = [
    *("data=synthetic", "features=logmel_8k", "data.train_size=40", "data.val_size=8", "data.test_size=8", "data.batch_size=8"),
    *("backend.threads=1", "model=tdnn", "model.channels=32", "augment=specaugment", "trainer.epochs=6", "trainer.ema_decay=0.9"),
    *("trainer.checkpoint.every_n_steps=2", "trainer.checkpoint.save_top_k=2", "trainer.average_last=2", "seed=3"),
    *("tracking.mlflow.system_metrics=null", "tracking.mlflow.log_model=false"),
    *("report.audio=false", "report.posteriors=1", "report.bootstrap=50", "report.worst=2"),
]
PHASES = ("start", "data", "model", "epochs", "checkpoint", "evaluation", "outputs", "finish", "exit")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
CHILD = """
import os, sys
import speechtrain.train
from speechtrain.backends.torch import checkpoint
from speechtrain.data import prepare
from speechtrain.tracking import recorder
from speechtrain.training import steps
place = os.open(sys.argv.pop(1), os.O_WRONLY)
def enter(phase):
    os.pwrite(place, phase.ljust(16).encode(), 0)
def marked(module, name, phase, after=None):
    original = getattr(module, name)
    def call(*given, **named):
        enter(phase)
        result = original(*given, **named)
        if after is not None:
            enter(after)
        return result
    setattr(module, name, call)
marked(prepare, "prepare", "data", "model")
marked(steps, "fit", "epochs")
marked(checkpoint, "write", "checkpoint", "epochs")
marked(steps, "load_checkpoint", "evaluation")
marked(steps, "write_outputs", "outputs")
marked(recorder, "_close", "finish", "exit")
sys.argv[0] = "speechtrain"
from speechtrain.__main__ import main
enter("start")
main()
"""


class Program:
    """A run as a process that says which phase it is in."""

    def __init__(self, folder: Path, arguments: list[str]) -> None:
        self._phase = folder / "phase"
        self._phase.write_bytes(b" " * 16)
        self._errors = folder / "errors"
        command = [sys.executable, "-c", CHILD, str(self._phase), *arguments]
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=errors)

    @property
    def phase(self) -> str:
        """The phase that it has come to last."""
        return self._phase.read_bytes().decode().strip()

    def wait(self) -> tuple[int, str]:
        """Its exit code, and what it wrote to the standard error."""
        code = self.process.wait(120)
        return code, self._errors.read_text(errors="replace")


def fresh(folder: Path, name: str) -> list[str]:
    """The arguments of a run that begins, or goes on where it has begun."""
    begun = (folder / "outputs" / name / "run.json").is_file()
    return [f"resume=outputs/{name}"] if begun else [*ARGUMENTS, f"hydra.run.dir=outputs/{name}"]


def known(folder: Path, name: str) -> dict[str, Any]:
    """What `run.json` holds; empty where the run has not begun."""
    path = folder / "outputs" / name / "run.json"
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def asked(folder: Path, query: str, *values: object) -> list[tuple[Any, ...]]:
    """What MLflow's database says."""
    with contextlib.closing(sqlite3.connect(f"{(folder / 'mlflow.db').as_uri()}?mode=ro", uri=True, timeout=30)) as database:
        return list(database.execute(query, values))


def settled_status(folder: Path, name: str) -> str | None:
    """The status of a run in MLflow once the process that writes it has come to an end; None: MLflow does not know it."""
    status = None
    for _ in range(600):
        found = asked(
            folder, "SELECT status FROM runs JOIN tags USING (run_uuid) WHERE key = 'speechtrain.folder' AND value LIKE ?", f"%/{name}"
        )
        status = str(found[0][0]) if found else None
        if status != "RUNNING" and (status is not None or "mlflow_run_id" not in known(folder, name)):
            return status
        time.sleep(0.05)
    return status


def numbers(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics that do not depend on the clock."""
    return {name: value for name, value in metrics.items() if "time/" not in name and not name.endswith("_per_s")}


def state_of(folder: Path, name: str) -> dict[str, Any]:
    """All that a finished run leaves."""
    import torch

    place = folder / "outputs" / name
    last = torch.load(place / "checkpoints" / "last.ckpt", weights_only=True)
    run = known(folder, name)
    tracked = asked(folder, "SELECT key, step, value FROM metrics WHERE run_uuid = ? ORDER BY key, step", run["mlflow_run_id"])
    return {
        "weights": {f"{key}/{each}": value.numpy().tobytes() for key in ("state_dict", "trained") for each, value in last[key].items()},
        "history": [numbers(json.loads(line)) for line in (place / "history.jsonl").read_text().splitlines()],
        "run": (numbers(run["metrics"]), run["objective"], run["status"], run["data"]),
        "files": sorted(str(path.relative_to(place)) for path in place.rglob("*")),
        "MLflow": [row for row in tracked if numbers({row[0]: 0.0})],
        "artifacts": sorted(
            str(path.relative_to(folder / "mlartifacts")) for path in (folder / "mlartifacts" / run["mlflow_run_id"]).rglob("*")
        ),
    }


class Kills:
    """Kills the runs of a folder and counts what is wrong."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder = folder
        self.rng = rng
        self.done: Counter[tuple[str, str]] = Counter()
        self.faults: list[str] = []
        self.lasts: dict[str, float] = dict.fromkeys(PHASES, 0.0)

    def note(self, fault: str) -> None:
        """Count and print what is wrong."""
        self.faults.append(fault)
        print(fault, flush=True)

    def measure(self, name: str) -> dict[str, Any]:
        """What an undisturbed run leaves; measures how long each phase lasts."""
        self.lasts = dict.fromkeys(PHASES, 0.0)
        program, before, entered = Program(self.folder, fresh(self.folder, name)), "", time.monotonic()
        while program.process.poll() is None:
            if (phase := program.phase) != before:
                if before in self.lasts:
                    self.lasts[before] += time.monotonic() - entered
                before, entered = phase, time.monotonic()
            time.sleep(0.0005)
        code, errors = program.wait()
        if code:
            raise SystemExit(f"the undisturbed run ended with {code}:\n{errors}")
        assert settled_status(self.folder, name) == "FINISHED"
        return state_of(self.folder, name)

    def chain(self, name: str, kills: int, expected: dict[str, Any]) -> None:
        """Kill one run so often, let it finish, and compare it with an undisturbed one."""
        for target in sorted(self.rng.choices(PHASES, k=kills), key=PHASES.index):
            self.kill(name, target)
        code, errors = Program(self.folder, fresh(self.folder, name)).wait()
        finished = code == 2 and f"{name} is finished" in errors  # the last signal came when all was written
        if (code and not finished) or "Traceback" in errors:
            self.note(f"{name}: resumed, it ends with {code}: {errors[-800:]}")
            return
        if (status := settled_status(self.folder, name)) != "FINISHED":
            self.note(f"{name}: is finished, and {status} in MLflow")
        found = state_of(self.folder, name)
        for part, value in expected.items():
            wanted = [each.replace(expected_id(expected), "") for each in value] if part == "artifacts" else value
            have = [each.replace(expected_id(found), "") for each in found[part]] if part == "artifacts" else found[part]
            if wanted != have:
                self.note(f"{name}: other {part} than an undisturbed run: {difference(wanted, have)}")

    def kill(self, name: str, target: str) -> None:
        """Kill a run once, in a phase or the one after it, and look at what it says then."""
        number = self.rng.choice(SIGNALS)
        program = Program(self.folder, fresh(self.folder, name))
        order = PHASES.index(target)
        while program.process.poll() is None and (program.phase not in PHASES or PHASES.index(program.phase) < order):
            time.sleep(0.0005)
        if target == "checkpoint":
            time.sleep(self.rng.uniform(0, self.lasts["epochs"] / 2))
            while program.process.poll() is None and program.phase in ("epochs", "model"):
                time.sleep(0.0002)
            time.sleep(self.rng.uniform(0, 0.004))
        else:
            time.sleep(self.rng.uniform(0, max(0.05, self.lasts[target])))
        phase = program.phase
        was_over = program.process.poll() is not None
        program.process.send_signal(number)
        code, errors = program.wait()
        if was_over:
            return
        self.done[phase, number.name] += 1
        where = f"{name}: {number.name} in {phase}"
        if "Traceback" in errors or "Exception ignored" in errors:
            self.note(f"{where}: {errors[-1500:]}")
        status = known(self.folder, name).get("status")
        tracked = settled_status(self.folder, name)
        allowed = self.allowed(number, phase)
        if (code, status, tracked) not in allowed and (status, tracked) not in allowed:
            self.note(f"{where}: exit code {code}, run.json says {status}, MLflow {tracked}")

    @staticmethod
    def allowed(number: signal.Signals, phase: str) -> set[tuple[Any, ...]]:
        """What may be said after a kill: the truth, or nothing where nothing had begun; a run that had been killed before said so then."""
        if number == signal.SIGKILL:
            # what nobody could write down: `run.json` may still say that it runs, MLflow's writer knows that it does not
            return {
                (status, tracked)
                for status in ("RUNNING", None, "KILLED", "FINISHED")
                for tracked in ("FAILED", "KILLED", "FINISHED", None)
            }
        ended = {(130, status, status) for status in ("KILLED", "FINISHED")}
        before_it_begins = (
            {(each, status, tracked) for each in (130, -number) for status, tracked in BEFORE} if phase in ("", "start") else set()
        )
        at_its_very_end = {(0, "FINISHED", "FINISHED")} if phase == "exit" else set()
        return ended | before_it_begins | at_its_very_end


BEFORE = [
    (None, None),
    ("RUNNING", "FAILED"),
    ("KILLED", "KILLED"),
    ("FINISHED", "FINISHED"),
    ("KILLED", "FAILED"),
    ("RUNNING", None),
    ("KILLED", None),
]
"""What a run may be said to be that is stopped before it begins or goes on: what it was after the kill before."""


def expected_id(state: dict[str, Any]) -> str:
    """The id of the run in the names of its artifacts."""
    return str(state["artifacts"][0]).partition("/")[0] if state["artifacts"] else "none"


def difference(wanted: Any, found: Any) -> str:
    """What differs between two lists or mappings, in few words."""
    if isinstance(wanted, dict):
        return ", ".join(key for key in wanted if wanted[key] != found.get(key))[:400]
    missing = [each for each in wanted if each not in found]
    return f"lacks {str(missing)[:400]}, has besides {str([each for each in found if each not in wanted])[:400]}"


@contextlib.contextmanager
def folder_for_runs(kept: Path | None) -> Iterator[Path]:
    """A folder, which is removed at the end unless it is named."""
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def main() -> None:
    """Kill so often, and print the counts and what was wrong; the exit code is 1 if something was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kills", type=int, nargs="?", default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the runs are kept")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs in the background without, and so what that starts
    forked.install()
    with folder_for_runs(given.folder) as folder:
        os.environ["SPEECHTRAIN_CACHE"] = str(folder / "cache")
        kills = Kills(folder, random.Random(given.seed))
        kills.measure("first")  # which imports, and makes the database
        expected = kills.measure("whole")
        print("seconds of the phases:", {name: round(seconds, 3) for name, seconds in kills.lasts.items()}, flush=True)
        number = 0
        while (done := sum(kills.done.values())) < given.kills:
            kills.chain(f"run{number}", min(CHAIN, given.kills - done), expected)
            number += 1
            if number % 10 == 0:
                print(f"{sum(kills.done.values())} kills, {number} runs, {len(kills.faults)} faults", flush=True)
    for phase in ("", *PHASES):
        print(f"{phase or 'before the start':<18}", {each.name: kills.done[phase, each.name] for each in SIGNALS})
    print(f"{sum(kills.done.values())} kills of {number} runs: {len(kills.faults)} faults")
    sys.exit(bool(kills.faults))


if __name__ == "__main__":
    main()
