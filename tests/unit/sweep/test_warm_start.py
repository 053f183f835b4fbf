"""Earlier studies as first trials and as a prior, on real storages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import optuna
import pytest

from speechtrain.errors import ConfigError
from speechtrain.sweep.space.space import Space, parse_space
from speechtrain.sweep.study.attributes import complete, prune
from speechtrain.sweep.study.folder import own_folder
from speechtrain.sweep.study.samplers import sampler_factory
from speechtrain.sweep.study.storage import open_storage
from speechtrain.sweep.study.study import Study
from speechtrain.sweep.study.warm_start import PRIOR_TRIALS, Prior, WarmStart, read_warm_start

TPE = {"_target_": "optuna.samplers.TPESampler", "seed": 0}
LR, WIDTH = "optimizer.lr=tag(log,interval(1e-4,1e-1))", "model.d_model=range(32,129,32)"


def study_of(name: str, space: Space, results: Sequence[tuple[Mapping[str, object], float]], **changes: object) -> Study:
    """A study in `multirun/`, whose first trials have these values and results."""
    folder = Path("multirun") / name
    url = f"journal:///{folder.absolute()}/study.journal"
    own_folder(folder, name, url)
    options = {
        "directions": ["minimize"],
        "space": space,
        "settings": {},
        "make_sampler": sampler_factory(TPE, conditional=bool(space.branches)),
        "pruner": optuna.pruners.NopPruner(),
        "first": [params for params, _ in results],
        "n_trials": 100,
        "retries": 0,
        **changes,
    }
    study = Study(url, open_storage(url), name, **options)  # type: ignore[arg-type]
    for _, value in results:
        claimed = study.claim()
        assert claimed is not None
        complete(study.storage, claimed.id, [value])
    return study


def warm(space: Space, *names: str, sampler: Mapping[str, object] | None = TPE, single: bool = True) -> WarmStart:
    return read_warm_start(names, space, sampler, single=single)


def test_the_best_distinct_configs_of_each_study_come_first_in_turn_on_the_parameters_that_are_shared():
    early = parse_space([LR, "data.batch_size=8,16"], {})
    runs = [({"optimizer.lr": 10.0**-place, "data.batch_size": size}, place + size / 100) for place in (2, 3, 1) for size in (8, 16)]
    study_of("digits", early, runs)
    study_of("letters", parse_space([LR], {}), [({"optimizer.lr": 0.05}, 0.1)])

    found = warm(parse_space([LR, WIDTH], {}), "digits", "letters")

    assert found.first == [{"optimizer.lr": 0.1}, {"optimizer.lr": 0.05}, {"optimizer.lr": 0.01}, {"optimizer.lr": 0.001}]
    assert found.told.startswith("warm start: 3 configs of 'digits' first (optimizer.lr); 1 config of 'letters' first (optimizer.lr)")
    assert found.told.endswith("; 7 of 7 results are a prior")
    assert [rank for _, rank in found.prior] == [0.0, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


def test_values_outside_of_the_space_go_to_its_bound_or_are_left_out_and_teach_the_sampler_nothing():
    early = parse_space(["optimizer.lr=interval(0.0,1.0)", "model=tdnn,mlp", WIDTH], {})
    study_of("early", early, [({"optimizer.lr": 0.9, "model": "mlp", "model.d_model": 128}, 0.1)])
    now = parse_space(["optimizer.lr=interval(0.0,0.5)", "model=tdnn,conformer", "model.d_model=range(32,100,16)"], {})

    found = warm(now, "early")

    assert found.first == [{"optimizer.lr": 0.5, "model.d_model": 96}]
    assert "optimizer.lr 0.9 taken to the bound; model mlp left out; model.d_model 128 taken to the bound" in found.told
    assert found.prior == []


def test_choices_of_any_kind_and_parameters_of_branches_are_taken_over_where_they_exist():
    when = [{"if": {"model": "conformer"}, "params": {"model.kernel_size": "choice(7,15)"}}]
    texts = "x=[1,2],null,a"
    early = parse_space(["model=conformer,tdnn", texts], {}, when)
    study_of("early", early, [({"model": "conformer", "model.kernel_size": 15, "x": "[1,2]"}, 0.1), ({"model": "tdnn", "x": None}, 0.2)])

    assert warm(early, "early").first == [{"model": "conformer", "model.kernel_size": 15, "x": "[1,2]"}, {"model": "tdnn", "x": None}]
    flat = parse_space(["model.kernel_size=7,15,31"], {})
    assert warm(flat, "early").first == [{"model.kernel_size": 15}]


def test_ranks_follow_the_direction_of_the_earlier_study_and_pruned_trials_are_its_worst():
    space = parse_space(["x=interval(0,9)"], {})
    study = study_of("early", space, [({"x": 1}, 0.1), ({"x": 2}, 0.9), ({"x": 3}, 0.5)], directions=["maximize"])
    claimed = study.claim()
    assert claimed is not None
    study.storage.set_trial_intermediate_value(claimed.id, 0, 5.0)
    prune(study.storage, claimed.id, "worse")

    found = warm(space, "early")

    assert [assignment["x"] for assignment, _ in found.prior[:3]] == [2, 3, 1]
    assert found.prior[3][0]["x"] == claimed.assignment["x"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("erly", "hydra.sweeper.warm_start[0]: there is no study 'erly'\n    -> did you mean 'early'?"),
        ("early", "the study 'early' shares no parameter with this sweep\n    -> leave it out, or sweep one of its parameters: x"),
        ("empty", "the study 'empty' has no complete trial"),
        ("sqlite:///nothing.db#early", "there is no "),
    ],
)
def test_a_study_that_cannot_be_taken_over_is_told(name: str, message: str):
    study_of("early", parse_space(["x=interval(0,9)"], {}), [({"x": 1}, 0.1)])
    study_of("empty", parse_space(["x=interval(0,9)"], {}), [])
    with pytest.raises(ConfigError) as caught:
        warm(parse_space([LR], {}), name)
    assert message in str(caught.value)


def test_only_samplers_that_learn_from_all_trials_and_one_objective_have_a_prior():
    space = parse_space(["x=interval(0,9)"], {})
    study_of("early", space, [({"x": 1}, 0.1)])
    assert warm(space, "early").prior
    assert not warm(space, "early", sampler={"_target_": "optuna.samplers.NSGAIISampler"}).prior
    assert not warm(space, "early", sampler=None).prior
    assert not warm(space, "early", single=False).prior


def test_the_sampler_goes_by_the_prior_from_the_first_trial_and_less_and_less_so():
    space = parse_space(["x=interval(0.0,1.0)", "y=a,b"], {})
    prior = [({"x": 0.7 + 0.3 * rank}, rank) for rank in [index / 40 for index in range(41)]]
    prior += [({"x": 0.7 - 0.7 * rank}, rank) for rank in [index / 40 for index in range(41)]]
    prior.sort(key=lambda pair: pair[1])
    study = study_of("now", space, [], first=[{"x": 0.0, "y": "b"}], prior=prior)
    claimed = []
    for _ in range(11):
        trial = study.claim()
        assert trial is not None
        complete(study.storage, trial.id, [abs(float(trial.assignment["x"]) - 0.7)])  # type: ignore[arg-type]
        claimed.append(trial.assignment)

    assert claimed[0] == {"x": 0.0, "y": "b"}
    assert sum(0.5 < float(each["x"]) < 0.9 for each in claimed[1:]) >= 8  # type: ignore[arg-type] # four of ten at random
    sizes = [Prior(prior, space, study._distributions).size(own) for own in (0, 10, 90, 10_000)]
    assert sizes == [PRIOR_TRIALS, 12, 2, 0]


def test_results_of_the_prior_have_the_values_of_own_trials_of_their_rank_and_random_values_where_they_say_nothing():
    space = parse_space(["x=interval(0.0,1.0)", "y=interval(0.0,1.0)"], {})
    distributions = {name: optuna.distributions.FloatDistribution(0, 1) for name in "xy"}
    prior = Prior([({"x": 0.1}, 0.0), ({"x": 0.2}, 0.5), ({"x": 0.3}, 1.0)], space, distributions)
    own = [optuna.create_trial(value=value, params={"x": 0.5, "y": 0.5}, distributions=distributions) for value in (3.0, 1.0, 2.0)]

    assert [trial.value for trial in prior.observations([], minimize=False)] == [0.0, -0.5, -1.0]
    assert [trial.value for trial in prior.observations(own, minimize=True)] == [1.0, 2.0, 3.0]
    assert [trial.value for trial in prior.observations(own, minimize=False)] == [3.0, 2.0, 1.0]
    assert len({trial.params["y"] for trial in prior.observations(own, minimize=True)}) == 3
