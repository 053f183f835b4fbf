from __future__ import annotations

import pytest

from speechtrain.config.schemas.sweeps import SweeperOptions
from speechtrain.sweep.plan import study_name_of
from speechtrain.sweep.space.space import parse_space


def test_the_name_of_a_study_is_that_of_earlier_versions_so_that_old_studies_are_continued():
    when = [{"if": {"model": "conformer"}, "params": {"model.kernel_size": "choice(7,15)"}}]
    typed = ["model=conformer,crdnn", "optimizer.lr=tag(log,interval(1e-4,1e-2))", "seed=1"]
    space = parse_space(typed, {"model.d_model": "range(64,257,32)"}, when)
    options = SweeperOptions(
        constraints=["params <= 2e6"], enqueue=[{"model": "crdnn"}], objectives=["val/wer"], direction=None, seeds_per_trial=1
    )

    assert study_name_of(space, options, "speechtrain") == "d_model-model-lr-kernel_size-71dff4"


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"params": 3}, "params"),
        ({"when": [1]}, "when[0]"),
        ({"enqueue": 3}, "enqueue"),
        ({"direction": 3}, "direction"),
        ({"sampler": {"seed": "x"}}, "sampler.seed"),
        ({"pruner": [1]}, "pruner"),
        ({"study_name": "../x"}, "study_name"),
        ({"study_name": ""}, "study_name"),
    ],
)
def test_an_option_of_the_wrong_kind_is_named(changed, key):
    sound = {"params": None, "when": None, "enqueue": [], "direction": None, "sampler": "tpe", "pruner": None, "study_name": "a/b"}

    assert list(SweeperOptions(**sound).rules()) == []
    assert [problem[0] for problem in SweeperOptions(**sound | changed).rules()] == [key]
