"""A sweeper's view of one study, on a journal and without any job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna

from speechtrain.sweep.space.space import parse_space
from speechtrain.sweep.study.samplers import sampler_factory
from speechtrain.sweep.study.storage import open_storage
from speechtrain.sweep.study.study import Study


def make_study(folder: Path, **changes: Any) -> Study:
    """The study of a folder; again of the same folder, another sweeper's view of it."""
    url = f"journal:///{folder}/study.journal"
    settings: dict[str, Any] = {
        "directions": ["minimize"],
        "space": parse_space(["x=interval(0,1)"], {}),
        "settings": {},
        "make_sampler": sampler_factory(None, conditional=False),
        "pruner": optuna.pruners.NopPruner(),
        "first": [],
        "n_trials": 6,
        "retries": 0,
        **changes,
    }
    return Study(url, open_storage(url), "study", **settings)
