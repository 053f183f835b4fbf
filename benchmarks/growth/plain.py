"""Plain Optuna on a study: `python plain.py URL NAME SAMPLER BEGIN TRIALS`; prints CPU milliseconds a trial and growth of memory in bytes.

With BEGIN above 0 the study is in memory, where it is filled to that number first.
"""

from __future__ import annotations

import sys
import time

import optuna
import psutil

from speechtrain.sweep.study.storage import open_storage


def objective(trial: optuna.Trial) -> float:
    """Return the objective of `app.py`."""
    x, n = trial.suggest_float("x", -5, 5), trial.suggest_int("n", 0, 1)
    return (x - 2.0) ** 2 + n


def main(url: str, name: str, sampler: str, begin: int, trials: int) -> None:
    """Measure, see above."""
    if url.startswith("journal"):  # with Optuna's own lock
        path = url.removeprefix("journal:///")
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(path))
    else:
        storage = open_storage(url)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    samplers = {"random": optuna.samplers.RandomSampler, "tpe": optuna.samplers.TPESampler}
    study = optuna.create_study(study_name=name, storage=storage, sampler=samplers[sampler](seed=0), load_if_exists=True)
    if begin:
        distributions = {"x": optuna.distributions.FloatDistribution(-5, 5), "n": optuna.distributions.IntDistribution(0, 1)}
        for number in range(begin):
            params = {"x": number * 0.61 % 10 - 5, "n": 0}
            study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=float(number)))
    study.optimize(objective, n_trials=5)
    before, start = psutil.Process().memory_info().rss, time.process_time()
    study.optimize(objective, n_trials=trials)
    print(1000 * (time.process_time() - start) / trials, psutil.Process().memory_info().rss - before)


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:6]))
