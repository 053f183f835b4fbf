"""What a trivial trial costs on Ray beside Ray Tune's own: `python benchmarks/ray_sweep.py --trials 40`.

Both search one parameter at random on a Ray of their own with as many CPUs as trials run at a time, and return a number. A sweep of a few
trials is taken off, so that starting Ray and its workers does not count. CPU time is that of all processes: driver, workers and Ray's own.
Ray Tune needs `pip install 'ray[tune]'`, and runs twice: with a process for each trial, and with `reuse_actors`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parent.parent
TOY = REPOSITORY / "tests" / "toy"
ENV = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(TOY), str(REPOSITORY)]),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_worker_niceness": "0",  # in all arms; ours sets it itself
}
TUNE = """
import sys
import ray
from ray import tune

trials, at_a_time, reuse = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "reuse"
ray.init(address="local", num_cpus=at_a_time, include_dashboard=False, object_store_memory=80_000_000, log_to_driver=False)

def trial(config):
    tune.report({"value": (config["x"] - 2) ** 2})

tuner = tune.Tuner(
    tune.with_resources(trial, {"cpu": 1}),
    param_space={"x": tune.uniform(-5, 5)},
    tune_config=tune.TuneConfig(num_samples=trials, max_concurrent_trials=at_a_time, reuse_actors=reuse),
    run_config=tune.RunConfig(storage_path=sys.argv[4], verbose=0),
)
assert len([result for result in tuner.fit() if result.metrics]) == trials
ray.shutdown()
"""


class Meter:
    """Adds up the CPU time of a process and of all that it has started, ended ones included, until it ends."""

    def __init__(self, pid: int) -> None:
        self._seconds: dict[int, float] = {}
        self._root = psutil.Process(pid)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        with contextlib.suppress(psutil.Error):
            while self._root.is_running() and self._root.status() != psutil.STATUS_ZOMBIE:
                for process in [self._root, *self._root.children(recursive=True)]:
                    with contextlib.suppress(psutil.Error):
                        times = process.cpu_times()
                        self._seconds[process.pid] = times.user + times.system
                time.sleep(0.5)

    def total(self) -> float:
        """Seconds of all of them, as last seen."""
        self._thread.join()
        return sum(self._seconds.values())


def timed(command: list[str], folder: Path) -> tuple[float, float]:
    """(wall, CPU) of a command.

    Raises:
        RuntimeError: it failed.
    """
    start = time.perf_counter()
    with (folder / "output.txt").open("w+") as output:
        process = subprocess.Popen(command, cwd=folder, env=ENV, stdout=output, stderr=output)
        meter = Meter(process.pid)
        code = process.wait()
        wall = time.perf_counter() - start
    if code != 0:
        raise RuntimeError((folder / "output.txt").read_text()[-3000:])
    return wall, meter.total()


def arms(trials: int, at_a_time: int, folder: Path) -> dict[str, list[str]]:
    """The commands that run so many trials."""
    ours = [sys.executable, str(TOY / "app.py"), "-m", "x=interval(-5,5)", "hydra/sweeper/sampler=random", "hydra.sweeper.study_name=toy"]
    ray = ["hydra/launcher=ray", f"hydra.launcher.init={{num_cpus: {at_a_time}}}", f"hydra.sweeper.n_jobs={at_a_time}"]
    tune = [sys.executable, "-c", TUNE, str(trials), str(at_a_time)]
    return {
        "ours": [*ours, *ray, f"hydra.sweeper.n_trials={trials}"],
        "Ray Tune": [*tune, "new", str(folder / "tune")],
        "Ray Tune, reuse_actors": [*tune, "reuse", str(folder / "tune")],
    }


def main() -> None:
    """Print what a trial costs in each arm, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=40, help="trials that are counted")
    parser.add_argument("--few", type=int, default=4, help="trials of the sweep that is taken off")
    parser.add_argument("--at-a-time", type=int, default=2)
    parser.add_argument("--only", default=".*", help="pattern of the arms that are run")
    arguments = parser.parse_args()
    cost: dict[str, tuple[float, float]] = {}
    for name in (each for each in arms(1, 1, Path()) if re.fullmatch(arguments.only, each)):
        took = []
        for count in (arguments.few, arguments.few + arguments.trials):
            with tempfile.TemporaryDirectory() as text:
                folder = Path(text)
                took.append(timed(arms(count, arguments.at_a_time, folder)[name], folder))
        wall, cpu = ((took[1][index] - took[0][index]) / arguments.trials * 1000 for index in (0, 1))
        cost[name] = wall, cpu
        start = f"{took[0][0]:.1f} s wall, {took[0][1]:.1f} s CPU"
        print(f"{name:24s} {wall:7.1f} ms wall  {cpu:7.1f} ms CPU a trial   ({arguments.few} trials with the start: {start})", flush=True)
    for name in [each for each in cost if each != "ours" and "ours" in cost]:
        wall, cpu = (cost["ours"][index] / cost[name][index] for index in (0, 1))
        print(f"ours / {name}: {wall:.2f} of the wall time, {cpu:.2f} of the CPU time")


if __name__ == "__main__":
    main()
