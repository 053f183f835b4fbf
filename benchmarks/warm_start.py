"""What warm starts give: TPE on a toy, cold, with the best configs of an earlier study first, with its results as a prior, and with both.

    python benchmarks/warm_start.py 20      the median over 20 seeds of the distance to the optimum after 5, 10, 20 and 40 trials

The earlier study has 40 trials of another objective: three times as large, its optimum elsewhere by `shift` of the ranges, and four of the
six parameters. In memory, without jobs.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import optuna

from speechtrain.sweep.space.space import Space, parse_space
from speechtrain.sweep.study.attributes import complete
from speechtrain.sweep.study.find import FoundStudy
from speechtrain.sweep.study.samplers import sampler_factory
from speechtrain.sweep.study.study import Study
from speechtrain.sweep.study.warm_start import _best, _ranked, _translated

SHARED = ["lr=tag(log,interval(1e-4,1e-1))", "drop=interval(0.0,0.5)", "w=tag(log,interval(32,256))", "k=a,b,c"]
EARLY = parse_space(SHARED, {})
NOW = parse_space([*SHARED, "wd=tag(log,interval(1e-5,1e-1))", "warm=interval(0.0,0.3)"], {})
SHIFTS, COUNTS, TRIALS = (0.0, 0.1, 0.3, 0.6), (5, 10, 20, 40), 40


def objective(optimum: Sequence[float], scale: float) -> Callable[[dict[str, Any]], float]:
    """A quadratic over the unit cube, and a penalty for two of the three choices; its least value is 0."""

    def value(params: dict[str, Any]) -> float:
        unit = [(math.log10(params["lr"]) + 4) / 3, params["drop"] / 0.5, math.log2(params["w"] / 32) / 3]
        unit += [(math.log10(params["wd"]) + 5) / 4, params["warm"] / 0.3] if "wd" in params else []
        distance = sum((a - b) ** 2 for a, b in zip(unit, optimum, strict=False)) / len(unit)
        return scale * (0.3 * distance + (0.0 if params["k"] == "a" else 0.03))

    return value


def search(space: Space, value: Callable[[dict[str, Any]], float], seed: int, **warm: Any) -> tuple[Study, list[float]]:
    """Run a study, and return it with the best value after each trial."""
    sampler = sampler_factory({"_target_": "optuna.samplers.TPESampler", "seed": seed, "constant_liar": True}, conditional=False)
    options = {"directions": ["minimize"], "settings": {}, "make_sampler": sampler, "pruner": optuna.pruners.NopPruner(), "retries": 0}
    study = Study("memory:", optuna.storages.InMemoryStorage(), uuid.uuid4().hex, space=space, n_trials=TRIALS, **options, **warm)
    best: list[float] = []
    for _ in range(TRIALS):
        study.plan()
        claimed = study.claim()
        assert claimed is not None
        reached = value(claimed.assignment)
        complete(study.storage, claimed.id, [reached])
        best.append(min([reached, *best[-1:]]))
    return study, best


def main(seeds: int) -> None:
    """Print a line for each shift and way."""
    for shift in SHIFTS:
        results: dict[str, list[list[float]]] = {}
        for seed in range(seeds):
            rng = random.Random(seed * 7 + 1)
            optimum = [rng.uniform(0.2, 0.8) for _ in range(5)]
            way = [rng.gauss(0, 1) for _ in range(3)]
            moved = [min(1.0, max(0.0, a + shift * b / math.hypot(*way))) for a, b in zip(optimum, way, strict=False)]
            early, _ = search(EARLY, objective(moved, 3.0), seed + 1000, first=[])
            ranked = _ranked(FoundStudy(early.name, early.url, early.storage, early.id))
            first = _best(NOW, ranked, {})
            prior = [(_translated(NOW, trial.params, {}, clips=False), rank) for trial, rank in ranked]
            ways = {
                "cold": {"first": []},
                "first trials": {"first": first},
                "prior": {"first": [], "prior": prior},
                "both": {"first": first, "prior": prior},
            }
            for name, warm in ways.items():
                _, best = search(NOW, objective(optimum, 1.0), seed, **warm)
                results.setdefault(name, []).append([best[count - 1] for count in COUNTS])
        for name, rows in results.items():
            medians = (statistics.median(row[index] for row in rows) for index in range(len(COUNTS)))
            told = "  ".join(f"{count}: {median:.4f}" for count, median in zip(COUNTS, medians, strict=True))
            print(f"shift {shift}  {name:<13}{told}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
