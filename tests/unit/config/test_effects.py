from __future__ import annotations

import pytest

from speechtrain.config.effects import has_effect


@pytest.mark.parametrize("key", ["run_name", "data.root", "data.download", "tracking.mlflow.experiment", "trainer.checkpoint.save_top_k"])
def test_names_places_and_what_is_kept_change_no_result(key):
    assert not has_effect(key)


@pytest.mark.parametrize("key", ["seed", "data.rooted", "trainer.checkpoint.monitor", "callbacks", "optimizer.lr", "tracking_error"])
def test_all_other_keys_do(key):
    assert has_effect(key)
