"""What a recognizer checks before it builds the model that a file asks for."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY

from speechtrain import load
from speechtrain.config.build import build
from speechtrain.errors import UserError
from speechtrain.inference.archive import stored_config
from speechtrain.inference.recognizer import _check_size
from speechtrain.tasks.build import build_task


def test_a_model_of_keras_that_is_larger_than_its_file_is_refused_before_it_is_made(tmp_path: Path) -> None:
    with tarfile.open(REPOSITORY / "tests" / "old_runs" / "runs.tar.xz") as archive:
        member = next(each for each in archive.getmembers() if each.name.endswith("keras/checkpoints/last.keras"))
        content = archive.extractfile(member)
        assert content is not None
        (tmp_path / "a.keras").write_bytes(content.read())
    cfg, vocabulary = stored_config(tmp_path / "a.keras")
    task = build_task(cfg, tokenizer=build("tokenizer", cfg.tokenizer, vocabulary=vocabulary), input_size=20)
    _check_size(cfg, task, tmp_path / "a.keras", input_size=20)
    cfg = cfg.with_values({"model.d_model": 65_536})
    with pytest.raises(UserError, match=r"a\.keras holds another model: its config asks for 98,[\d,]+ weights, and it has 2,241\n"):
        _check_size(cfg, task, tmp_path / "a.keras", input_size=20)
    cfg = cfg.with_values({"model.d_model": 16, "model.n_layers": 10**5})
    with pytest.raises(UserError, match=r"a\.keras holds another model: model\.n_layers of its config is 100000, and it has \d+ weights"):
        _check_size(cfg, task, tmp_path / "a.keras", input_size=20)


@pytest.mark.slow
def test_outputs_that_are_nan_are_no_text(trained: Path) -> None:
    recognizer = load(str(trained))
    values = recognizer.log_probs(np.zeros(8000, dtype=np.float32))
    assert np.isfinite(values).all()
    values[0, 0] = np.nan

    with pytest.raises(UserError, match="outputs are NaN"):
        recognizer.decode(values)
