"""What it costs a trial to pause once and to be continued from its checkpoint, in CPU seconds, in one warm process.

    python benchmarks/pause.py FOLDER [--trials 5] [--tracking mlflow]

The same small trials of spoken digits are trained in one go and with a pause after the first of three epochs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import resource
import statistics
from pathlib import Path

import optuna

from speechtrain import compose
from speechtrain.sweep.space.space import parse_space
from speechtrain.sweep.study.promotion import KeepBest
from speechtrain.sweep.study.samplers import sampler_factory
from speechtrain.sweep.study.storage import open_storage
from speechtrain.sweep.study.study import Study
from speechtrain.sweep.trial.context import TrialContext
from speechtrain.sweep.trial.job import run_trial

CONFIG = ["data=digits", "data.train_size=200", "data.val_size=30", "data.test_size=30", "model=mlp", "trainer.epochs=3"]
CONFIG += ["report.enabled=false", "backend.threads=1"]


def cpu_seconds() -> float:
    """Return the CPU time of this process and of the children that have ended."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in spent)


def sweep(folder: Path, trials: int, tracking: str, *, pauses: bool) -> list[float]:
    """Run a study in this process and return the CPU seconds of each attempt."""
    url = f"journal:///{folder.absolute()}/study.journal"
    folder.mkdir(parents=True)
    seeds = ",".join(map(str, range(1, trials + 1)))
    study = Study(
        url,
        open_storage(url),
        "study",
        directions=["minimize"],
        space=parse_space([f"seed={seeds}"], {}),
        settings={},
        make_sampler=sampler_factory(None, conditional=False),
        pruner=KeepBest(1, keep=trials) if pauses else optuna.pruners.NopPruner(),
        first=[],
        n_trials=trials,
        retries=0,
    )
    rule = {"_target_": "speechtrain.sweep.study.promotion.KeepBest", "epochs": 1, "keep": trials} if pauses else None
    spent = []
    while not study.plan().is_complete and (claimed := study.claim()) is not None:
        started = cpu_seconds()
        overrides = [*CONFIG, f"tracking=[{tracking}]", *(f"{key}={value}" for key, value in claimed.assignment.items())]
        cfg = compose(overrides, output_dir=folder / str(claimed.number))
        earlier = {"retry_of": claimed.retry_of, "promoted_from": claimed.promoted_from}
        with contextlib.redirect_stdout(io.StringIO()):
            run_trial(TrialContext(url, "study", claimed.id, claimed.number, ["val/loss"], pruner=rule, **earlier), cfg, overrides)
        spent.append(cpu_seconds() - started)
    return spent


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--tracking", default="")
    given = parser.parse_args()
    sweep(given.folder / "warm", 1, given.tracking, pauses=False)
    whole = sweep(given.folder / "whole", given.trials, given.tracking, pauses=False)
    parts = sweep(given.folder / "paused", given.trials, given.tracking, pauses=True)
    print(f"a trial in one go: {statistics.fmean(whole):.2f} s of CPU")
    print(f"a pause and a continuation: {(sum(parts) - sum(whole)) / given.trials:.2f} s more")


if __name__ == "__main__":
    main()
