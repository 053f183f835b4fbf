from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import TINY

from speechtrain import compose
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.data.prepare import prepare
from speechtrain.training.language_model import write_language_model


def test_texts_that_give_no_language_model_are_a_warning_behind_a_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = ExperimentConfig.of(compose([*TINY, "language_model=words"], output_dir=tmp_path))
    tracked: list[Path] = []
    run = SimpleNamespace(cfg=cfg, folder=tmp_path, data=prepare(cfg, threads=1))
    recorder = SimpleNamespace(files=tracked.extend)

    assert write_language_model(run, recorder) == tracked == [tmp_path / "lm.arpa", tmp_path / "words.txt"]
    for cut in run.data.corpus.splits["train"]:
        cut.text = ""
    with caplog.at_level(logging.WARNING):
        assert write_language_model(run, recorder) == []
    assert "could not be written (DataError: the text for the language model holds no words" in caplog.text
    assert len(tracked) == 2
