"""What a training prints at its end is what the next command needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechtrain.tracking.recorder import RunRecorder
from speechtrain.tracking.run_folder import write_run_file
from speechtrain.training.console import print_whereabouts


@pytest.mark.parametrize(("run_ids", "told"), [({"mlflow": "3f2a91"}, "\nrun id      3f2a91\n"), ({}, "\nrun")])
def test_a_training_ends_with_the_id_that_its_run_has_in_mlflow(
    run_ids: dict[str, str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run_file(tmp_path, {"run_ids": run_ids})
    print_whereabouts(tmp_path, None, [], RunRecorder({}, tmp_path))
    printed = capsys.readouterr().out
    assert told in printed
    assert ("run id" in printed) == bool(run_ids)
