from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from speechtrain.config.overrides import parser, sweep_arguments
from speechtrain.sweep.space.space import parse_space


@pytest.mark.parametrize(
    ("typed", "given"),
    [
        (["-m", "hydra.sweeper.params.lr=choice(1,2)"], ["-m", "lr=choice(1,2)"]),
        (["+hydra.sweeper.params.lr='choice(1,2)'"], ["++hydra.sweeper.params.lr='choice(1,2)'"]),
        (["hydra.sweeper.params={seed:[1,2]}"], ["++hydra.sweeper.params={seed:[1,2]}"]),
        (["model=a,b", "model.n_heads=4", "seed=1"], ["model=a,b", "seed=1", "++hydra.sweeper.params={model.n_heads:'4'}"]),
        (["model=a,b", "model.n=4", "model.n=2"], ["model=a,b", "++hydra.sweeper.params={model.n:'2'}"]),
        (["model=a,b", "model.n=null", "model.t=gelu"], ["model=a,b", "++hydra.sweeper.params={model.n:'null',model.t:gelu}"]),
        (["model=a,b", "model.n=[1,2]"], ["model=a,b", "++hydra.sweeper.params={model.n:'[1,2]'}"]),
        (["model=a,b", "model.n=${seed}"], ["model=a,b", "++hydra.sweeper.params={model.n:'\\${seed}'}"]),
        (
            ["experiment=a,b", "model.n=4", "model=c", "seed=1", "hydra.sweeper.n_jobs=2"],
            ["experiment=a,b", "model=c", "seed=1", "hydra.sweeper.n_jobs=2", "++hydra.sweeper.params={model.n:'4'}"],
        ),
        (["seed=1,2", "hydra.sweeper.pruner.a._target_=b.C"], ["seed=1,2", "++hydra.sweeper.pruner.a._target_=b.C"]),
        (["seed=1,2", "~hydra.sweeper.pruner.a", "~hydra.sweeper.sampler.b=1", "run_name='hydra.sweeper.pruner=a'"],) * 2,
        (["seed=1,2", "+hydra.sweeper.sampler={a:1}"], ["seed=1,2", "++hydra.sweeper.sampler={a:1}"]),
        (["model=a,b", "~model.n=4", "model.k=1,2", "model.k=3"],) * 2,
        (["model=a,b", "+model.n=4", "++model.m=2"], ["model=a,b", "++hydra.sweeper.params={+model.n:'4',++model.m:'2'}"]),
        (["model=a,b", "model.heads=4,8", "data.root=x,y"], ["model=a,b", "model.heads=4,8", "data.root=x,y"]),
        (["model=a", "model.n_heads=4", "seed=1,2"], ["model=a", "model.n_heads=4", "seed=1,2"]),
        (["seed=1,2", "lr=(", "--info"], ["seed=1,2", "lr=(", "--info"]),
    ],
)
def test_a_sweep_is_written_in_the_form_that_hydra_takes(typed, given):
    assert sweep_arguments(typed) == given


@pytest.mark.parametrize(
    ("params", "moved"),
    [
        ({"model": "choice(a,b)"}, True),
        ({"model": "a,b"}, True),
        ({"model": ["a", "b"]}, True),
        ({"experiment": "a,b"}, True),
        ({"model": "a"}, False),
        ({"model.size": "choice(small,large)", "seed": "range(1,3)"}, False),
        ({"data": "choice(a,b)"}, False),
        ({}, False),
    ],
)
def test_keys_of_a_group_that_a_preset_sweeps_are_set_in_each_job(params, moved):
    given = ["sweep=mine", "++hydra.sweeper.params={model.n:'4'}"] if moved else ["sweep=mine", "model.n=4"]

    assert sweep_arguments(["sweep=mine", "model.n=4"], params) == given


def test_a_moved_value_is_read_by_the_sweeper_as_it_was_typed():
    typed = ["model.n=null", "model.n_heads=[1,'a b']", "model.x=${seed}", "model.t='choice(1,2)'", "model.u=a"]
    moved = parser.parse_override(sweep_arguments(["model=a,b", *typed])[-1]).value()
    params = OmegaConf.to_container(OmegaConf.create({"params": moved}), resolve=True)["params"]
    assert list(parse_space(["model=a,b"], params).fixed) == typed
