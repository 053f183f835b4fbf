from __future__ import annotations

import pytest

from speechtrain.config.overrides import sweep_arguments


@pytest.mark.parametrize(
    ("typed", "given"),
    [
        (["-m", "hydra.sweeper.params.lr=choice(1,2)"], ["-m", "lr=choice(1,2)"]),
        (["+hydra.sweeper.params.lr='choice(1,2)'"], ["++hydra.sweeper.params.lr='choice(1,2)'"]),
        (["hydra.sweeper.params={seed:[1,2]}"], ["++hydra.sweeper.params={seed:[1,2]}"]),
        (["model=a,b", "model.n_heads=4", "seed=1"], ["model=a,b", "seed=1", "++hydra.sweeper.params={model.n_heads:4}"]),
        (["model=a,b", "model.heads=4,8", "data.root=x,y"], ["model=a,b", "model.heads=4,8", "data.root=x,y"]),
        (["model=a", "model.n_heads=4", "seed=1,2"], ["model=a", "model.n_heads=4", "seed=1,2"]),
        (["seed=1,2", "lr=(", "--info"], ["seed=1,2", "lr=(", "--info"]),
    ],
)
def test_a_sweep_is_written_in_the_form_that_hydra_takes(typed, given):
    assert sweep_arguments(typed) == given
