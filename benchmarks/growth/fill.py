"""Fills a study up to a number with finished trials like those it has, and prints how many it has then: `fill.py URL NAME COUNT`."""

from __future__ import annotations

import datetime as dt
import os
import sys

import numpy as np
import optuna
from optuna.distributions import distribution_to_json
from optuna.storages._rdb import models
from sqlalchemy import create_engine, insert
from sqlalchemy.orm import Session

from speechtrain.sweep.study.storage import open_storage


def fill(url: str, name: str, count: int) -> int:
    """Return the number of trials that the study has afterwards."""
    storage = open_storage(url)
    study = storage.get_study_id_from_name(name)
    trials = storage.get_all_trials(study, deepcopy=False)
    first = next(trial for trial in trials if trial.state.is_finished())
    points = np.random.default_rng(len(trials)).uniform(-5, 5, count).tolist()[: max(0, count - len(trials))]
    if url.startswith("journal"):
        os.fsync = lambda _file: None  # type: ignore[assignment]
        for x in points:
            params = {"x": x, "n": 0}
            storage.create_new_trial(study, optuna.trial.create_trial(params=params, distributions=first.distributions, value=x * x))
    else:
        _insert(url, study, len(trials), points, {key: distribution_to_json(each) for key, each in first.distributions.items()})
    return max(count, len(trials))


def _insert(url: str, study: int, begin: int, points: list[float], distributions: dict[str, str]) -> None:
    now = dt.datetime.now(dt.UTC).replace(tzinfo=None)
    with Session(create_engine(url)) as session:
        rows = [
            {"number": begin + index, "study_id": study, "state": "COMPLETE", "datetime_start": now, "datetime_complete": now}
            for index in range(len(points))
        ]
        table = models.TrialModel.__table__
        ids = session.execute(insert(table).returning(table.c.trial_id, sort_by_parameter_order=True), rows).scalars().all() if rows else []
        values = [{"trial_id": id_, "objective": 0, "value": x * x, "value_type": "FINITE"} for id_, x in zip(ids, points, strict=True)]
        params = [
            {"trial_id": id_, "param_name": key, "param_value": x if key == "x" else 0.0, "distribution_json": distributions[key]}
            for id_, x in zip(ids, points, strict=True)
            for key in distributions
        ]
        if rows:
            session.execute(insert(models.TrialValueModel.__table__), values)
            session.execute(insert(models.TrialParamModel.__table__), params)
        session.commit()


if __name__ == "__main__":
    print(fill(sys.argv[1], sys.argv[2], int(sys.argv[3])))
