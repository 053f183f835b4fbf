"""The forms of `trainer.devices` that may mean several devices."""

from __future__ import annotations

import pytest
from omegaconf import ListConfig

from speechtrain.config.checks import _may_be_several


@pytest.mark.parametrize("devices", [2, "2", "0,1", "0, 1,", "auto", "-1", -1, ListConfig([0, 1]), ListConfig([-1])])
def test_devices_may_be_several_in_every_form_that_lightning_takes(devices: object) -> None:
    assert _may_be_several(devices, "auto")
    assert _may_be_several(devices, "gpu")


@pytest.mark.parametrize(
    ("devices", "accelerator"), [(1, "gpu"), ("1", "gpu"), ("1,", "gpu"), ("2,", "gpu"), (ListConfig([3]), "gpu"), ("auto", "cpu")]
)
def test_devices_that_are_one_are_taken_for_one(devices: object, accelerator: str) -> None:
    assert not _may_be_several(devices, accelerator)
