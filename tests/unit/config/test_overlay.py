"""Keys of a stored config that are changed when its model is used: they are checked as those of a training are."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import TINY

from speechtrain.config.compose import compose
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.config.overlay import overlaid
from speechtrain.errors import ConfigError


def stored(tmp_path: Path, *overrides: str) -> ExperimentConfig:
    trained = ExperimentConfig.of(compose([*TINY, *overrides], output_dir=tmp_path))
    return ExperimentConfig.from_yaml(trained.as_yaml())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.batch_size=-1", "data.batch_size: must be at least 1, received -1"),
        ("data.on_bad=foo", "data.on_bad: must be one of skip, error, received 'foo'"),
        ("backend.threads=0", "backend.threads: must be at least 1 and at most 1024, received 0"),
        ("decoder.beam_size=-3", "decoder.beam_size: must be at least 1, received -3"),
        ("model.chunk_frames=4", "model.train_chunk_frames: lacks model.chunk_frames=4"),
        ("model.chunk_frames=two", "model.chunk_frames: must be a whole number or null, received 'two'"),
    ],
)
def test_a_value_out_of_its_range_is_refused(override: str, message: str, tmp_path: Path) -> None:
    trained = ["model=conformer", "model.chunk_frames=8", "model.train_chunk_frames=[2,8]", "decoder=beam"]
    with pytest.raises(ConfigError) as refused:
        overlaid(stored(tmp_path, *trained), [override])
    assert str(refused.value).count(message) == 1
    assert len(refused.value.problems) == 1


def test_a_value_in_its_range_is_taken(tmp_path: Path) -> None:
    cfg = overlaid(stored(tmp_path), ["data.batch_size=3", "backend.threads=2"])
    assert (cfg.data.batch_size, cfg.backend["threads"]) == (3, 2)
