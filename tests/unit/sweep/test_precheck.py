from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from speechtrain import compose
from speechtrain.sweep.space.precheck import number_type
from speechtrain.sweep.space.space import NumberType


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("seed", NumberType(whole=True)),
        ("trainer.limit_epochs", NumberType(whole=True)),  # null
        ("optimizer.lr", NumberType(whole=False)),
        ("data.max_duration", NumberType(whole=False)),  # null
        ("untyped.alpha", NumberType(whole=True, declared=False)),
        ("untyped.beta", NumberType(whole=False, declared=False)),
        ("trainer.fast_dev_run", None),
        ("objective.metric", None),
        ("model.nothing", None),
        ("nowhere.key", None),
    ],
)
def test_which_numbers_a_key_takes_follows_from_its_type_and_without_one_from_its_value(path, expected):
    untyped = OmegaConf.create({"untyped": {"alpha": 1, "beta": 0.5}})

    assert number_type(untyped if path.startswith("untyped") else compose([]), path) == expected
