from __future__ import annotations

import json
from pathlib import Path

from conftest import TINY

from speechtrain import compose
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.files import write_text
from speechtrain.tracking.recorder import RunRequest
from speechtrain.tracking.run_folder import write_run_file
from speechtrain.training.cross_validation import cross_validate
from speechtrain.training.result import Result

EPOCHS = [{"val/cer": 0.9, "val/loss": 3.0}, {"val/cer": 0.4, "val/loss": 1.0}, {"val/cer": 0.5, "val/loss": 2.0}]


def test_the_folds_that_a_resumed_cross_validation_has_finished_keep_their_history(tmp_path: Path) -> None:
    first = tmp_path / "cv" / "fold_0"
    write_text(first / "history.jsonl", "".join(f"{json.dumps(epoch)}\n" for epoch in EPOCHS))
    write_run_file(first, {"status": "FINISHED", "objective": 0.4, "metrics": EPOCHS[-1], "run_ids": {"mlflow": "a1"}})
    cfg = ExperimentConfig.of(compose([*TINY, "data.folds=2", f"resume={tmp_path / 'cv'}"], output_dir=tmp_path / "cv"))
    seen: list[list[Result]] = []

    def train_fold(fold: ExperimentConfig, request: RunRequest) -> Result:
        assert fold.data.fold == 1
        return Result(EPOCHS[0], 0.9, Path(fold.output_dir), None, EPOCHS[:1], [], {})

    cross_validate(cfg, train_fold, RunRequest(), lambda results: seen.append(list(results)))

    assert [[result.history for result in results] for results in seen] == [[EPOCHS], [EPOCHS, EPOCHS[:1]]]
    assert [(result.objective, result.run_ids) for result in seen[-1]] == [(0.4, {"mlflow": "a1"}), (0.9, {})]
    assert (first / "history.jsonl").read_text().count("\n") == len(EPOCHS)
