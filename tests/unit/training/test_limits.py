"""Test runs are shortened, and say to what."""

from __future__ import annotations

import pytest

from speechtrain import compose
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.training.limits import with_limits


def test_a_tighter_limit_of_the_user_stays_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    cfg = with_limits(ExperimentConfig.of(compose(["data=synthetic", "experiment=quick", "data.limit_utterances=100"])))
    assert (cfg.data.limit_utterances, cfg.data.batch_size, cfg.trainer.epochs) == (100, 8, 8)
    (told,) = caplog.messages
    assert "data.limit_utterances=100, data.batch_size=8, trainer.limit_epochs=8" in told
