"""Which checkpoint of a run a name means."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from speechtrain.tracking.run_folder import find_weights, write_run_file


@pytest.mark.parametrize(("named", "found"), [("best-epoch=002.ckpt", 2), ("best-epoch=009.ckpt", 3), ("../../best-epoch=002.ckpt", 2)])
def test_a_run_means_the_checkpoint_that_was_best_and_not_the_newest_of_those_that_are_kept(named: str, found: int, tmp_path: Path) -> None:
    write_run_file(tmp_path, {"best_checkpoint": named})
    (tmp_path / "checkpoints").mkdir()
    for epoch in (1, 2, 3):
        path = tmp_path / "checkpoints" / f"best-epoch=00{epoch}.ckpt"
        path.touch()
        os.utime(path, (epoch, epoch))
    assert find_weights(str(tmp_path), "from") == tmp_path / "checkpoints" / f"best-epoch=00{found}.ckpt"
